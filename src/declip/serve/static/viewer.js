// The photo and its map: two panes that move together, a map drawn on top at the size of the view, regions, a crosshair.

import { Sampler, join, paint, palette } from "./map.js";

const MOST_ZOOM = 24; // screen pixels per pixel of the photo
const SPLIT_STEP = 0.05;

/** look: {layout: "overlay" | "side" | "swipe", visible, colours, threshold, opacity, outline}. */
export class Viewer {
  constructor(root, { hovered }) {
    this.root = root;
    this.hovered = hovered;
    this.map = null; // what is read and coloured
    this.marks = null; // what is flagged: the same, or as `marked` makes it
    this.look = null;
    this.region = null;
    this.joins = [];
    this.cross = null; // {x, y} px of the photo
    this.split = 0.5;
    this.sampler = new Sampler();
    this.edges = new Sampler();
    this.whole = true; // the view shows all of the photo
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.canvas = root.querySelector(".map");
    this.handle = root.querySelector(".swipe-handle");
    this.panes = [...root.querySelectorAll(".pane")];
    withoutInlineStyle();
    this.viewers = this.panes.map((pane) => this.#pane(pane));
    this.#handleSwipe();
    this.colours = { key: "", made: null };
    this.drawn = 0; // how many times the map has been painted
  }

  get #main() {
    return this.viewers[1];
  }

