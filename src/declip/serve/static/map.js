// The scores of one photo, and how they are drawn: pure functions and one class, without a page.
//
// Scores are uint16, row by row, 65535 = 1.0, as in the service's PNG files. Thresholds are in [0, 1].

export const TOP = 65535;

// Finer than what a screen shows, and made often enough while a threshold is moved.
const SHADES = 1024;
const SHIFT = 6; // from a score to its shade
const SMOOTH = 1 / 6; // pixels of the photo per pixel of the screen, below which they are not smoothed

// Of the overlay: as image.py paints it, and the scores' colours of report.py. A test compares them.
export const AMBER = [255, 190, 40];
export const RED = [235, 10, 50];
const SCALES = {
  heat: [[14, 16, 34], [72, 34, 104], [176, 50, 102], [240, 124, 66], [252, 236, 186]],
  cividis: [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]],
  grey: [[0, 0, 0], [255, 255, 255]],
};

/** The smallest score that is flagged at a threshold. At its own rule the model decides, and the page shows that. */
export function firstFlagged(threshold) {
  return Math.min(TOP + 1, Math.max(0, Math.ceil(threshold * TOP - 1e-6)));
}

export class ScoreMap {
  /** scores: Uint16Array of height × width. */
  constructor(scores, width, height) {
    if (scores.length !== width * height) {
      throw new Error(`the map has ${scores.length} scores; expected ${width} × ${height}`);
    }
    this.width = width;
    this.height = height;
    this.scores = scores;
    this.histogram = new Uint32Array(TOP + 1);
    for (let i = 0; i < scores.length; i++) this.histogram[scores[i]]++;
    // reaching[k]: how many pixels score k or more.
    this.reaching = new Uint32Array(TOP + 2);
    for (let k = TOP; k >= 0; k--) this.reaching[k] = this.reaching[k + 1] + this.histogram[k];
    this.levels = [{ scores, width, height }];
  }

  /** How many pixels are in the mask. */
  flagged(threshold) {
    return this.reaching[firstFlagged(threshold)];
  }

  /** The score of a pixel in [0, 1]; NaN outside of the photo. */
  at(x, y) {
    const inside = x >= 0 && y >= 0 && x < this.width && y < this.height;
    return inside ? this.scores[y * this.width + x] / TOP : NaN;
  }

  /** The scores at 1 / 2^n of the size, means of 2 × 2; made when first asked for. */
  level(n) {
    while (this.levels.length <= n) {
      const last = this.levels[this.levels.length - 1];
      if (Math.min(last.width, last.height) < 64) return last;
      this.levels.push(halved(last));
    }
    return this.levels[n];
  }
}

/**
 * The map of what is flagged at the model's own rule: the scores in the mask that the service decided on, and 0 around it.
 * mask: one value for each pixel, 0 = not in it.
 */
export function marked(map, mask, threshold) {
  const first = firstFlagged(threshold);
  const scores = map.scores.map((score, i) => (mask[i] ? Math.max(first, score) : 0));
  return new ScoreMap(scores, map.width, map.height);
}

function halved({ scores, width, height }) {
  const [w, h] = [width >> 1, height >> 1];
  const made = new Uint16Array(w * h);
  for (let y = 0; y < h; y++) {
    const upper = 2 * y * width;
    const lower = upper + width;
    for (let x = 0, at = y * w; x < w; x++, at++) {
      const i = 2 * x;
      made[at] = (scores[upper + i] + scores[upper + i + 1] + scores[lower + i] + scores[lower + i + 1] + 2) >> 2;
    }
  }
  return { scores: made, width: w, height: h };
}

/** What of a map a canvas shows: its scores at the canvas's size. Computed anew only when the view moves. */
export class Sampler {
  constructor() {
    this.key = "";
    this.left = this.top = this.width = this.height = 0;
    this.scores = new Uint16Array(0);
  }

