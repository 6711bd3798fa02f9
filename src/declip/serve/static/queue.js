// The photos that were given: their states, and the list that shows them.

import * as api from "./api.js";
import { element, visible } from "./panels.js";

const AT_ONCE = 2;
const THUMB = 96; // px

let last = 0;

/** A photo and what is known of it. state: "waiting", "working", "done" or "failed". */
function entry(file) {
  return { id: ++last, file, state: "waiting", said: "", share: 0, stop: new AbortController() };
}

export class Queue {
  /**
   * list: the element that shows it. ask(): the options of a request, and the most bytes of one. Called with an entry:
   * chosen, finished, removed. refused(): the service wants a token.
   */
  constructor(list, { ask, chosen, finished, removed, refused }) {
    Object.assign(this, { list, ask, chosen, finished, removed, refused });
    this.entries = [];
    this.current = null;
    this.paused = false;
    this.timer = setInterval(() => this.#tick(), 1000);
  }

  add(files) {
    for (const file of files) {
      const made = entry(file);
      made.ui = this.#row(made);
      this.entries.push(made);
      this.list.append(made.ui.item);
      this.#thumb(made, file);
    }
    this.#next();
  }

  remove(made) {
    made.stop.abort(new DOMException("removed", "AbortError"));
    const at = this.entries.indexOf(made);
    this.entries.splice(at, 1);
    made.ui.item.remove();
    if (made.url) URL.revokeObjectURL(made.url);
    this.removed(made);
    if (made === this.current) this.choose(this.entries[Math.min(at, this.entries.length - 1)] ?? null);
    else this.list.querySelector("[aria-current=true]")?.focus();
    this.#next();
  }

  choose(made) {
    this.current = made;
    for (const each of this.entries) each.ui.button.setAttribute("aria-current", String(each === made));
    made?.ui.item.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.chosen(made);
  }

  /** The one `by` places after the current one. */
  step(by) {
    const next = this.entries[this.entries.indexOf(this.current) + by];
    if (next) this.choose(next);
  }

  /** Send what waits, after a token was given. */
  resume() {
    this.paused = false;
    this.#next();
  }

  get left() {
    return this.entries.filter((each) => each.state === "waiting" || each.state === "working").length;
  }

  #next() {
    const working = this.entries.filter((each) => each.state === "working").length;
    if (this.paused) return;
    for (const made of this.entries.filter((each) => each.state === "waiting").slice(0, AT_ONCE - working)) this.#work(made);
  }

  async #work(made) {
    const { options, most } = this.ask();
    made.state = "working";
    made.started = performance.now();
    made.options = options;
    this.#say(made, "sending");
    try {
      if (made.file.size > most) {
        throw new api.ServiceError(413, `The file is larger than the ${Math.floor(most / 1e6)} MB that the service takes.`);
      }
      const found = await api.localize(made.file, options, {
        signal: made.stop.signal,
        told: (share) => this.#say(made, share < 1 ? `sending, ${Math.floor(100 * share)} %` : "examining"),
        waiting: (seconds) => this.#say(made, `the service is busy; again in ${seconds} s`),
      });
      Object.assign(made, found, { state: "done", threshold: found.row.threshold });
      this.#say(made, verdictOf(found.row) + (found.row.provenance.headline ? "; see what the file says" : ""));
      this.#thumb(made, found.photo);
    } catch (error) {
      if (made.stop.signal.aborted) return;
      if (error.status === 401) {
        made.state = "waiting";
        this.paused = true;
        this.#say(made, "waiting for a token");
        this.refused();
        return;
      }
      made.state = "failed";
      made.error = error.message;
      this.#say(made, "not examined");
    }
    this.finished(made);
    this.#next();
  }

  #row(made) {
    const picture = element("span", { className: "thumb" });
    const name = element("bdi", { className: "name", textContent: visible(made.file.name || "pasted picture") });
    const said = element("span", { className: "said", textContent: "waiting" });
    const button = element("button", { type: "button", className: "photo" }, picture, element("span", { className: "text" }, name, said));
    const away = element("button", { type: "button", className: "away", title: "Remove" });
    away.append(element("span", { className: "hidden", textContent: `Remove ${visible(made.file.name)}` }), cross());
    button.addEventListener("click", () => this.choose(made));
    away.addEventListener("click", () => this.remove(made));
    const item = element("li", {}, button, away);
    item.dataset.state = made.state;
    return { item, button, picture, said };
  }

  #say(made, said) {
    made.said = said;
    made.ui.item.dataset.state = made.state;
    made.ui.item.dataset.tone = made.state === "done" ? made.words.tone : "";
    this.#show(made);
  }

  #show(made) {
    const seconds = Math.floor((performance.now() - made.started) / 1000);
    made.ui.said.textContent = made.said === "examining" && seconds > 1 ? `examining, ${seconds} s` : made.said;
  }

  #tick() {
    for (const made of this.entries) if (made.state === "working") this.#show(made);
  }

  // A small picture of it. The file's own does until the service sends the photo: this browser may not read the file,
  // or turn it otherwise.
  async #thumb(made, picture) {
    try {
      const bitmap = await createImageBitmap(picture);
      const canvas = element("canvas", { width: THUMB, height: THUMB });
      const scale = THUMB / Math.min(bitmap.width, bitmap.height);
      const [width, height] = [bitmap.width * scale, bitmap.height * scale];
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, (THUMB - width) / 2, (THUMB - height) / 2, width, height);
      bitmap.close();
      if (picture === (made.photo ?? made.file)) made.ui.picture.replaceChildren(canvas);
    } catch {
      const kind = /\.([a-z0-9]{1,5})$/i.exec(made.file.name)?.[1] ?? "?";
      if (!made.photo) made.ui.picture.textContent = kind.toUpperCase();
    }
  }
}

function verdictOf(row) {
  return row.verdict ?? "no verdict";
}

function cross() {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawn.setAttribute("viewBox", "0 0 16 16");
  drawn.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M4 4l8 8M12 4l-8 8");
  drawn.append(path);
  return drawn;
}