  #pane(pane) {
    const viewer = window.OpenSeadragon({
      element: pane.querySelector(".osd"),
      drawer: "canvas",
      showNavigationControl: false,
      keyboardNavEnabled: false,
      animationTime: this.still ? 0 : 0.3,
      springStiffness: 9,
      immediateRender: true,
      visibilityRatio: 0.3,
      minZoomImageRatio: 0.6,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { dblTapToZoom: true },
    });
    // What is focused is the stage around it, which has a name and the keys.
    for (const inner of [viewer.container, viewer.canvas]) inner.removeAttribute("tabindex");
    viewer.addHandler("update-viewport", () => this.#moved(viewer));
    viewer.addHandler("viewport-change", () => this.#moved(viewer));
    // What was shown as a whole stays so in a window of another size.
    viewer.addHandler("resize", () => requestAnimationFrame(() => this.#resized(viewer)));
    pane.addEventListener("pointermove", (event) => this.hovered(this.#pixelAt(pane, viewer, event)));
    pane.addEventListener("pointerleave", () => this.hovered(null));
    return viewer;
  }

  /** Show a photo and its map. picture: the address of the photo as it was examined, for the map is of that. */
  async open(picture, map) {
    this.map = this.marks = map;
    this.region = null;
    this.joins = [];
    this.cross = null;
    this.split = 0.5;
    await Promise.all(this.viewers.map((viewer) => opened(viewer, picture)));
    for (const viewer of this.viewers) {
      viewer.viewport.maxZoomLevel = Math.max(1, (MOST_ZOOM * map.width) / viewer.viewport.getContainerSize().x);
    }
    this.fit(true);
  }

  /** Show nothing. */
  close() {
    this.map = this.marks = null;
    for (const viewer of this.viewers) viewer.close();
    this.draw();
  }

  /** Change how the map looks and what of it is flagged, and draw it. */
  set(look, marks) {
    const before = this.look?.layout;
    this.look = look;
    this.marks = marks;
    if (before !== look.layout) {
      this.root.dataset.layout = look.layout;
      // The panes have new sizes, which the viewers see a moment later; the view stays around its middle.
      const viewport = this.map && this.#main.viewport;
      const whole = this.whole;
      const [zoom, centre] = viewport ? [viewport.getZoom(true) / viewport.getHomeZoom(), viewport.getCenter(true)] : [];
      requestAnimationFrame(() => {
        for (const viewer of viewport ? this.viewers : []) {
          viewer.forceResize();
          viewer.viewport.resize(viewer.viewport.getContainerSize(), false);
          if (whole) viewer.viewport.goHome(true);
          else viewer.viewport.zoomTo(zoom * viewer.viewport.getHomeZoom(), null, true).panTo(centre, true);
        }
        this.draw();
      });
    }
    this.draw();
  }

  fit(immediately = this.still) {
    this.#main.viewport?.goHome(immediately);
  }

  zoom(factor) {
    this.#main.viewport?.zoomBy(factor).applyConstraints();
  }

  /** One pixel of the photo = one of the screen. */
  actual() {
    const viewport = this.#main.viewport;
    if (this.map) viewport?.zoomTo(this.map.width / viewport.getContainerSize().x / devicePixelRatio).applyConstraints();
  }

  /** Move by shares of the view. */
  pan(x, y) {
    const viewport = this.#main.viewport;
    const bounds = viewport?.getBounds();
    if (bounds) viewport.panBy(new window.OpenSeadragon.Point(x * bounds.width, y * bounds.height)).applyConstraints();
  }

  /** Mark a region, and go there; null marks none. */
  show(region) {
    this.region = region;
    if (region && this.map) {
      const [x0, y0, x1, y1] = region.bbox;
      const side = Math.max(x1 - x0, y1 - y0, 48);
      const margin = 0.6 * side;
      const scale = 1 / this.map.width;
      const bounds = new window.OpenSeadragon.Rect(
        (x0 - margin) * scale,
        (y0 - margin) * scale,
        (x1 - x0 + 2 * margin) * scale,
        (y1 - y0 + 2 * margin) * scale,
      );
      this.#main.viewport?.fitBoundsWithConstraints(bounds, this.still);
    }
    this.draw();
  }

  /** Put the crosshair on a pixel of the photo; null takes it away. Keeps it in sight. */
  point(pixel) {
    this.cross = pixel;
    const viewport = this.#main.viewport;
    if (pixel && this.map && viewport) {
      const place = new window.OpenSeadragon.Point((pixel.x + 0.5) / this.map.width, (pixel.y + 0.5) / this.map.width);
      if (!viewport.getBounds(true).containsPoint(place)) viewport.panTo(place, true);
    }
    this.draw();
  }

  /** The pixel of the photo in the middle of the view. */
  centre() {
    const middle = this.#main.viewport.getCenter(true);
    return {
      x: Math.min(this.map.width - 1, Math.max(0, Math.floor(middle.x * this.map.width))),
      y: Math.min(this.map.height - 1, Math.max(0, Math.floor(middle.y * this.map.width))),
    };
  }

  /** Move the border of the swipe, as a share of the width. */
  swipe(share) {
    this.split = Math.min(1, Math.max(0, share));
    this.draw();
  }

  /** Draw the map and what is marked, for the view as it is. */
  draw() {
    const { canvas, map, look } = this;
    const shown = Boolean(map && look?.visible && this.#main.isOpen());
    canvas.hidden = !shown;
    this.handle.hidden = !(map && look?.layout === "swipe");
    this.#place();
    if (!shown) return;
    const view = this.#view();
    if (canvas.width !== view.width || canvas.height !== view.height) {
      canvas.width = view.width;
      canvas.height = view.height;
    }
    const context = canvas.getContext("2d");
    // Scores in colours are the scores; what is tinted is what is flagged.
    const coloured = look.colours === "tint" ? this.marks : map;
    this.sampler.take(coloured, view);
    const edges = coloured === this.marks ? this.sampler : this.edges;
    edges.take(this.marks, view);
    const { left, top, width, height } = this.sampler;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (width && height) {
      if (this.pixels?.width !== width || this.pixels?.height !== height) this.pixels = new ImageData(width, height);
      paint(this.sampler, edges, look, this.palette, new Uint32Array(this.pixels.data.buffer));
      context.putImageData(this.pixels, left, top);
    }
    if (look.outline) join(context, this.joins, (x, y) => [(x - view.x) / view.step, (y - view.y) / view.step], 2);
    const cut = look.layout === "swipe" ? `inset(0 0 0 ${100 * this.split}%)` : "none";
    if (canvas.style.clipPath !== cut) canvas.style.clipPath = cut;
    this.drawn++;
  }

  /** The colours of all scores, as `palette` in map.js gives them. */
  get palette() {
    const { colours, threshold, opacity } = this.look;
    const key = `${colours} ${colours === "tint" ? threshold : ""} ${opacity}`;
    if (this.colours.key !== key) this.colours = { key, made: palette(this.look) };
    return this.colours.made;
  }

  // What the canvas shows of the photo, for the sampler. At most so many of the screen's pixels that it stays fluent.
  #view() {
    const { clientWidth, clientHeight } = this.panes[1];
    const scale = Math.min(devicePixelRatio, Math.sqrt(2.5e6 / Math.max(1, clientWidth * clientHeight)));
    const bounds = this.#main.viewport.getBounds(true);
    const width = Math.max(1, Math.round(clientWidth * scale));
    return {
      width,
      height: Math.max(1, Math.round(clientHeight * scale)),
      x: bounds.x * this.map.width,
      y: bounds.y * this.map.width,
      step: (bounds.width * this.map.width) / width,
    };
  }

  // The marks that are elements: region, crosshair, handle.
  #place() {
    for (const [i, pane] of this.panes.entries()) {
      const viewer = this.viewers[i];
      const box = pane.querySelector(".region-box");
      const [across, down] = pane.querySelectorAll(".cross");
      box.hidden = !(this.region && this.map && viewer.isOpen());
      across.hidden = down.hidden = !(this.cross && this.map && viewer.isOpen());
      if (!box.hidden) {
        const [x0, y0, x1, y1] = this.region.bbox;
        const from = this.#onScreen(viewer, x0, y0);
        const to = this.#onScreen(viewer, x1, y1);
        Object.assign(box.style, {
          left: `${from.x}px`,
          top: `${from.y}px`,
          width: `${to.x - from.x}px`,
          height: `${to.y - from.y}px`,
        });
      }
      if (!across.hidden) {
        const at = this.#onScreen(viewer, this.cross.x + 0.5, this.cross.y + 0.5);
        across.style.top = `${at.y}px`;
        down.style.left = `${at.x}px`;
      }
    }
    this.handle.style.left = `${100 * this.split}%`;
    this.handle.setAttribute("aria-valuenow", String(Math.round(100 * this.split)));
  }

  #onScreen(viewer, x, y) {
    return viewer.viewport.pixelFromPoint(new window.OpenSeadragon.Point(x / this.map.width, y / this.map.width), true);
  }

  #pixelAt(pane, viewer, event) {
    if (!this.map || !viewer.isOpen()) return null;
    const frame = pane.getBoundingClientRect();
    const place = new window.OpenSeadragon.Point(event.clientX - frame.left, event.clientY - frame.top);
    const point = viewer.viewport.pointFromPixel(place, true);
    const pixel = { x: Math.floor(point.x * this.map.width), y: Math.floor(point.y * this.map.width) };
    return pixel.x < 0 || pixel.y < 0 || pixel.x >= this.map.width || pixel.y >= this.map.height ? null : pixel;
  }

  #resized(viewer) {
    if (this.whole) viewer.viewport?.goHome(true);
    this.#moved(viewer);
  }

  // One pane has moved: the other follows.
  #moved(viewer) {
    if (this.following || !viewer.viewport) return;
    if (viewer === this.#main) this.whole = viewer.viewport.getZoom() <= 1.001 * viewer.viewport.getHomeZoom();
    if (this.look?.layout === "side") {
      const other = this.viewers[viewer === this.#main ? 0 : 1];
      if (other.isOpen() && viewer.isOpen()) {
        const [zoom, centre] = [viewer.viewport.getZoom(true), viewer.viewport.getCenter(true)];
        const there = other.viewport.getCenter(true);
        const far = Math.abs(other.viewport.getZoom(true) - zoom) > 1e-6 * zoom;
        if (far || Math.hypot(there.x - centre.x, there.y - centre.y) > 1e-7) {
          this.following = true;
          other.viewport.zoomTo(zoom, null, true);
          other.viewport.panTo(centre, true);
          this.following = false;
        }
      }
    }
    this.draw();
  }

  #handleSwipe() {
    const { handle } = this;
    const share = (event) => {
      const frame = this.panes[1].getBoundingClientRect();
      return (event.clientX - frame.left) / frame.width;
    };
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      event.stopPropagation();
    });
    handle.addEventListener("pointermove", (event) => {
      if (handle.hasPointerCapture(event.pointerId)) this.swipe(share(event));
    });
    handle.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -SPLIT_STEP, ArrowRight: SPLIT_STEP, Home: -1, End: 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      event.stopPropagation();
      this.swipe(this.split + steps[event.key]);
    });
  }
}

// OpenSeadragon adds a style of its own where it finds none so marked; inline styles are forbidden here. This one is no
// style, by its namespace, and is found.
function withoutInlineStyle() {
  const mark = document.createElementNS("urn:none", "style");
  mark.setAttribute("data-openseadragon-mobile-css", "");
  document.head.append(mark);
}

function opened(viewer, picture) {
  return new Promise((resolve, reject) => {
    viewer.addOnceHandler("open", () => resolve());
    viewer.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
    viewer.open({ type: "image", url: picture });
  });
}
