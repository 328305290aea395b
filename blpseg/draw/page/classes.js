// The list of classes: choose, rename, add, hide.

import { get, post } from "./api.js";

export class ClassList extends EventTarget {
  #box;
  #editing = null; // label whose name is being edited; the number of classes for a new one

  constructor(box, addButton, settings) {
    super();
    this.#box = box;
    this.settings = settings;
    addButton.addEventListener("click", () => this.edit(this.names.length));
  }

  /** Set the classes, as the program sends them. */
  set({ classes, classes_revision }) {
    this.names = classes;
    this.revision = classes_revision;
    if (this.#editing === null) this.#render();
  }

  /** Choose a class. */
  choose(label) {
    if (label >= this.names.length) return;
    this.settings.label = label;
    const radio = this.#box.querySelectorAll("input[type=radio]")[label];
    if (radio) radio.checked = true;
    this.dispatchEvent(new Event("choose"));
  }

  /** Edit a name; the label after the last adds a class. */
  edit(label) {
    this.#editing = label;
    this.#render();
    const input = this.#box.querySelector("input.rename");
    input.focus();
    input.select();
  }

  #render() {
    const focused = this.#box.contains(document.activeElement) && document.activeElement;
    const focusedRadio = focused?.type === "radio";
    const rows = this.names.map((name, label) =>
      label === this.#editing ? this.#editor(label, name) : this.#row(label, name),
    );
    if (this.#editing === this.names.length) rows.push(this.#editor(this.names.length, ""));
    this.#box.replaceChildren(...rows);
    if (focusedRadio) this.#box.querySelector("input:checked")?.focus();
  }

  #row(label, name) {
    const row = document.createElement("div");
    row.className = "class";
    const choice = document.createElement("label");
    const radio = document.createElement("input");
    radio.type = "radio";
    radio.name = "class";
    radio.checked = label === this.settings.label;
    radio.addEventListener("change", () => this.choose(label));
    const text = document.createElement("span");
    text.className = "class-name";
    text.textContent = name;
    text.title = name;
    choice.append(radio, this.#swatch(label), text);
    choice.addEventListener("dblclick", () => this.edit(label));
    const shown = !this.settings.hidden.has(label);
    const rename = button("pencil", `Rename ${name}`, () => this.edit(label));
    const see = button(
      shown ? "eye" : "eye-off",
      `${shown ? "Hide" : "Show"} ${name} in the segmentation`,
      () => {
        if (shown) this.settings.hidden.add(label);
        else this.settings.hidden.delete(label);
        this.#render();
        this.#box.querySelectorAll(".class .see")[label].focus();
        this.dispatchEvent(new Event("hide"));
      },
    );
    see.classList.add("see");
    see.setAttribute("aria-pressed", shown);
    row.append(choice, rename, see);
    if (label < 10) {
      const key = document.createElement("kbd");
      key.textContent = (label + 1) % 10;
      row.append(key);
    }
    return row;
  }

  #swatch(label) {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = this.settings.colors[label];
    return swatch;
  }

  #editor(label, name) {
    const row = document.createElement("form");
    row.className = "class editor";
    const input = document.createElement("input");
    input.className = "rename";
    input.value = name;
    input.maxLength = 100;
    input.placeholder = "Name of the class";
    input.setAttribute("aria-label", name ? `New name of ${name}` : "Name of the new class");
    const error = document.createElement("p");
    error.className = "error";
    error.setAttribute("role", "alert");
    const leave = () => {
      if (this.#editing !== label) return;
      this.#editing = null;
      this.#render();
      this.#box.querySelectorAll("input[type=radio]")[this.settings.label]?.focus();
    };
    let revision = this.revision; // of the name that is edited
    let saving = false;
    const save = async () => {
      if (saving || this.#editing !== label) return;
      const text = input.value.trim();
      if (!text || text === name) return leave();
      saving = true;
      const at = name ? label : this.names.length; // another tab may have added some meanwhile
      const names = [...this.names];
      names[at] = text;
      try {
        const state = await post("classes", {
          classes: names,
          revision: name ? revision : this.revision,
        });
        this.#editing = null;
        this.set(state);
        this.choose(at);
        this.#box.querySelectorAll("input[type=radio]")[at].focus();
      } catch (problem) {
        error.textContent = problem.message;
        input.setAttribute("aria-invalid", "true");
        input.focus();
        if (problem.kind === "conflict") {
          const state = await get("state");
          this.names = state.classes;
          this.revision = revision = state.classes_revision;
        }
      } finally {
        saving = false;
      }
    };
    row.addEventListener("submit", (event) => {
      event.preventDefault();
      save();
    });
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") leave();
    });
    input.addEventListener("input", () => {
      error.textContent = "";
      input.removeAttribute("aria-invalid");
    });
    input.addEventListener("blur", () => {
      if (!error.textContent) save();
    });
    row.append(this.#swatch(label), input, error);
    return row;
  }
}

function button(icon, label, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = "icon-button small";
  element.setAttribute("aria-label", label);
  element.title = label;
  element.innerHTML = `<svg><use href="#i-${icon}"/></svg>`;
  element.addEventListener("click", action);
  return element;
}
