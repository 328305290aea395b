// Undo and redo of one image: rectangles before and after each stroke, as run lengths.

import { patchEdit } from "./raster.js";

const LONGEST = 200; // strokes

export class History {
  #done = [];
  #undone = [];

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** Note a change of the rectangle `box` from one LabelMap to another. */
  add(box, before, after) {
    this.#done.push({ box, before: before.encode(box), after: after.encode(box) });
    if (this.#done.length > LONGEST) this.#done.shift();
    this.#undone = [];
  }

  /** Return the edit that takes the last change back, or null. */
  undo() {
    const change = this.#done.pop();
    if (!change) return null;
    this.#undone.push(change);
    return patchEdit(change.box, change.before);
  }

  /** Return the edit that makes the last undone change again, or null. */
  redo() {
    const change = this.#undone.pop();
    if (!change) return null;
    this.#done.push(change);
    return patchEdit(change.box, change.after);
  }
}
