// The large picture: image, overlays and scribbles on a canvas; zoom, pan, and the brush.

import { joinBoxes, parseColor, UNLABELED } from "./raster.js";

const TILE = 1024; // pixels of a scribble canvas
const MARGIN = 24; // CSS pixels around a fitted image
const LARGEST_SCALE = 40;
const FLUSH = 500; // ms; a long stroke is saved in parts
const SECOND_FINGER = 250; // ms in which a second finger turns a stroke into a gesture

export class Stage extends EventTarget {
  #canvas;
  #context;
  #scale = 1; // CSS pixels per image pixel
  #x = 0; // CSS position of the image's corner
  #y = 0;
  #fitted = true;
  #frame = 0;
  #picture = null;
  #parts = new Map(); // "column,row" -> ImageBitmap of a tile, or null while it loads
  #loadPart = null;
  #scribbles = new Map(); // "column,row" -> canvas
  #segmentation = null;
  #hints = null;
  #palette = new Uint32Array(256);
  #pointers = new Map();
  #gesture = null;
  #stroke = null;
  #hover = null;
  #lastPoint = null;
  #spaceHeld = false;
  #penUsed = false;

  constructor(canvas, settings) {
    super();
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.settings = settings; // tool, label, size, opacity, show*, hidden: owned by main.js
    this.map = null; // LabelMap of the image
    this.editable = false;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.#listen();
  }

