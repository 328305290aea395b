// Label maps in the page: strokes, rectangles and run lengths.
//
// paintStroke paints the same pixels as blpseg/draw/strokes.py: both test pixel centers against
// the same expression in double precision, in the same order of operations.

export const UNLABELED = 255;
const PIECE = 256; // pixels; longer lines are painted in pieces

/** A label map with its size; `labels` is a Uint8Array, row by row. */
export class LabelMap {
  constructor(width, height, labels = new Uint8Array(width * height).fill(UNLABELED)) {
    if (labels.length !== width * height) throw new Error(`expected ${width * height} labels`);
    this.width = width;
    this.height = height;
    this.labels = labels;
  }

  /** Paint a stroke; return the rectangle it may have changed, or null. */
  paintStroke(points, radius, label) {
    let box = this.#paintLine(points[0], points[0], radius, label);
    for (let i = 1; i < points.length; i++) {
      box = joinBoxes(box, this.#paintLine(points[i - 1], points[i], radius, label));
    }
    return box;
  }

  #paintLine([x0, y0], [x1, y1], radius, label) {
    const length = Math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0));
    const pieces = Math.max(1, Math.ceil(length / PIECE));
    let box = null;
    for (let piece = 0; piece < pieces; piece++) {
      const ax = x0 + ((x1 - x0) * piece) / pieces;
      const ay = y0 + ((y1 - y0) * piece) / pieces;
      const bx = x0 + ((x1 - x0) * (piece + 1)) / pieces;
      const by = y0 + ((y1 - y0) * (piece + 1)) / pieces;
      box = joinBoxes(box, this.#paintPiece(ax, ay, bx, by, radius, label));
    }
    return box;
  }

  #paintPiece(ax, ay, bx, by, radius, label) {
    const left = Math.max(0, Math.floor(Math.min(ax, bx) - radius));
    const top = Math.max(0, Math.floor(Math.min(ay, by) - radius));
    const right = Math.min(this.width, Math.ceil(Math.max(ax, bx) + radius));
    const bottom = Math.min(this.height, Math.ceil(Math.max(ay, by) + radius));
    if (left >= right || top >= bottom) return null;
    const dx = bx - ax;
    const dy = by - ay;
    const squared = dx * dx + dy * dy;
    const limit = radius * radius;
    for (let y = top; y < bottom; y++) {
      const py = y + 0.5 - ay;
      const row = y * this.width;
      for (let x = left; x < right; x++) {
        const px = x + 0.5 - ax;
        let along = 0;
        if (squared > 0) along = Math.min(1, Math.max(0, (px * dx + py * dy) / squared));
        const ex = px - along * dx;
        const ey = py - along * dy;
        if (ex * ex + ey * ey <= limit) this.labels[row + x] = label;
      }
    }
    return { left, top, right, bottom };
  }

  /** Encode a rectangle as [label, count, ...] along its rows. */
  encode(box) {
    const runs = [];
    let label = -1;
    let count = 0;
    for (let y = box.top; y < box.bottom; y++) {
      for (let at = y * this.width + box.left; at < y * this.width + box.right; at++) {
        if (this.labels[at] === label) {
          count++;
        } else {
          if (count) runs.push(label, count);
          label = this.labels[at];
          count = 1;
        }
      }
    }
    if (count) runs.push(label, count);
    return runs;
  }

  /** Replace a rectangle by what `encode` returned. */
  decode(box, runs) {
    const width = box.right - box.left;
    let at = 0;
    for (let i = 0; i < runs.length; i += 2) {
      for (const end = at + runs[i + 1]; at < end; at++) {
        const y = box.top + Math.floor(at / width);
        this.labels[y * this.width + box.left + (at % width)] = runs[i];
      }
    }
  }

  /** Apply an edit as it is sent to the program; return the rectangle it may have changed. */
  apply(edit) {
    if (edit.kind === "stroke") return this.paintStroke(edit.points, edit.radius, edit.label);
    const [left, top, width, height] = edit.box;
    const box = { left, top, right: left + width, bottom: top + height };
    this.decode(box, edit.runs);
    return box;
  }

  /** Return whether the edits would change a pixel. */
  wouldChange(edits) {
    const copy = new LabelMap(this.width, this.height, this.labels.slice());
    for (const edit of edits) copy.apply(edit);
    return copy.labels.some((label, at) => label !== this.labels[at]);
  }

  copy() {
    return new LabelMap(this.width, this.height, this.labels.slice());
  }
}

export function joinBoxes(a, b) {
  if (!a || !b) return a || b;
  return {
    left: Math.min(a.left, b.left),
    top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right),
    bottom: Math.max(a.bottom, b.bottom),
  };
}

/** The edit that replaces a rectangle. */
export function patchEdit(box, runs) {
  return { kind: "patch", box: [box.left, box.top, box.right - box.left, box.bottom - box.top], runs };
}

/** Parse "#rrggbb" into [r, g, b]. */
export function parseColor(text) {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}
