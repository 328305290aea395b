// The strip of images: only the thumbnails that are in view exist.

import { getMap } from "./api.js";

const GAP = 8; // CSS pixels
const WIDTH = 120;
const EDGE = 3; // room for the mark of the first and the last one
const AHEAD = 3; // thumbnails beyond each end of the view

export class Strip extends EventTarget {
  #box;
  #rail;
  #items = new Map(); // position in #shown -> { element, index, ... }
  #shown = []; // image indices after the filter
  #versions = new Map(); // image index -> version of the overlay drawn on its thumbnail
  #current = -1;

  constructor(box, images, settings) {
    super();
    this.#box = box;
    this.images = images;
    this.settings = settings;
    this.#rail = document.createElement("div");
    this.#rail.className = "rail";
    box.append(this.#rail);
    this.#shown = images.map((_, index) => index);
    box.addEventListener("scroll", () => this.#render(), { passive: true });
    new ResizeObserver(() => this.#render()).observe(box);
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener(
      "wheel",
      (event) => {
        if (event.deltaX || !event.deltaY) return;
        event.preventDefault();
        box.scrollLeft += event.deltaY;
      },
      { passive: false },
    );
  }

  /** Show only the images for which `test(image, index)` holds. */
  filter(test) {
    this.#shown = this.images.map((_, index) => index).filter((i) => test(this.images[i], i));
    this.#clear();
    this.reveal();
  }

  get visible() {
    return [...this.#items.values()].map((item) => item.index);
  }

  get count() {
    return this.#shown.length;
  }

  select(index) {
    this.#current = index;
    this.reveal();
  }

  /** The image before (-1) or after (1) the current one in the strip, or null. */
  neighbor(step) {
    const at = this.#shown.indexOf(this.#current);
    if (at < 0) return this.#shown.find((index) => index > this.#current) ?? this.#shown[0] ?? null;
    return this.#shown[at + step] ?? null;
  }

  /** Scroll to the current image. */
  reveal() {
    const at = this.#shown.indexOf(this.#current);
    const left = at * (WIDTH + GAP);
    const { scrollLeft, clientWidth } = this.#box;
    if (at >= 0 && (left < scrollLeft || left + WIDTH > scrollLeft + clientWidth)) {
      this.#box.scrollLeft = left - (clientWidth - WIDTH) / 2;
    }
    this.#render();
    for (const item of this.#items.values()) this.#mark(item);
  }

  /** Bring a thumbnail up to date. */
  refresh(index) {
    for (const item of this.#items.values()) {
      if (item.index === index) {
        this.#mark(item);
        this.#loadOverlay(item);
      }
    }
  }

  /** Draw all overlays anew. */
  recolor() {
    for (const item of this.#items.values()) this.#drawOverlay(item);
  }

  setVersion(index, version) {
    this.#versions.set(index, version);
    this.refresh(index);
  }

  #clear() {
    for (const item of this.#items.values()) item.element.remove();
    this.#items.clear();
  }

  #render() {
    const step = WIDTH + GAP;
    this.#rail.style.width = `${Math.max(0, this.#shown.length * step - GAP + 2 * EDGE)}px`;
    const first = Math.max(0, Math.floor(this.#box.scrollLeft / step) - AHEAD);
    const last = Math.min(
      this.#shown.length - 1,
      Math.ceil((this.#box.scrollLeft + this.#box.clientWidth) / step) + AHEAD,
    );
    let changed = false;
    for (const [at, item] of this.#items) {
      if (at < first || at > last) {
        if (item.element.contains(document.activeElement)) this.#box.focus();
        item.element.remove();
        this.#items.delete(at);
        changed = true;
      }
    }
    for (let at = first; at <= last; at++) {
      if (this.#items.has(at)) continue;
      this.#items.set(at, this.#make(at));
      changed = true;
    }
    if (changed) this.dispatchEvent(new Event("visible"));
  }

  #make(at) {
    const index = this.#shown[at];
    const image = this.images[index];
    const element = document.createElement("div");
    element.className = "thumb";
    element.setAttribute("role", "option");
    element.setAttribute("aria-posinset", at + 1);
    element.setAttribute("aria-setsize", this.#shown.length);
    element.style.left = `${at * (WIDTH + GAP) + EDGE}px`;
    element.title = image.file;
    const picture = document.createElement("img");
    picture.alt = "";
    picture.decoding = "async";
    picture.draggable = false;
    picture.src = `api/images/${index}/thumbnail`;
    picture.addEventListener("error", () => {
      element.classList.add("broken");
      picture.remove();
    });
    const overlay = document.createElement("canvas");
    const frame = document.createElement("div");
    frame.className = "frame";
    frame.append(picture, overlay);
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = image.name;
    element.append(frame, name);
    element.addEventListener("click", () => this.#choose(index));
    this.#rail.append(element);
    const item = { element, index, overlay, map: null };
    this.#mark(item);
    this.#loadOverlay(item);
    return item;
  }

  #mark({ element, index }) {
    const { drawn, name } = this.images[index];
    const current = index === this.#current;
    element.setAttribute("aria-selected", current);
    element.tabIndex = current ? 0 : -1;
    element.classList.toggle("drawn", drawn);
    element.setAttribute("aria-label", `${name}${drawn ? ", has scribbles" : ""}`);
  }

  async #loadOverlay(item) {
    const version = this.#versions.get(item.index);
    if (!version || item.map?.version === version) return;
    try {
      item.map = await getMap(`images/${item.index}/small_labels`);
      this.#drawOverlay(item);
    } catch {
      // The thumbnail stays as it is; the next result brings another try.
    }
  }

  #drawOverlay({ overlay, map }) {
    if (!map) return;
    overlay.width = map.width;
    overlay.height = map.height;
    overlay.style.opacity = this.settings.showSegmentation ? this.settings.opacity : 0;
    const context = overlay.getContext("2d");
    const pixels = context.createImageData(map.width, map.height);
    const colors = new Uint32Array(pixels.data.buffer);
    const { palette, hidden } = this.settings;
    for (let at = 0; at < map.bytes.length; at++) {
      if (!hidden.has(map.bytes[at])) colors[at] = palette[map.bytes[at]];
    }
    context.putImageData(pixels, 0, 0);
  }

  #choose(index) {
    this.dispatchEvent(new CustomEvent("choose", { detail: index }));
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    let index = null;
    if (event.key in steps) index = this.neighbor(steps[event.key]);
    else if (event.key === "Home") index = this.#shown[0];
    else if (event.key === "End") index = this.#shown.at(-1);
    else return;
    event.preventDefault();
    event.stopPropagation();
    if (index === null || index === undefined) return;
    this.#choose(index);
    this.#rail.querySelector("[aria-selected=true]")?.focus({ preventScroll: true });
  }
}
