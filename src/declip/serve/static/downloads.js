// What can be kept of a photo: files made in the browser from what it holds, at the threshold that is set.

import { Sampler, firstFlagged, join, paint, palette } from "./map.js";
import { greyPng } from "./png.js";

const STRIP = 512; // rows that are painted at once

/** Hand a Blob to the browser as a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The photo's file name as the beginning of a name that no disk minds. */
export function stem(name) {
  return name.replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^[._-]+/, "").slice(-80) || "picture";
}

/** 8-bit grey PNG, 255 = manipulated. */
export function maskPng(marks, threshold) {
  const first = firstFlagged(threshold);
  const mask = new Uint8Array(marks.scores.length);
  for (let i = 0; i < mask.length; i++) mask[i] = marks.scores[i] >= first ? 255 : 0;
  return greyPng(mask, marks.width, marks.height);
}

/** Raw scores: uint16, little-endian, row by row, 65535 = 1.0. */
export function rawScores(map) {
  return new Blob([map.scores], { type: "application/octet-stream" });
}

/**
 * The photo with the map on it as it is shown, at the photo's own size; photo: a Blob of it as it was examined. look: also
 * the regions, for the lines between parts that repeat.
 */
export async function overlayPng(photo, map, marks, look) {
  const canvas = document.createElement("canvas");
  canvas.width = map.width;
  canvas.height = map.height;
  const context = canvas.getContext("2d");
  const bitmap = await createImageBitmap(photo);
  context.drawImage(bitmap, 0, 0, map.width, map.height);
  bitmap.close();
  const layer = document.createElement("canvas");
  layer.width = map.width;
  const colours = palette(look);
  const [sampler, edges] = [new Sampler(), new Sampler()];
  for (let y = 0; y < map.height; y += STRIP) {
    // Two rows more on both sides, for the outline.
    const top = Math.max(0, y - 2);
    const height = Math.min(map.height, y + STRIP + 2) - top;
    const view = { width: map.width, height, x: 0, y: top, step: 1 };
    sampler.take(look.colours === "tint" ? marks : map, view);
    edges.take(marks, view);
    const pixels = new ImageData(map.width, height);
    paint(sampler, edges, look, colours, new Uint32Array(pixels.data.buffer));
    layer.height = height;
    layer.getContext("2d").putImageData(pixels, 0, 0);
    const rows = Math.min(STRIP, map.height - y);
    context.drawImage(layer, 0, y - top, map.width, rows, 0, y, map.width, rows);
  }
  if (look.outline) join(context, look.regions, (x, y) => [x, y], Math.max(2, map.width / 600));
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
