// The 8-connected parts of a mask, without a page: for the worker that lists them, and for a map's own mask.

/**
 * The runs of scores >= first, row by row: run i covers the pixels [starts[i], ends[i]) of row rows[i], and belongs to the
 * part whose first run is roots[i].
 */
export function runsOf({ scores, width, height }, first) {
  const starts = [];
  const ends = [];
  const rows = [];
  const roots = [];
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
      roots.push(run);
      while (next < last && ends[next] < start) next++;
      for (let i = next; i < last && starts[i] <= x; i++) join(roots, i, run);
    }
    above = [from, starts.length];
  }
  for (let run = 0; run < roots.length; run++) roots[run] = find(roots, run);
  return { starts, ends, rows, roots };
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
