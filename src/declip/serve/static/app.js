// The page: what is chosen and set, and what then happens.

import * as api from "./api.js";
import { maskPng, overlayPng, rawScores, save, stem } from "./downloads.js";
import { ScoreMap, TOP, firstFlagged, marked, paint } from "./map.js";
import { percent, showEdits, showMetadata, showRegions, showVerdict, visible } from "./panels.js";
import { readGrey16 } from "./png.js";
import { Queue } from "./queue.js";
import { Viewer } from "./viewer.js";

const SETTLED = 250; // ms after the last change until parts are sought and told

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

const look = { layout: "overlay", visible: true, colours: "tint", threshold: 0.5, opacity: 0.7, outline: true };
let served = null; // what /v1/models says
let shown = null; // {entry, map, own, regions, chosen}: the photo that is shown; own: its map as the model marks it
let settling = 0;

const parts = new Worker(new URL("./regions.js", import.meta.url), { type: "module" });
const viewer = new Viewer($("view"), { hovered: (pixel) => read(pixel) });
const queue = new Queue($("photos"), {
  ask: () => ({ options: asked(), most: served?.limits.request_bytes ?? Infinity }),
  chosen: open,
  finished,
  removed: (entry) => entry === shown?.entry && forget(),
  refused: askForToken,
});

// --- the service ------------------------------------------------------------------------------------------------------

async function meet() {
  try {
    served = await api.models();
  } catch (error) {
    if (error.status === 401) askForToken();
    else trouble(error.status === undefined ? "The service does not answer. Is it still running?" : error.message);
    return false;
  }
  trouble("");
  $("model").replaceChildren(...served.models.map(({ name }) => new Option(name, name)));
  $("model-field").hidden = served.models.length < 2;
  chooseModel();
  return true;
}

function chooseModel() {
  const model = served.models.find(({ name }) => name === $("model").value);
  const words = { tiled: "native resolution", whole: "whole picture" };
  $("mode").replaceChildren(...model.modes.map((mode) => new Option(words[mode] ?? mode, mode)));
  $("mode-field").hidden = model.modes.length < 2;
  $("made-by").textContent = `Model ${model.name}, ${model.sha256.slice(0, 12)}.`;
}

function asked() {
  return served ? { model: $("model").value, mode: $("mode").value } : {};
}

function askForToken() {
  if (!$("token").hidden) $("token-said").textContent = "That was not the token. Try again.";
  $("token").hidden = false;
  $("token-value").value = "";
  $("token-value").focus();
}

$("token").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.setToken($("token-value").value);
  if (!(await meet())) return;
  $("token").hidden = true;
  queue.resume();
  ($("photos").querySelector("button") ?? $("choose")).focus();
});

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// Another model or mode: the photo that is shown is examined again by it.
for (const id of ["model", "mode"]) {
  $(id).addEventListener("change", () => {
    if (id === "model") chooseModel();
    if (shown) queue.add([shown.entry.file]);
  });
}

// --- photos in --------------------------------------------------------------------------------------------------------

function take(files) {
  const given = [...files];
  if (!given.length) return;
  document.body.dataset.state = "some";
  queue.add(given);
  if (!queue.current) queue.choose(queue.entries[0]);
  tell(given.length === 1 ? `1 photo added` : `${given.length} photos added`);
}

for (const id of ["add", "choose"]) $(id).addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  take($("files").files);
  $("files").value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) {
    event.preventDefault();
    take(event.clipboardData.files);
  }
});
const carries = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  $("catch").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("catch").hidden = true;
});
document.addEventListener("drop", (event) => {
  $("catch").hidden = true;
  if (!carries(event)) return;
  event.preventDefault();
  take(event.dataTransfer.files);
});

function finished(entry) {
  if (entry === queue.current) open(entry);
  const name = visible(entry.file.name);
  const headline = entry.row?.provenance.headline;
  const said = headline ? `${visible(headline)} The pixels: ` : "";
  tell(entry.state === "done" ? `${name}: ${said}${entry.words.title}` : `${name}: could not be examined. ${entry.error}`);
}

