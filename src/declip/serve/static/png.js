// Grey PNG files: 8 bits are written, 16 bits are read. A canvas knows neither grey nor 16 bits.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const CRC = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/** Write a PNG of 8 bits as a Blob; values: Uint8Array of height × width. */
export async function greyPng(values, width, height) {
  const lines = new Uint8Array(height * (1 + width)); // each begins with its filter, 0 = none
  for (let y = 0; y < height; y++) lines.set(values.subarray(y * width, (y + 1) * width), y * (1 + width) + 1);
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 0, 0, 0, 0], 8); // grey, the one compression and filter method there is, not interlaced
  const parts = [new Uint8Array(SIGNATURE), ...chunk("IHDR", header)];
  parts.push(...chunk("IDAT", await through(new CompressionStream("deflate"), [lines])), ...chunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}

/** Read a PNG of 16 bits, not interlaced, as the service sends scores; blob → Uint16Array of height × width. */
export async function readGrey16(blob) {
  const file = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(file.buffer);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  if (view.getUint8(24) !== 16 || view.getUint8(25) !== 0 || view.getUint8(28) !== 0) {
    throw new Error("the map is no 16-bit grey PNG that is not interlaced");
  }
  const packed = [];
  for (let at = 8; at < file.length; ) {
    const length = view.getUint32(at);
    if (view.getUint32(at + 4) === 0x49444154) packed.push(file.subarray(at + 8, at + 8 + length)); // IDAT
    at += 12 + length;
  }
  const lines = await through(new DecompressionStream("deflate"), packed);
  const size = 2 * width; // bytes of a line without its filter
  const values = new Uint16Array(width * height);
  for (let y = 0, i = 0; y < height; y++) {
    const start = y * (size + 1) + 1;
    undo(lines, start, size, y ? start - size - 1 : -1);
    for (let at = start; at < start + size; at += 2) values[i++] = (lines[at] << 8) | lines[at + 1];
  }
  return values;
}

// Undo the filter of one line in place. above: where the line above begins, whose filter is undone already; -1 = none.
function undo(lines, start, size, above) {
  const filter = lines[start - 1];
  for (let x = 0; x < size; x++) {
    const left = x < 2 ? 0 : lines[start + x - 2];
    const up = above < 0 ? 0 : lines[above + x];
    const corner = x < 2 || above < 0 ? 0 : lines[above + x - 2];
    if (filter === 1) lines[start + x] += left;
    else if (filter === 2) lines[start + x] += up;
    else if (filter === 3) lines[start + x] += (left + up) >> 1;
    else if (filter === 4) lines[start + x] += paeth(left, up, corner);
  }
}

function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

async function through(transform, parts) {
  return new Uint8Array(await new Response(new Blob(parts).stream().pipeThrough(transform)).arrayBuffer());
}

function chunk(name, data) {
  const kind = new TextEncoder().encode(name);
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, data.length);
  const check = new DataView(new ArrayBuffer(4));
  check.setUint32(0, crc(data, crc(kind, 0xffffffff)) ^ 0xffffffff);
  return [length.buffer, kind, data, check.buffer];
}

function crc(bytes, start) {
  let value = start;
  for (let i = 0; i < bytes.length; i++) value = CRC[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return value >>> 0;
}
