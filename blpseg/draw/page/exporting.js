// The dialog that exports label maps, COCO annotations and the segmenter.

import { post } from "./api.js";

export class ExportDialog {
  #dialog = document.getElementById("export");
  #kinds = document.getElementById("kinds");
  #progress = document.getElementById("export-progress");
  #result = document.getElementById("export-result");
  #start = document.getElementById("export-start");
  #stop = document.getElementById("export-cancel");

  constructor() {
    this.#start.addEventListener("click", () => this.#run());
    this.#stop.addEventListener("click", () => {
      this.#stop.disabled = true;
      post("export/cancel", {}).catch((problem) => this.#say(problem.message, true));
    });
  }

  open() {
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  /** Show what an export event of the program says. */
  handle(event) {
    if (event.phase === "running") {
      this.#busy(true);
      this.#progress.firstElementChild.value = event.done / event.total;
      this.#progress.lastElementChild.textContent = `${event.done} of ${event.total} images`;
      return;
    }
    this.#busy(false);
    if (event.phase === "done") {
      const failed = event.problems.length;
      const left = failed ? ` ${failed} left out: ${event.problems.slice(0, 3).join("; ")}` : "";
      this.#say(`Written to ${event.folder}.${left}`, failed > 0);
    } else if (event.phase === "canceled") {
      this.#say("Stopped. Nothing was written.");
    } else {
      this.#say(`The export failed, nothing was written: ${event.error}`, true);
    }
  }

  async #run() {
    const kinds = [...this.#kinds.querySelectorAll(":checked")].map((input) => input.value);
    if (!kinds.length) return this.#say("Choose what to export.", true);
    // Before the request: events of the export may arrive earlier than its answer.
    this.#busy(true);
    this.#progress.firstElementChild.value = 0;
    this.#progress.lastElementChild.textContent = "Starting …";
    try {
      await post("export", { kinds });
    } catch (problem) {
      this.#busy(false);
      this.#say(problem.message, true);
    }
  }

  #busy(busy) {
    this.#kinds.disabled = busy;
    this.#progress.hidden = !busy;
    this.#start.hidden = busy;
    this.#stop.hidden = !busy;
    this.#stop.disabled = false;
    if (busy) this.#result.hidden = true;
  }

  #say(text, wrong = false) {
    this.#result.hidden = false;
    this.#result.textContent = text;
    this.#result.classList.toggle("error", wrong);
  }
}