// --- the photo that is shown ------------------------------------------------------------------------------------------

let opening = 0;

async function open(entry) {
  const turn = ++opening;
  forget();
  document.body.dataset.state = entry ? entry.state : "empty";
  if (!entry) {
    $("choose").focus();
    return;
  }
  const name = visible(entry.file.name || "pasted picture");
  $("stage-name").textContent = name;
  document.title = `${name} – declip`;
  $("failure").hidden = entry.state !== "failed";
  $("failure-said").textContent = entry.error ?? "";
  message(entry.state === "failed" ? "There is nothing to show." : "Examining…");
  if (entry.state !== "done") return;
  const { row } = entry;
  const scores = await readGrey16(entry.scores);
  const mask = row.verdict === null ? null : await valuesOf(entry.mask);
  if (turn !== opening) return;
  const map = new ScoreMap(scores, row.width, row.height);
  shown = { entry, map, own: mask ? marked(map, mask, row.threshold) : map, regions: row.regions, chosen: -1 };
  showVerdict($("verdict"), entry);
  showTried(entry);
  $("no-probability").textContent = entry.words.no_probability;
  await show(entry, map);
  if (turn !== opening) return;
  setThreshold(entry.threshold);
  parts.postMessage({ id: entry.id, scores, width: row.width, height: row.height });
  listRegions([]);
  seekParts();
  if ($("file").open) readFile();
}

// The photo that is shown under the map is the service's own, from the very pixels that were examined. The file itself
// would not do: this browser may turn it otherwise than the service does, or not read it.
async function show(entry, map) {
  message("");
  entry.url ??= URL.createObjectURL(entry.photo);
  try {
    await viewer.open(entry.url, map);
  } catch {
    message("This browser cannot show the photo.");
  }
  viewer.set(look, marks());
}

function forget() {
  shown = null;
  viewer.close();
  read(null);
  $("stage-name").textContent = "No photo";
  document.title = "declip";
  $("metadata").replaceChildren();
  message("");
}

function message(text) {
  $("view-message").textContent = text;
  $("view-message").hidden = !text;
}

// --- could an edit have been seen? --------------------------------------------------------------------------------------

function showTried(entry) {
  $("edits").hidden = entry.row.verdict !== "nothing found";
  $("edits-ask").hidden = Boolean(entry.edits);
  $("edits-ask").disabled = Boolean(entry.trying);
  $("edits-said").textContent = entry.trying ?? entry.untried ?? (entry.edits ? "" : "Puts small known edits into this photo, and looks for them.");
  if (entry.edits) showEdits($("edits-found"), entry.edits);
  else $("edits-found").replaceChildren();
}

$("edits-ask").addEventListener("click", async () => {
  if (!shown) return;
  const { entry } = shown;
  const started = performance.now();
  const say = (text) => {
    entry.trying = text;
    if (entry === shown?.entry) showTried(entry);
  };
  const said = () => say(`Trying edits, ${Math.round((performance.now() - started) / 1000)} s…`);
  const timer = setInterval(said, 1000);
  entry.untried = null;
  said();
  try {
    entry.edits = await api.detectability(entry.file, entry.options, entry.stop.signal, (seconds) =>
      say(`The service is busy; again in ${seconds} s.`),
    );
  } catch (error) {
    entry.untried = `It could not be tried: ${error.message}`;
  } finally {
    clearInterval(timer);
    say(null);
  }
  if (entry.edits && entry === shown?.entry) tell(entry.edits.sentences[1]);
});

// --- how the map looks ------------------------------------------------------------------------------------------------

