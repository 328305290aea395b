// Send edits to the program one after the other, and keep those that are not saved.
//
// What waits is also in localStorage, so that it outlives the tab and the program. A tab that
// opens later takes over what dead tabs left.

import { post } from "./api.js";

const RETRY = 1500; // ms
const TAB = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16)).join("");

export const tab = TAB;

export class Saver extends EventTarget {
  #key;
  #prefix;
  #queue = []; // { name, index, base, edits, finished }
  #revisions = new Map(); // image index -> the last saved revision
  #running = false;
  #held = new Set(); // images with a conflict that the user has to decide
  #problem = null;

  constructor(folderId, names) {
    super();
    this.#prefix = `blpseg-draw:${folderId}:`;
    this.#key = this.#prefix + TAB;
    this.names = names;
    navigator.locks?.request(this.#key, () => new Promise(() => {})); // held while the tab lives
    setInterval(() => this.#problem && this.#run(), RETRY);
  }

  /** The Problem that keeps edits from being saved, or null. */
  get problem() {
    return this.#problem;
  }

  /** Number of edits that are not saved. */
  get waiting() {
    return this.#queue.reduce((sum, entry) => sum + entry.edits.length, 0);
  }

  waitingFor(index) {
    return this.#queue.filter((e) => e.index === index).flatMap((e) => e.edits);
  }

  revision(index) {
    return this.#revisions.get(index);
  }

  setRevision(index, revision) {
    this.#revisions.set(index, revision);
  }

  /** Save an edit; `finished` is false inside of a long stroke. */
  add(index, edit, finished = true) {
    const last = this.#queue.at(-1);
    if (last?.index === index) {
      last.edits.push(edit);
      last.finished = finished;
    } else {
      const base = this.#revisions.get(index);
      this.#queue.push({ name: this.names[index], index, base, edits: [edit], finished });
    }
    this.#store();
    this.#run();
  }

  /** Try again now. */
  retry() {
    this.#run();
  }

  /** Remove and return the edits of an image, after a conflict. */
  take(index) {
    const edits = this.waitingFor(index);
    this.#queue = this.#queue.filter((entry) => entry.index !== index);
    this.#held.delete(index);
    this.#store();
    this.#run();
    return edits;
  }

  /** Return what earlier tabs of this folder left unsaved: [{ key, name, index, base, edits }]. */
  async leftBehind() {
    const held = (await navigator.locks?.query())?.held.map((lock) => lock.name) ?? [];
    const found = [];
    for (const key of Object.keys(localStorage)) {
      if (!key.startsWith(this.#prefix) || held.includes(key) || key === this.#key) continue;
      for (const { name, base, edits } of JSON.parse(localStorage.getItem(key))) {
        const index = this.names.indexOf(name);
        if (index >= 0) found.push({ key, name, index, base, edits });
      }
    }
    return found;
  }

  /** Forget edits of `leftBehind` that are adopted. */
  forget({ key, name }) {
    const entries = JSON.parse(localStorage.getItem(key));
    entries.splice(entries.findIndex((entry) => entry.name === name), 1);
    if (entries.length) localStorage.setItem(key, JSON.stringify(entries));
    else localStorage.removeItem(key);
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    try {
      for (;;) {
        const entry = this.#queue.find((one) => !this.#held.has(one.index));
        if (!entry) break;
        await this.#send(entry);
      }
      this.#setProblem(null);
    } catch (problem) {
      this.#setProblem(problem);
    } finally {
      this.#running = false;
      this.#tell("change");
    }
  }

  async #send(entry) {
    this.#tell("change");
    const revision = this.#revisions.get(entry.index) ?? entry.base;
    const edits = entry.edits.slice();
    const { index, finished } = entry;
    let saved;
    try {
      saved = await post(`images/${index}/edits`, { revision, edits, finished, tab: TAB });
    } catch (problem) {
      if (problem.kind !== "conflict" && problem.kind !== "wrong") throw problem;
      this.#held.add(index);
      this.#tell("conflict", { index, problem });
      return;
    }
    this.#revisions.set(index, saved.revision);
    entry.edits.splice(0, edits.length);
    if (!entry.edits.length) this.#queue = this.#queue.filter((one) => one !== entry);
    this.#store();
    this.#setProblem(null);
    this.#tell("saved", { index, ...saved });
  }

  #setProblem(problem) {
    if (problem?.message === this.#problem?.message) return;
    this.#problem = problem;
    this.#tell("change");
  }

  #store() {
    try {
      if (this.#queue.length) localStorage.setItem(this.#key, JSON.stringify(this.#queue));
      else localStorage.removeItem(this.#key);
    } catch {
      // The browser's store is full or off; the edits wait in this tab.
    }
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