  /**
   * view: {width, height} of the canvas, and {x, y, step}: the photo's pixel at its top left corner, and how many of the
   * photo's pixels one of the canvas is wide. Afterwards `scores` are those of the part (left, top, width, height).
   */
  take(map, view) {
    const key = `${view.width} ${view.height} ${view.x} ${view.y} ${view.step}`;
    if (this.map === map && this.key === key) return;
    this.map = map;
    this.key = key;
    // All that touches the photo, so that nothing of it looks out at the edges.
    const left = Math.max(0, Math.floor(-view.x / view.step + 1e-6));
    const top = Math.max(0, Math.floor(-view.y / view.step + 1e-6));
    const right = Math.min(view.width, Math.ceil((map.width - view.x) / view.step - 1e-6));
    const bottom = Math.min(view.height, Math.ceil((map.height - view.y) / view.step - 1e-6));
    this.left = left;
    this.top = top;
    this.width = Math.max(0, right - left);
    this.height = Math.max(0, bottom - top);
    if (this.scores.length !== this.width * this.height) this.scores = new Uint16Array(this.width * this.height);
    if (view.step < 1 && view.step > SMOOTH) this.#between(map, view);
    else this.#nearest(map.level(Math.max(0, Math.floor(Math.log2(view.step) + 0.25))), map, view);
  }

  #nearest(level, map, view) {
    const { left, top, width, height, scores } = this;
    const columns = new Int32Array(width);
    for (let i = 0; i < width; i++) columns[i] = place(view.x + (left + i + 0.5) * view.step, map.width, level.width);
    for (let j = 0, at = 0; j < height; j++) {
      const row = place(view.y + (top + j + 0.5) * view.step, map.height, level.height) * level.width;
      for (let i = 0; i < width; i++) scores[at++] = level.scores[row + columns[i]];
    }
  }

  // Slightly enlarged, as the photo below it is: between the four nearest pixels. Enlarged more, every pixel is seen.
  #between(map, view) {
    const { left, top, width, height, scores } = this;
    const [xs, ys] = [weights(view.x, view.step, left, width, map.width), weights(view.y, view.step, top, height, map.height)];
    for (let j = 0, at = 0; j < height; j++) {
      const upper = ys.from[j] * map.width;
      const lower = ys.to[j] * map.width;
      const down = ys.share[j];
      for (let i = 0; i < width; i++) {
        const x0 = xs.from[i];
        const x1 = xs.to[i];
        const across = xs.share[i];
        const above = map.scores[upper + x0] * (1 - across) + map.scores[upper + x1] * across;
        const below = map.scores[lower + x0] * (1 - across) + map.scores[lower + x1] * across;
        scores[at++] = above * (1 - down) + below * down + 0.5;
      }
    }
  }
}

function place(pixel, length, levelLength) {
  return Math.min(levelLength - 1, Math.max(0, Math.floor((pixel * levelLength) / length)));
}

// Of each of `count` places: the two pixels that it lies between, and how near it is to the second.
function weights(start, step, first, count, length) {
  const made = { from: new Int32Array(count), to: new Int32Array(count), share: new Float32Array(count) };
  for (let i = 0; i < count; i++) {
    const at = Math.min(length - 1, Math.max(0, start + (first + i + 0.5) * step - 0.5));
    made.from[i] = Math.floor(at);
    made.to[i] = Math.min(length - 1, made.from[i] + 1);
    made.share[i] = at - made.from[i];
  }
  return made;
}

/**
 * The colours of scores as canvas pixels (little-endian RGBA): evenly spaced ones, or, of the mask, those of what is not
 * and what is flagged. look: {colours, threshold, opacity}.
 */