// At its own threshold the model flags only parts that are rare in untouched photos; another threshold is all that
// decides, here as in the service, and then there is no verdict.
const isOwn = () => look.threshold === shown.entry.row.threshold;
const RULE = {
  own: "Flagged are only parts that are stronger than those of nearly all untouched photos.",
  other: "At a threshold of your own everything that reaches it is flagged. Untouched photos have such places, too. The verdict is not about them; Reset goes back to those that it is about.",
};
const marks = () => (shown && isOwn() ? shown.own : (shown?.map ?? null));

function setThreshold(value) {
  if (!shown) return;
  look.threshold = Math.min(1, Math.max(0, value));
  shown.entry.threshold = look.threshold;
  $("threshold").value = String(look.threshold);
  $("threshold").setAttribute("aria-valuetext", look.threshold.toFixed(3));
  $("threshold-value").value = look.threshold.toFixed(3);
  $("threshold-reset").disabled = isOwn();
  const [flagged, all] = [marks().flagged(look.threshold), shown.map.scores.length];
  $("area").textContent = `${percent(flagged / all)} of the picture is flagged`;
  $("rule").textContent = shown.entry.row.verdict === null ? "" : RULE[isOwn() ? "own" : "other"];
  $("area-pixels").textContent = `${number.format(flagged)} of ${number.format(all)} px`;
  draw();
}

// Rounded as it is shown, but for the model's own, which may have more digits.
function changeThreshold(value) {
  const own = shown?.entry.row.threshold;
  const rounded = Math.round(1000 * value) / 1000;
  setThreshold(Math.abs(rounded - own) < 0.0005 ? own : rounded);
  clearTimeout(settling);
  settling = setTimeout(() => {
    seekParts();
    tell($("area").textContent);
  }, SETTLED);
}

let due = 0;

function draw() {
  due ||= requestAnimationFrame(() => {
    due = 0;
    viewer.set({ ...look }, marks());
    drawScale();
  });
}

$("threshold").addEventListener("input", () => changeThreshold(Number($("threshold").value)));
$("threshold-value").addEventListener("change", () => changeThreshold(Number($("threshold-value").value) || 0));
$("threshold-reset").addEventListener("click", () => shown && changeThreshold(shown.entry.row.threshold));
$("opacity").addEventListener("input", () => {
  look.opacity = Number($("opacity").value) / 100;
  $("opacity-value").textContent = `${$("opacity").value} %`;
  draw();
});
$("colours").addEventListener("change", () => {
  look.colours = $("colours").value;
  draw();
});
for (const name of ["visible", "outline"]) {
  $(name).addEventListener("change", () => {
    look[name] = $(name).checked;
    draw();
  });
}
$("layout").addEventListener("change", () => {
  look.layout = document.querySelector("[name=layout]:checked").value;
  draw();
});

// The colours of all scores, and how many pixels have each.
function drawScale() {
  const style = getComputedStyle(document.documentElement);
  const legend = $("legend");
  const line = new ImageData(legend.width, legend.height);
  const pixels = new Uint32Array(line.data.buffer);
  const scores = Uint16Array.from(pixels, (_, i) => Math.round(((i % legend.width) / (legend.width - 1)) * TOP));
  const ramp = { scores, width: legend.width, height: legend.height };
  paint(ramp, ramp, { ...look, outline: false }, viewer.palette, pixels);
  legend.getContext("2d").putImageData(line, 0, 0);
  const canvas = $("histogram");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!shown) return;
  const bins = (shown.bins ??= binned(shown.map));
  const flagged = isOwn() ? (shown.ownBins ??= binned(shown.own)) : bins;
  const most = Math.log1p(Math.max(...bins));
  const wide = canvas.width / bins.length;
  const [flag, bars] = [style.getPropertyValue("--flag"), style.getPropertyValue("--bars")];
  for (const [i, count] of bins.entries()) {
    const bar = (pixels, colour) => {
      const high = (Math.log1p(pixels) / most) * canvas.height;
      context.fillStyle = colour;
      context.fillRect(i * wide, canvas.height - high, wide - 1, high);
    };
    bar(count, bars);
    if ((i + 0.5) / bins.length >= look.threshold) bar(flagged[i], flag);
  }
}

