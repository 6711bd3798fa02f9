// Grey PNG files of 8 or 16 bits. A canvas knows neither grey nor 16 bits.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const CRC = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/** A Blob; values: Uint8Array or Uint16Array of height × width. */
export async function greyPng(values, width, height) {
  const bytes = values.BYTES_PER_ELEMENT;
  const lines = new Uint8Array(height * (1 + width * bytes)); // each begins with its filter, 0 = none
  for (let y = 0, i = 0, at = 0; y < height; y++) {
    at++;
    for (let x = 0; x < width; x++, i++) {
      if (bytes === 2) lines[at++] = values[i] >> 8; // PNG is big-endian
      lines[at++] = values[i] & 255;
    }
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8 * bytes, 0, 0, 0, 0], 8); // grey, the one compression and filter method there is, not interlaced
  const parts = [new Uint8Array(SIGNATURE), ...chunk("IHDR", header)];
  parts.push(...chunk("IDAT", await deflated(lines)), ...chunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
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