export function palette({ colours, threshold, opacity }) {
  if (colours === "mask") return Uint32Array.of(packed([0, 0, 0], opacity), packed([255, 255, 255], opacity));
  const made = new Uint32Array(SHADES);
  const scale = SCALES[colours];
  for (let step = 0; step < SHADES; step++) {
    const score = step / (SHADES - 1);
    made[step] = scale ? packed(between(scale, score * (scale.length - 1)), opacity) : tinted(score, threshold, opacity);
  }
  return made;
}

// As image.py: no tint up to 60 % of the threshold, from amber at the threshold to red at a score of 1.
function tinted(score, threshold, opacity) {
  const start = 0.6 * threshold;
  let strength;
  if (score >= threshold) strength = threshold < 1 ? 0.6 + (0.4 * (score - threshold)) / (1 - threshold) : 1;
  else strength = score > start ? (0.6 * (score - start)) / (threshold - start) : 0;
  return packed(between([AMBER, RED], strength), opacity * strength);
}

function between(colours, at) {
  const i = Math.min(colours.length - 2, Math.floor(at));
  return colours[i].map((value, channel) => value + (colours[i + 1][channel] - value) * (at - i));
}

function packed([red, green, blue], opacity) {
  const alpha = Math.round(255 * Math.min(1, opacity));
  return ((alpha << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0;
}

/**
 * Draw a line from each part to its repetition: white, cased in black; with a head where it is likely which one is the
 * copy. at(x, y) is the place on the canvas of a pixel of the photo, line: the width.
 */
export function join(context, regions, at, line) {
  context.lineCap = context.lineJoin = "round";
  for (const { parts = [], directed } of regions) {
    if (parts.length !== 2) continue;
    const [[x, y], [u, v]] = parts.map(([x0, y0, x1, y1]) => at((x0 + x1) / 2, (y0 + y1) / 2));
    const turn = Math.atan2(v - y, u - x);
    for (const [colour, width] of [["#000", 2 * line + 2], ["#fff", line]]) {
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(u, v);
      if (directed) {
        for (const side of [-0.5, 0.5]) {
          context.moveTo(u, v);
          context.lineTo(u - 7 * line * Math.cos(turn + side), v - 7 * line * Math.sin(turn + side));
        }
      }
      context.stroke();
      for (const [a, b] of directed ? [[x, y]] : [[x, y], [u, v]]) {
        context.beginPath();
        context.arc(a, b, 1.2 * width, 0, 2 * Math.PI);
        context.fill();
      }
    }
  }
}

const WHITE = 0xffffffff;
const DARK = 0xb0000000;

/**
 * Paint sampled scores into pixels (Uint32Array of the same length). marks: what is flagged, sampled alike; the outline
 * goes round that. look: also {outline}. colours: its palette.
 */
export function paint({ scores }, marks, look, colours, pixels) {
  const { width, height } = marks;
  const first = firstFlagged(look.threshold);
  const flagged = new Uint8Array(scores.length);
  for (let i = 0; i < scores.length; i++) flagged[i] = marks.scores[i] >= first ? 1 : 0;
  if (look.colours === "mask") {
    for (let i = 0; i < scores.length; i++) pixels[i] = colours[flagged[i]];
    return;
  }
  for (let i = 0; i < scores.length; i++) pixels[i] = colours[scores[i] >> SHIFT];
  if (!look.outline) return;
  // A white line inside the border of the mask, cased in dark outside of it, to stand out on any ground. There is none
  // at the ends of the canvas: the mask may go on there.
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (x && flagged[i] !== flagged[i - 1]) border(pixels, flagged, i - 1, i);
      if (y && flagged[i] !== flagged[i - width]) border(pixels, flagged, i - width, i);
    }
  }
}

// Between two neighbours, one of which is flagged. The line is two pixels wide where the mask is.
function border(pixels, flagged, one, other) {
  const [inside, outside] = flagged[one] ? [one, other] : [other, one];
  const further = inside + (inside - outside);
  pixels[inside] = WHITE;
  if (flagged[further]) pixels[further] = WHITE;
  pixels[outside] = DARK;
}