/** The grey values of a PNG, one byte for each pixel. */
async function valuesOf(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  bitmap.close();
  return Uint8Array.from({ length: data.length / 4 }, (_, i) => (data[4 * i] > 127 ? 1 : 0));
}

function binned(map) {
  const bins = new Array(128).fill(0);
  for (let k = 0; k <= TOP; k++) bins[k >> 9] += map.histogram[k];
  return bins;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// --- the flagged parts ------------------------------------------------------------------------------------------------

function seekParts() {
  if (!shown) return;
  if (isOwn()) listRegions(shown.entry.row.regions);
  else parts.postMessage({ id: shown.entry.id, first: firstFlagged(look.threshold) });
}

parts.addEventListener("message", ({ data }) => {
  // Of a threshold that has not moved on since.
  if (shown?.entry.id === data.id && !isOwn() && data.first === firstFlagged(look.threshold)) listRegions(data.regions);
});

function listRegions(regions) {
  shown.regions = regions;
  shown.chosen = -1;
  viewer.joins = regions;
  viewer.show(null);
  showRegions($("regions"), regions, (region) => goTo(regions.indexOf(region)));
  $("parts-count").textContent = regions.length ? String(regions.length) : "";
  $("regions-none").hidden = regions.length > 0;
  document.querySelector("#parts .heads").hidden = !regions.length;
  $("strength").textContent = (regions[0]?.rank ?? null) === null ? "Score" : "Stronger than";
  $("parts").dataset.threshold = String(look.threshold);
}

function goTo(chosen) {
  if (!shown?.regions[chosen]) return;
  shown.chosen = chosen;
  for (const [i, button] of $("regions").querySelectorAll("button").entries()) {
    button.setAttribute("aria-pressed", String(i === chosen));
    if (i === chosen) {
      button.scrollIntoView({ block: "nearest" });
      tell(button.getAttribute("aria-label"));
    }
  }
  viewer.show(shown.regions[chosen]);
}

// --- reading scores ---------------------------------------------------------------------------------------------------

function read(pixel) {
  const at = pixel ?? viewer?.cross ?? null;
  $("reading").textContent = at && shown ? reading(at) : "";
}

function reading({ x, y }) {
  const score = shown.map.at(x, y);
  const flagged = Math.round(marks().at(x, y) * TOP) >= firstFlagged(look.threshold);
  return `x ${x}, y ${y}: score ${score.toFixed(3)}${flagged ? ", flagged" : ""}`;
}

function point(pixel) {
  const inside = pixel && {
    x: Math.min(shown.map.width - 1, Math.max(0, pixel.x)),
    y: Math.min(shown.map.height - 1, Math.max(0, pixel.y)),
  };
  viewer.point(inside);
  read(null);
  tell(inside ? reading(inside) : "Crosshair off");
}

// --- the file, and what can be kept -----------------------------------------------------------------------------------

$("file").addEventListener("toggle", () => $("file").open && readFile());
$("position").addEventListener("change", readFile);

async function readFile() {
  const entry = queue.current;
  if (!entry) return;
  const position = $("position").checked;
  $("metadata").textContent = "Reading…";
  let found;
  try {
    found = await api.metadata(entry.file, position, entry.stop.signal);
  } catch (error) {
    if (entry === queue.current) $("metadata").textContent = error.message;
    return;
  }
  if (entry === queue.current && position === $("position").checked) showMetadata($("metadata"), found);
}

const MAKERS = {
  mask: [".mask.png", () => maskPng(marks(), look.threshold)],
  overlay: [".view.png", () => overlayPng(shown.entry.photo, shown.map, marks(), { ...look, regions: shown.regions })],
  scores: [".scores.png", () => shown.entry.scores],
  raw: [".scores.u16", () => rawScores(shown.map)],
  json: [".json", () => new Blob([`${JSON.stringify(result())}\n`], { type: "application/json" })],
};

// The row at the threshold that is set.
function result() {
  if (isOwn()) return shown.entry.row;
  const area = shown.map.flagged(look.threshold) / shown.map.scores.length;
  const plain = { verdict: null, score: shown.entry.row.image_score, false_alarm_rate: null, untouched: null, not_examined: null };
  return { ...shown.entry.row, ...plain, threshold: look.threshold, area, regions: shown.regions };
}

for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", async () => {
    if (!shown) return;
    const [ending, make] = MAKERS[button.dataset.save];
    const name = stem(shown.entry.file.name) + ending;
    save(await make(), name);
    kept(`${name} is saved.`);
  });
}