  /** Show an image. `loadPart(column, row)` gives full-resolution tiles, null for small images. */
  show(map, picture, loadPart, tileSide) {
    this.cancelStroke();
    const sameSize = this.map && map && this.map.width === map.width && this.map.height === map.height;
    this.map = map;
    this.#picture?.close?.();
    this.#picture = picture;
    for (const part of this.#parts.values()) part?.close();
    this.#parts.clear();
    this.#loadPart = loadPart;
    this.tileSide = tileSide;
    this.#segmentation = this.#hints = this.#lastPoint = null;
    this.#scribbles.clear();
    if (map) this.paintScribbles({ left: 0, top: 0, right: map.width, bottom: map.height });
    if (map && !sameSize) this.fit();
    this.redraw();
  }

  setColors(colors) {
    colors.forEach((color, label) => {
      const [r, g, b] = parseColor(color);
      this.#palette[label] = (255 << 24) | (b << 16) | (g << 8) | r; // little-endian RGBA
    });
  }

  /** Set the segmentation { width, height, bytes }, or null. */
  setSegmentation(map) {
    this.#segmentation = map && { map, canvas: null };
    this.redraw();
  }

  /** Set where a scribble would teach most { width, height, bytes }, or null. */
  setHints(map) {
    this.#hints = map && { map, canvas: null };
    this.redraw();
  }

  /** Paint the overlay anew, after a change of its colors or of the hidden classes. */
  recolor() {
    if (this.#segmentation) this.#segmentation.canvas = null;
    if (this.map) {
      this.#scribbles.clear();
      this.paintScribbles({ left: 0, top: 0, right: this.map.width, bottom: this.map.height });
    }
  }

  get scale() {
    return this.#scale;
  }

  /** Fit the whole image into the stage. */
  fit() {
    if (!this.map) return;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const margin = Math.min(MARGIN, width / 20);
    const fitting = Math.min(
      (width - 2 * margin) / this.map.width,
      (height - 2 * margin) / this.map.height,
    );
    this.#scale = Math.max(0.001, Math.min(fitting, 8));
    this.#x = (width - this.map.width * this.#scale) / 2;
    this.#y = (height - this.map.height * this.#scale) / 2;
    this.#fitted = true;
    this.#changedView();
  }

  /** Zoom by a factor around a point of the canvas; without a point, around its middle. */
  zoom(factor, x = this.#canvas.clientWidth / 2, y = this.#canvas.clientHeight / 2) {
    if (!this.map) return;
    const smallest = Math.min(1, 64 / Math.max(this.map.width, this.map.height));
    const scale = Math.min(LARGEST_SCALE, Math.max(smallest, this.#scale * factor));
    this.#x = x - ((x - this.#x) * scale) / this.#scale;
    this.#y = y - ((y - this.#y) * scale) / this.#scale;
    this.#scale = scale;
    this.#fitted = false;
    this.#changedView();
  }

  pan(dx, dy) {
    this.#x += dx;
    this.#y += dy;
    this.#fitted = false;
    this.#changedView();
  }

  /** Position on the canvas of a point of the image. */
  toCanvas([x, y]) {
    return [this.#x + x * this.#scale, this.#y + y * this.#scale];
  }

  redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  /** Bring the canvases of the scribbles up to date with `map` in a rectangle. */
  paintScribbles(box) {
    if (!box) return;
    const { width, height, labels } = this.map;
    const left = Math.max(0, box.left - 1); // the outline reaches one pixel beyond
    const top = Math.max(0, box.top - 1);
    const right = Math.min(width, box.right + 1);
    const bottom = Math.min(height, box.bottom + 1);
    for (let row = Math.floor(top / TILE); row * TILE < bottom; row++) {
      for (let column = Math.floor(left / TILE); column * TILE < right; column++) {
        const x0 = Math.max(left, column * TILE);
        const y0 = Math.max(top, row * TILE);
        const x1 = Math.min(right, (column + 1) * TILE);
        const y1 = Math.min(bottom, (row + 1) * TILE);
        const key = `${column},${row}`;
        if (!this.#scribbles.has(key) && !anyLabel(labels, width, x0, y0, x1, y1)) continue;
        const pixels = new ImageData(x1 - x0, y1 - y0);
        const colors = new Uint32Array(pixels.data.buffer);
        for (let y = y0, to = 0; y < y1; y++) {
          for (let x = x0, at = y * width + x0; x < x1; x++, at++, to++) {
            if (labels[at] !== UNLABELED) {
              colors[to] = this.#palette[labels[at]];
            } else if (
              (x > 0 && labels[at - 1] !== UNLABELED) ||
              (x + 1 < width && labels[at + 1] !== UNLABELED) ||
              (y > 0 && labels[at - width] !== UNLABELED) ||
              (y + 1 < height && labels[at + width] !== UNLABELED)
            ) {
              colors[to] = 0xe6ffffff;
            }
          }
        }
        if (!this.#scribbles.has(key)) {
          const canvas = document.createElement("canvas");
          canvas.width = Math.min(TILE, width - column * TILE);
          canvas.height = Math.min(TILE, height - row * TILE);
          this.#scribbles.set(key, canvas);
        }
        const context = this.#scribbles.get(key).getContext("2d");
        context.putImageData(pixels, x0 - column * TILE, y0 - row * TILE);
      }
    }
    this.redraw();
  }

  /** Take back the stroke that is being drawn. */
  cancelStroke() {
    const stroke = this.#stroke;
    if (!stroke) return;
    this.#stroke = null;
    clearInterval(stroke.timer);
    if (!stroke.box) return;
    const runs = stroke.before.encode(stroke.box);
    this.map.decode(stroke.box, runs);
    this.paintScribbles(stroke.box);
    if (stroke.flushed) this.#tell("canceled", { box: stroke.box, runs });
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #changedView() {
    this.#canvas.dataset.view = [this.#scale, this.#x, this.#y].join(" "); // for tests
    this.redraw();
    this.#tell("view", { scale: this.#scale });
  }

  #resize() {
    const ratio = devicePixelRatio || 1;
    this.#canvas.width = Math.round(this.#canvas.clientWidth * ratio);
    this.#canvas.height = Math.round(this.#canvas.clientHeight * ratio);
    if (this.#fitted) this.fit();
    this.redraw();
  }

  #draw() {
    const context = this.#context;
    const ratio = devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.#canvas.clientWidth, this.#canvas.clientHeight);
    if (!this.map || !this.#picture) return;
    const { settings } = this;
    const width = this.map.width * this.#scale;
    const height = this.map.height * this.#scale;
    context.save();
    context.shadowColor = "rgb(0 0 0 / 0.35)";
    context.shadowBlur = 12;
    context.fillStyle = "#777";
    context.fillRect(this.#x, this.#y, width, height);
    context.restore();
    context.imageSmoothingEnabled = this.#scale * ratio < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#picture, this.#x, this.#y, width, height);
    this.#drawParts(context, ratio);
    context.imageSmoothingEnabled = true;
    if (settings.showSegmentation && this.#segmentation) {
      context.globalAlpha = settings.opacity;
      this.#segmentation.canvas ??= this.#colorSegmentation(this.#segmentation.map);
      context.drawImage(this.#segmentation.canvas, this.#x, this.#y, width, height);
      context.globalAlpha = 1;
    }
    if (settings.showHints && this.#hints) {
      this.#hints.canvas ??= colorHints(this.#hints.map);
      context.drawImage(this.#hints.canvas, this.#x, this.#y, width, height);
    }
    if (settings.showScribbles) {
      context.imageSmoothingEnabled = this.#scale * ratio < 1;
      for (const [key, canvas] of this.#scribbles) {
        const [column, row] = key.split(",").map(Number);
        const [x, y] = this.toCanvas([column * TILE, row * TILE]);
        const side = this.#scale;
        context.drawImage(canvas, x, y, canvas.width * side, canvas.height * side);
      }
    }
    this.#drawBrush(context);
  }

  #drawParts(context, ratio) {
    const shown = this.#picture.width / this.map.width; // pixels of the view per image pixel
    if (!this.#loadPart || this.#scale * ratio < shown * 1.2) return;
    const side = this.tileSide;
    const { clientWidth, clientHeight } = this.#canvas;
    const first = [Math.floor(-this.#x / this.#scale / side), Math.floor(-this.#y / this.#scale / side)];
    const last = [
      Math.floor((clientWidth - this.#x) / this.#scale / side),
      Math.floor((clientHeight - this.#y) / this.#scale / side),
    ];
    const columns = Math.ceil(this.map.width / side);
    const rows = Math.ceil(this.map.height / side);
    for (let row = Math.max(0, first[1]); row <= Math.min(rows - 1, last[1]); row++) {
      for (let column = Math.max(0, first[0]); column <= Math.min(columns - 1, last[0]); column++) {
        const key = `${column},${row}`;
        const part = this.#parts.get(key);
        if (part) {
          const [x, y] = this.toCanvas([column * side, row * side]);
          context.drawImage(part, x, y, part.width * this.#scale, part.height * this.#scale);
        } else if (part === undefined) {
          this.#requestPart(key, column, row);
        }
      }
    }
  }

  async #requestPart(key, column, row) {
    const picture = this.#picture;
    this.#parts.set(key, null);
    try {
      const part = await this.#loadPart(column, row);
      if (picture !== this.#picture) return part.close();
      this.#parts.set(key, part);
      this.redraw();
    } catch {
      if (picture === this.#picture) this.#parts.delete(key); // the view below stays visible
    }
  }

  #colorSegmentation({ width, height, bytes }) {
    const pixels = new ImageData(width, height);
    const colors = new Uint32Array(pixels.data.buffer);
    const palette = this.#palette.slice();
    for (const label of this.settings.hidden) palette[label] = 0;
    for (let at = 0; at < bytes.length; at++) colors[at] = palette[bytes[at]];
    return toCanvas(pixels);
  }

  #drawBrush(context) {
    if (!this.#hover || this.#mode() === "pan" || !this.editable || this.#gesture) return;
    const erasing = this.#stroke ? this.#stroke.label === UNLABELED : this.settings.tool === "eraser";
    const radius = Math.max(2, (this.settings.size / 2) * this.#scale);
    const [x, y] = this.#hover;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = "rgb(0 0 0 / 0.55)";
    context.stroke();
    context.lineWidth = 1.5;
    context.strokeStyle = erasing ? "#fff" : this.settings.colors[this.settings.label];
    if (erasing) context.setLineDash([4, 3]);
    context.stroke();
    context.setLineDash([]);
  }

  #mode() {
    return this.#spaceHeld ? "pan" : this.settings.tool;
  }

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const type of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(type, (event) => this.#up(event));
    }
    canvas.addEventListener("pointerleave", () => {
      this.#hover = null;
      this.redraw();
    });
    canvas.addEventListener("mousedown", (event) => event.preventDefault()); // takes no focus
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const unit = event.deltaMode === 1 ? 16 : 1;
        if (event.shiftKey) {
          this.pan(-(event.deltaX || event.deltaY) * unit, 0);
        } else {
          const [x, y] = this.#position(event);
          this.zoom(Math.exp(-event.deltaY * unit * (event.ctrlKey ? 0.01 : 0.0018)), x, y);
        }
      },
      { passive: false },
    );
    addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, button, dialog, [role=option]");
      if (event.code === "Space" && !typing) {
        event.preventDefault();
        this.#spaceHeld = true;
        this.#showCursor();
      }
      if (event.key === "Escape") this.cancelStroke();
    });
    addEventListener("keyup", (event) => {
      if (event.code === "Space") {
        this.#spaceHeld = false;
        this.#showCursor();
      }
    });
    addEventListener("blur", () => {
      this.#spaceHeld = false;
      this.#showCursor();
    });
  }

  #showCursor() {
    this.#canvas.dataset.mode = this.#mode();
    this.redraw();
  }

  #position(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #toImage([x, y]) {
    const round = (value) => Math.round(value * 100) / 100;
    return [round((x - this.#x) / this.#scale), round((y - this.#y) / this.#scale)];
  }

  #down(event) {
    if (!this.map) return;
    document.activeElement?.blur(); // keys are shortcuts again
    const touch = event.pointerType === "touch";
    if (touch && this.#stroke?.pen) return; // the hand that holds the pen
    if (event.pointerType === "pen") this.#takePen();
    const position = this.#position(event);
    this.#pointers.set(event.pointerId, position);
    this.#canvas.setPointerCapture(event.pointerId);
    if (touch && this.#pointers.size === 2) {
      this.#endTouchedStroke();
      this.#gesture = this.#measureGesture();
      return;
    }
    if (this.#stroke || this.#gesture) return;
    if (event.button === 1 || this.#mode() === "pan" || (touch && this.#penUsed)) {
      this.#gesture = { from: position };
      this.#canvas.dataset.panning = "";
      return;
    }
    if (!this.editable) {
      this.#tell("refused");
      return;
    }
    this.#hover = position;
    this.#startStroke(event, this.#toImage(position));
  }

  /** From the first touch of a pen on, fingers pan and zoom; the hand may lie on the screen. */
  #takePen() {
    this.#penUsed = true;
    this.#endTouchedStroke();
    this.#endGesture();
    this.#pointers.clear();
  }

  /** Take back a stroke that has just begun; keep a longer one. */
  #endTouchedStroke() {
    if (this.#stroke && performance.now() - this.#stroke.began < SECOND_FINGER) this.cancelStroke();
    else this.#finishStroke();
  }

  #endGesture() {
    this.#gesture = null;
    delete this.#canvas.dataset.panning;
  }

  #startStroke(event, point) {
    const erase = this.settings.tool === "eraser" || event.button === 2 || event.buttons & 32;
    const start = event.shiftKey && this.#lastPoint ? [this.#lastPoint, point] : [point];
    this.#stroke = {
      pointer: event.pointerId,
      pen: event.pointerType === "pen",
      label: erase ? UNLABELED : this.settings.label,
      radius: Math.max(0.75, this.settings.size / 2), // 0.75 always covers a pixel's center
      before: this.map.copy(),
      points: [],
      box: null,
      flushed: false,
      began: performance.now(),
      timer: setInterval(() => this.#flush(false), FLUSH),
    };
    this.#extendStroke(start);
  }

  #extendStroke(points) {
    const stroke = this.#stroke;
    const from = stroke.points.at(-1);
    const box = this.map.paintStroke(from ? [from, ...points] : points, stroke.radius, stroke.label);
    stroke.points.push(...points);
    stroke.box = joinBoxes(stroke.box, box);
    this.paintScribbles(box);
  }

  #move(event) {
    const position = this.#position(event);
    if (this.#pointers.has(event.pointerId)) this.#pointers.set(event.pointerId, position);
    if (this.#gesture && this.#pointers.size) {
      this.#moveGesture();
    } else if (this.#stroke?.pointer === event.pointerId) {
      const steps = event.getCoalescedEvents?.() ?? [];
      const last = this.#stroke.points.at(-1);
      const points = (steps.length ? steps : [event])
        .map((step) => this.#toImage(this.#position(step)))
        .filter(([x, y], i, all) => {
          const [px, py] = i ? all[i - 1] : last;
          return x !== px || y !== py;
        });
      if (points.length) this.#extendStroke(points);
    }
    this.#hover = event.pointerType === "touch" ? null : position;
    this.redraw();
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    if (this.#gesture && this.#pointers.size < 2) this.#endGesture();
    if (this.#stroke?.pointer === event.pointerId) this.#finishStroke();
    this.redraw();
  }

  #finishStroke() {
    const stroke = this.#stroke;
    if (!stroke) return;
    this.#lastPoint = stroke.points.at(-1);
    this.#flush(true);
    this.#stroke = null;
    clearInterval(stroke.timer);
    if (stroke.box) this.#tell("stroke", { box: stroke.box, before: stroke.before });
  }

  /** Hand over the points since the last call; the last one stays as the next one's start. */
  #flush(finished) {
    const { points, radius, label } = this.#stroke;
    if (!finished && points.length < 2) return;
    this.#tell("edit", { edit: { kind: "stroke", points: points.slice(), radius, label }, finished });
    points.splice(0, points.length - 1);
    this.#stroke.flushed = true;
  }

  #measureGesture() {
    const [a, b] = [...this.#pointers.values()];
    return {
      middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2],
      distance: Math.hypot(a[0] - b[0], a[1] - b[1]),
    };
  }

  #moveGesture() {
    if (this.#gesture.from) {
      const [to] = this.#pointers.values();
      this.pan(to[0] - this.#gesture.from[0], to[1] - this.#gesture.from[1]);
      this.#gesture.from = to;
    } else if (this.#pointers.size >= 2) {
      const before = this.#gesture;
      const now = this.#measureGesture();
      this.pan(now.middle[0] - before.middle[0], now.middle[1] - before.middle[1]);
      this.zoom(now.distance / Math.max(1, before.distance), ...now.middle);
      this.#gesture = now;
    }
  }
}

function anyLabel(labels, width, x0, y0, x1, y1) {
  for (let y = y0; y < y1; y++) {
    for (let at = y * width + x0; at < y * width + x1; at++) {
      if (labels[at] !== UNLABELED) return true;
    }
  }
  return false;
}

function toCanvas(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** From nothing at 0 over magenta to yellow at 255. */
function colorHints({ width, height, bytes }) {
  const palette = new Uint32Array(256);
  for (let value = 0; value < 256; value++) {
    const share = value / 255;
    const alpha = Math.round(235 * Math.min(1, Math.max(0, (share - 0.12) * 1.5)));
    const green = Math.round(20 + 215 * share * share);
    const blue = Math.round(200 * (1 - share));
    palette[value] = (alpha << 24) | (blue << 16) | (green << 8) | 255;
  }
  const pixels = new ImageData(width, height);
  const colors = new Uint32Array(pixels.data.buffer);
  for (let at = 0; at < bytes.length; at++) colors[at] = palette[bytes[at]];
  return toCanvas(pixels);
}
