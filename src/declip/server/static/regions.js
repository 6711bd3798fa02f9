// A worker: the connected parts of a mask, by the same rule as the service's `regions`.
//
// In: {id, scores, width, height} keeps a map; {id, first} asks for the parts of scores >= first in it.
// Out: {id, first, regions}: the 50 largest 8-connected parts of at least 0.01 % of the photo, largest first, each
// {bbox: [x0, y0, x1, y1] half-open, area: share, score: mean in [0, 1]}.

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

function regionsOf({ scores, width, height }, first) {
  // Runs of flagged pixels row by row, joined with those that they touch in the row above.
  const starts = [];
  const ends = [];
  const rows = [];
  const parents = [];
  let above = [0, 0]; // the runs of the row above: [from, to) of the lists
  for (let y = 0; y < height; y++) {
    const from = starts.length;
    let [next, last] = above;
    for (let x = 0, at = y * width; x < width; x++) {
      if (scores[at + x] < first) continue;
      const start = x;
      while (x < width && scores[at + x] >= first) x++;
      const run = starts.length;
      starts.push(start);
      ends.push(x);
      rows.push(y);
      parents.push(run);
      while (next < last && ends[next] < start) next++;
      for (let i = next; i < last && starts[i] <= x; i++) join(parents, i, run);
    }
    above = [from, starts.length];
  }
  const parts = new Map();
  for (let run = 0; run < starts.length; run++) {
    const root = find(parents, run);
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

function find(parents, run) {
  while (parents[run] !== run) {
    parents[run] = parents[parents[run]];
    run = parents[run];
  }
  return run;
}

function join(parents, one, other) {
  const [a, b] = [find(parents, one), find(parents, other)];
  if (a !== b) parents[Math.max(a, b)] = Math.min(a, b);
}