$("save-report").addEventListener("click", async () => {
  if (!shown) return;
  const { entry } = shown;
  const button = $("save-report");
  const started = performance.now();
  const said = () => kept(`Writing the report, ${Math.round((performance.now() - started) / 1000)} s…`);
  const timer = setInterval(said, 1000);
  button.disabled = true;
  said();
  try {
    const options = { ...entry.options, position: $("position").checked };
    if (!isOwn()) options.threshold = entry.threshold;
    save(await api.report(entry.file, options, entry.stop.signal), `${stem(entry.file.name)}.report.html`);
    kept(`The report is saved. It is one file that needs no other; print it to have it as PDF.`);
  } catch (error) {
    kept(`There is no report: ${error.message}`);
  } finally {
    clearInterval(timer);
    button.disabled = false;
  }
});

function kept(text) {
  $("keep-said").textContent = text;
}

// --- keys -------------------------------------------------------------------------------------------------------------

$("zoom-in").addEventListener("click", () => viewer.zoom(1.5));
$("zoom-out").addEventListener("click", () => viewer.zoom(1 / 1.5));
$("zoom-fit").addEventListener("click", () => viewer.fit());
$("zoom-actual").addEventListener("click", () => viewer.actual());
$("help-open").addEventListener("click", () => $("help").showModal());

const KEYS = {
  o: () => $("files").click(),
  j: () => queue.step(1),
  k: () => queue.step(-1),
  v: nextLayout,
  m: () => $("visible").click(),
  "[": () => changeThreshold(look.threshold - 0.01),
  "]": () => changeThreshold(look.threshold + 0.01),
  n: () => goTo(shown ? shown.chosen + 1 : 0),
  p: () => goTo(shown ? shown.chosen - 1 : 0),
  "+": () => viewer.zoom(1.5),
  "=": () => viewer.zoom(1.5),
  "-": () => viewer.zoom(1 / 1.5),
  0: () => viewer.fit(),
  1: () => viewer.actual(),
  c: () => shown && point(viewer.cross ? null : viewer.centre()),
  "?": () => $("help").showModal(),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", (event) => {
  const writing = event.target.closest("input:not([type=checkbox], [type=radio], [type=range]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || writing || $("help").open || !$("keys").checked) return;
  const act = KEYS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
});

$("view").addEventListener("keydown", (event) => {
  const way = ARROWS[event.key];
  if (!way || !shown || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const far = event.shiftKey;
  if (viewer.cross) point({ x: viewer.cross.x + way[0] * (far ? 10 : 1), y: viewer.cross.y + way[1] * (far ? 10 : 1) });
  else viewer.pan(way[0] * (far ? 0.5 : 0.1), way[1] * (far ? 0.5 : 0.1));
});

function nextLayout() {
  const choices = [...document.querySelectorAll("[name=layout]")];
  const next = choices[(choices.findIndex((each) => each.checked) + 1) % choices.length];
  next.click();
  tell(next.parentElement.textContent.trim());
}

// Said to those who do not see the page change.
function tell(text) {
  $("live").textContent = text;
}

$("host").textContent = location.host;
$("opacity").value = String(100 * look.opacity);
$("opacity-value").textContent = `${100 * look.opacity} %`;
meet();
document.documentElement.dataset.ready = "";
performance.mark("ready");
