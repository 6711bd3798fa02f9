// A worker: the connected parts of a mask, by the same rule as the service's `regions`.
//
// In: {id, scores, width, height} keeps a map; {id, first} asks for the parts of scores >= first in it.
// Out: {id, first, regions}: the 50 largest 8-connected parts of at least 0.01 % of the photo, largest first, each
// {bbox: [x0, y0, x1, y1] half-open, area: share, score: mean in [0, 1]}.

import { runsOf } from "./parts.js";

const TOP = 65535;
const MOST = 50;
const SMALLEST = 1e-4;

let kept = null;

self.addEventListener("message", ({ data }) => {
  if (data.scores) kept = data;
  else if (kept && kept.id === data.id) {
    self.postMessage({ id: data.id, first: data.first, regions: regionsOf(kept, data.first) });
  }
});

function regionsOf(map, first) {
  const { scores, width, height } = map;
  const { starts, ends, rows, roots } = runsOf(map, first);
  const parts = new Map();
  for (let run = 0; run < starts.length; run++) {
    const root = roots[run];
    let part = parts.get(root);
    if (!part) parts.set(root, (part = { x0: width, y0: rows[run], x1: 0, y1: 0, count: 0, total: 0, order: run }));
    part.x0 = Math.min(part.x0, starts[run]);
    part.x1 = Math.max(part.x1, ends[run]);
    part.y1 = rows[run] + 1;
    part.count += ends[run] - starts[run];
    for (let i = rows[run] * width + starts[run]; i < rows[run] * width + ends[run]; i++) part.total += scores[i];
  }
  const size = width * height;
  return [...parts.values()]
    .sort((one, other) => other.count - one.count || one.order - other.order)
    .slice(0, MOST)
    .filter((part) => part.count >= SMALLEST * size)
    .map((part) => ({
      bbox: [part.x0, part.y0, part.x1, part.y1],
      area: part.count / size,
      score: part.total / part.count / TOP,
    }));
}
