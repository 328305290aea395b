// Put the page together: one image at a time, its edits, and what the program says.

import { get, getMap, getPicture, listen, post } from "./api.js";
import { hideBanner, showBanner } from "./banners.js";
import { ClassList } from "./classes.js";
import { ExportDialog } from "./exporting.js";
import { History } from "./history.js";
import { LabelMap, parseColor, UNLABELED } from "./raster.js";
import { Saver, tab } from "./saver.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";

const MAX_SIZE = 400; // brush diameter in image pixels
const PHASES = {
  start: ["idle", "Starting …"],
  waiting: ["idle", "Scribble two classes"],
  loading: ["busy", "Loading the network …"],
  learning: ["busy", "Learning …"],
  learned: ["busy", "Segmenting …"],
  segmenting: ["busy", "Segmenting …"],
  ready: ["done", "Up to date"],
  failed: ["wrong", "Segmentation failed"],
};

const element = (id) => document.getElementById(id);
const remembered = (name, fallback) => localStorage.getItem(`blpseg-draw-${name}`) ?? fallback;
const remember = (name, value) => {
  try {
    localStorage.setItem(`blpseg-draw-${name}`, value);
  } catch {
    // The browser keeps nothing; the page works without.
  }
};

const settings = {
  tool: "brush",
  label: 0,
  size: 12,
  opacity: Number(remembered("opacity", 0.55)),
  showSegmentation: true,
  showHints: false,
  showScribbles: true,
  hidden: new Set([0]), // class 0, usually the background, would tint everything
  colors: [],
  palette: new Uint32Array(256),
};

let state; // what the program sent at the start
let current = null; // index of the image on the stage
let opening = 0; // counts openings, so that a late answer is not shown
let stage, strip, classes, saver;
const histories = new Map(); // image index -> { history, revision }
const exporting = new ExportDialog();

async function start() {
  try {
    state = await get("state");
  } catch (problem) {
    showBanner("start", `The page cannot start: ${problem.message}`, { kind: "error" });
    return;
  }
  settings.colors = state.colors;
  settings.colors.forEach((color, label) => {
    const [r, g, b] = parseColor(color);
    settings.palette[label] = (255 << 24) | (b << 16) | (g << 8) | r;
  });
  const name = state.folder.split("/").at(-1);
  document.title = `${name} · blpseg draw`;
  element("folder").textContent = name;
  element("folder").title = state.folder;
  element("own-list").hidden = !state.own_list;

  stage = new Stage(element("canvas"), settings);
  stage.setColors(settings.colors);
  strip = new Strip(element("strip"), state.images, settings);
  classes = new ClassList(element("classes"), element("add-class"), settings);
  classes.set(state);
  saver = new Saver(state.folder_id, state.images.map((image) => image.name));

  connectStage();
  connectStrip();
  connectControls();
  connectSaver();
  showStatus(state.status);
  showTool();
  updateFilters();
  listen(handleEvent, lost, found);

  const first = Math.max(0, state.images.findIndex((one) => one.name === remembered("image")));
  await open(first);
  await adoptEarlier();
}

/** Show an image on the stage. */
async function open(index) {
  const turn = ++opening;
  stage.cancelStroke();
  if (current !== null) saveHistory();
  current = index;
  const image = state.images[index];
  element("image-name").textContent = image.name;
  element("image-name").title = image.file;
  element("image-count").textContent = `${index + 1} of ${state.images.length}`;
  remember("image", image.name);
  strip.select(index);
  hideBanner("image");
  hideBanner("conflict");
  stage.editable = false;
  const slow = setTimeout(() => (element("spinner").hidden = false), 200);
  tellFocus();
  try {
    const [map, picture] = await Promise.all([
      loadScribbles(index).catch((problem) => problem),
      getPicture(`images/${index}/view`).catch((problem) => problem),
    ]);
    if (turn !== opening) return;
    if (picture instanceof Error) {
      stage.show(null, null);
      showNote(picture);
      return;
    }
    if (map instanceof Error) {
      const empty = new LabelMap(picture.width, picture.height);
      stage.show(empty, picture, null);
      showNote(map);
      return;
    }
    element("note").hidden = true;
    const large = Math.max(map.width, map.height) > state.view_side;
    const loadPart = (column, row) => getPicture(`images/${index}/tiles/${column}/${row}`);
    stage.show(map, picture, large ? loadPart : null, state.tile_side);
    stage.editable = true;
    chooseSize(map);
    await loadResult(index);
  } finally {
    clearTimeout(slow);
    if (turn === opening) {
      element("spinner").hidden = true;
      element("canvas").dataset.index = index; // for tests
      updateUndo();
      updateCoach();
    }
  }
}

/** Get the scribbles as the program has them, with the edits that still wait. */
async function loadScribbles(index) {
  const { width, height, revision, bytes } = await getMap(`images/${index}/scribbles`);
  const map = new LabelMap(width, height, bytes);
  const kept = histories.get(index);
  const waiting = saver.waitingFor(index);
  if (waiting.length) {
    for (const edit of waiting) map.apply(edit);
  } else {
    saver.setRevision(index, revision);
    if (kept && kept.revision !== revision) histories.delete(index);
  }
  if (!histories.has(index)) histories.set(index, { history: new History(), revision });
  return map;
}

function saveHistory() {
  const kept = histories.get(current);
  if (kept) kept.revision = saver.revision(current);
}

/** Show the segmentation of the current image, if there is one. */
async function loadResult(index) {
  try {
    const result = await getMap(`images/${index}/labels`);
    if (index !== current) return;
    stage.setSegmentation(result);
    strip.setVersion(index, result.version);
    document.body.dataset.version = result.version;
    if (settings.showHints) await loadHints(index);
  } catch (problem) {
    if (problem.status !== 404 && problem.kind !== "offline") throw problem;
  }
}

async function loadHints(index) {
  try {
    const hints = await getMap(`images/${index}/hints`);
    if (index === current) stage.setHints(hints);
  } catch (problem) {
    if (problem.status !== 404 && problem.kind !== "offline") throw problem;
  }
}

function showNote(problem) {
  const note = element("note");
  note.hidden = false;
  note.replaceChildren();
  const title = document.createElement("strong");
  title.textContent = stage.map ? "Nothing can be drawn here" : "This image cannot be shown";
  const text = document.createElement("p");
  text.textContent = problem.message;
  const again = document.createElement("button");
  again.textContent = "Check again";
  again.addEventListener("click", () => open(current).then(adoptEarlier));
  note.append(title, text, again);
}

/** Scale the brush with the image, once, until the user chooses a size. */
function chooseSize({ width, height }) {
  if (!chooseSize.chosen) setSize(Math.max(3, Math.round(Math.max(width, height) / 70)));
}

function setSize(size) {
  settings.size = Math.min(MAX_SIZE, Math.max(1, Math.round(size)));
  const input = element("size");
  input.value = (Math.log(settings.size) / Math.log(MAX_SIZE)) * 100;
  input.setAttribute("aria-valuetext", `${settings.size} pixels`);
  element("size-value").textContent = `${settings.size} px`;
  stage.redraw();
}

function stepSize(direction) {
  chooseSize.chosen = true;
  setSize(settings.size + direction * Math.max(1, Math.round(settings.size * 0.2)));
}

function connectStage() {
  stage.addEventListener("edit", ({ detail }) => {
    saver.add(current, detail.edit, detail.finished);
  });
  stage.addEventListener("stroke", ({ detail }) => {
    histories.get(current).history.add(detail.box, detail.before, stage.map);
    updateUndo();
    updateCoach();
  });
  stage.addEventListener("canceled", ({ detail }) => {
    const { left, top, right, bottom } = detail.box;
    const box = [left, top, right - left, bottom - top];
    saver.add(current, { kind: "patch", box, runs: detail.runs });
  });
  stage.addEventListener("view", ({ detail }) => {
    const percent = detail.scale * 100;
    element("zoom-value").textContent = `${percent < 10 ? percent.toFixed(1) : Math.round(percent)} %`;
  });
  stage.addEventListener("refused", () => {
    element("note").animate([{ scale: 1 }, { scale: 1.04 }, { scale: 1 }], 250);
  });
}

function connectStrip() {
  let timer;
  strip.addEventListener("visible", () => {
    clearTimeout(timer);
    timer = setTimeout(tellFocus, 250);
  });
  strip.addEventListener("choose", ({ detail }) => detail !== current && open(detail));
  classes.addEventListener("choose", () => {
    if (settings.tool === "eraser") setTool("brush");
    stage.redraw();
  });
  classes.addEventListener("hide", recolor);
}

function tellFocus() {
  post("focus", { image: current, visible: strip.visible }).catch(() => {}); // `listen` tells it
}

function connectControls() {
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => setTool(button.dataset.tool));
  }
  element("undo").addEventListener("click", () => travel("undo"));
  element("redo").addEventListener("click", () => travel("redo"));
  element("previous").addEventListener("click", () => step(-1));
  element("next").addEventListener("click", () => step(1));
  element("zoom-in").addEventListener("click", () => stage.zoom(1.4));
  element("zoom-out").addEventListener("click", () => stage.zoom(1 / 1.4));
  element("zoom-fit").addEventListener("click", () => stage.fit());
  element("zoom-value").addEventListener("click", () => stage.zoom(1 / stage.scale));
  element("export-button").addEventListener("click", () => exporting.open());
  element("help-button").addEventListener("click", () => element("help").showModal());
  element("size").addEventListener("input", (event) => {
    chooseSize.chosen = true;
    setSize(MAX_SIZE ** (event.target.value / 100));
  });
  const opacity = element("opacity");
  opacity.value = settings.opacity * 100;
  const showOpacity = () => {
    settings.opacity = opacity.value / 100;
    element("opacity-value").textContent = `${opacity.value} %`;
  };
  opacity.addEventListener("input", () => {
    showOpacity();
    remember("opacity", settings.opacity);
    stage.redraw();
    strip.recolor();
  });
  showOpacity();
  connectSwitch("show-segmentation", "showSegmentation", () => strip.recolor());
  connectSwitch("show-scribbles", "showScribbles", () => {});
  connectSwitch("show-hints", "showHints", (on) => {
    element("hints-legend").hidden = !on;
    if (on) loadHints(current);
  });
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => filter(button.dataset.filter));
  }
  addEventListener("keydown", handleKey);
  addEventListener("beforeunload", (event) => {
    if (saver.waiting && saver.problem?.kind === "disk") event.preventDefault();
  });
}

function connectSwitch(id, name, changed) {
  const input = element(id);
  input.checked = settings[name];
  input.addEventListener("change", () => {
    settings[name] = input.checked;
    changed(input.checked);
    stage.redraw();
  });
}

function handleKey(event) {
  if (event.target.closest("dialog, .rename")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" || key === "y") {
      event.preventDefault();
      travel(key === "y" || event.shiftKey ? "redo" : "undo");
    }
    return;
  }
  if (event.altKey) return;
  const actions = {
    b: () => setTool("brush"),
    e: () => setTool("eraser"),
    h: () => setTool("pan"),
    f: () => stage.fit(),
    s: () => element("show-segmentation").click(),
    w: () => element("show-hints").click(),
    d: () => element("show-scribbles").click(),
    "+": () => stage.zoom(1.4),
    "=": () => stage.zoom(1.4),
    "-": () => stage.zoom(1 / 1.4),
    "[": () => stepSize(-1),
    "]": () => stepSize(1),
    ",": () => step(-1),
    ".": () => step(1),
    PageUp: () => step(-1),
    PageDown: () => step(1),
    "?": () => element("help").showModal(),
  };
  if (key in actions) {
    event.preventDefault();
    actions[key]();
  } else if (/^[0-9]$/.test(key)) {
    classes.choose((Number(key) + 9) % 10);
  } else if (key.startsWith("Arrow") && event.target === element("canvas")) {
    event.preventDefault();
    const by = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    stage.pan(...by[key]);
  }
}

function setTool(tool) {
  settings.tool = tool;
  showTool();
  stage.redraw();
}

function showTool() {
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", button.dataset.tool === settings.tool);
  }
  element("canvas").dataset.mode = settings.tool;
}

function step(direction) {
  const index = strip.neighbor(direction);
  if (index !== null) open(index);
}

/** Undo or redo. */
function travel(direction) {
  if (!stage.editable) return;
  stage.cancelStroke();
  const edit = histories.get(current).history[direction]();
  if (!edit) return;
  stage.paintScribbles(stage.map.apply(edit));
  saver.add(current, edit);
  updateUndo();
}

function updateUndo() {
  const history = stage.editable ? histories.get(current)?.history : null;
  element("undo").disabled = !history?.canUndo;
  element("redo").disabled = !history?.canRedo;
}

function recolor() {
  stage.recolor();
  strip.recolor();
  stage.redraw();
}

function filter(name) {
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.setAttribute("aria-pressed", button.dataset.filter === name);
  }
  strip.filter((image) => name === "all" || image.drawn === (name === "drawn"));
  const empty = element("strip-empty");
  empty.hidden = strip.count > 0;
  empty.textContent =
    name === "drawn" ? "No image has scribbles yet." : "Every image has scribbles.";
}

function updateFilters() {
  const drawn = state.images.filter((image) => image.drawn).length;
  const counts = { all: state.images.length, drawn, empty: state.images.length - drawn };
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.querySelector("span").textContent = counts[button.dataset.filter];
  }
}

/** Say what to do until there is a segmentation. */
function updateCoach() {
  const coach = element("coach");
  coach.hidden = true;
  if (Number(document.body.dataset.version) || !stage.editable || state.version) return;
  const present = new Set(stage.map.labels);
  present.delete(UNLABELED);
  if (present.size >= 2) return;
  if (!present.size) {
    coach.textContent =
      "Choose a class and draw a line through the middle of it. Borders can be left out.";
  } else {
    const other = classes.names.findIndex((_, label) => !present.has(label));
    coach.textContent = `Now draw a line of another class, for example “${classes.names[other]}”.`;
  }
  coach.hidden = false;
}

function showStatus({ phase, error, seconds }) {
  const [kind, text] = PHASES[phase] ?? PHASES.start;
  const status = element("engine");
  status.dataset.phase = kind;
  status.lastElementChild.textContent = text;
  if (seconds !== undefined) status.title = `Learned in ${seconds} s`;
  if (phase === "failed") {
    showBanner("engine", `The segmentation failed: ${error} Your scribbles are saved as you draw.`, {
      kind: "error",
      dismiss: true,
    });
  } else {
    hideBanner("engine");
  }
}

function handleEvent(event) {
  if (event.type === "status") {
    showStatus(event);
  } else if (event.type === "result") {
    state.version = event.version;
    strip.setVersion(event.image, event.version);
    if (event.image === current && stage.editable) loadResult(current).then(updateCoach);
  } else if (event.type === "scribbles") {
    markDrawn(event.image, event.drawn);
    if (event.tab !== tab) changedElsewhere(event);
  } else if (event.type === "classes") {
    classes.set(event);
  } else if (event.type === "export") {
    exporting.handle(event);
  } else if (event.type === "tabs") {
    if (event.count > 1) {
      showBanner(
        "tabs",
        `This folder is open in ${event.count} tabs. Both save; what one draws appears in the other.`,
        { kind: "info", dismiss: true },
      );
    } else {
      hideBanner("tabs");
    }
  }
}

/** Another tab drew on an image. */
async function changedElsewhere({ image, revision }) {
  if (saver.revision(image) === revision || saver.waitingFor(image).length) return;
  histories.delete(image);
  if (image !== current) return saver.setRevision(image, undefined);
  if (!stage.editable) return;
  await reloadScribbles();
}

async function reloadScribbles() {
  const index = current;
  const map = await loadScribbles(index);
  if (index !== current) return;
  stage.cancelStroke();
  stage.map = map;
  stage.recolor();
  updateUndo();
}

function markDrawn(index, drawn) {
  if (state.images[index].drawn === drawn) return;
  state.images[index].drawn = drawn;
  strip.refresh(index);
  updateFilters();
}

function connectSaver() {
  saver.addEventListener("change", showSaved);
  saver.addEventListener("saved", ({ detail }) => {
    if (detail.notice) showBanner("notice", detail.notice, { dismiss: true });
    else hideBanner("notice");
  });
  saver.addEventListener("conflict", ({ detail }) => resolve(detail));
}

function showSaved() {
  const saved = element("saved");
  const { problem, waiting } = saver;
  saved.dataset.state = problem ? "wrong" : waiting ? "busy" : "saved";
  saved.lastElementChild.textContent = problem ? "Not saved" : waiting ? "Saving …" : "Saved";
  if (problem?.kind === "offline" || problem?.kind === "token") lost(problem);
  else if (problem) {
    showBanner(
      "saving",
      `Your last strokes are not saved: ${problem.message} They wait in this tab.`,
      { kind: "error", actions: [["Try again", () => saver.retry()]] },
    );
  } else {
    hideBanner("saving");
  }
}

/** Edits do not fit the scribbles on disk: load those, and let the user decide. */
async function resolve({ index, problem }) {
  const edits = saver.take(index);
  histories.delete(index);
  if (index !== current) await open(index);
  else await open(current);
  if (problem.kind === "wrong") {
    showBanner("conflict", `Your last change was not saved: ${problem.message}`, {
      kind: "error",
      dismiss: true,
    });
    return;
  }
  const strokes = edits.filter((edit) => edit.kind === "stroke");
  if (!stage.editable || !stage.map.wouldChange(edits)) return;
  const name = state.images[index].name;
  const actions = strokes.length ? [["Draw it again", () => drawAgain(index, strokes)]] : [];
  showBanner(
    "conflict",
    `${name} was changed in another tab or by another program. That version is shown; your last ` +
      "change is not in it.",
    { actions, dismiss: true },
  );
}

async function drawAgain(index, edits) {
  if (index !== current) await open(index);
  if (!stage.editable) return;
  for (const edit of edits) {
    const before = stage.map.copy();
    const box = stage.map.apply(edit);
    if (!box) continue;
    stage.paintScribbles(box);
    histories.get(index).history.add(box, before, stage.map);
    saver.add(index, edit);
  }
  updateUndo();
}

/** Save what a dead tab or program left behind. */
async function adoptEarlier() {
  let count = 0;
  let last = null;
  for (const entry of await saver.leftBehind()) {
    const { index, base, edits } = entry;
    if (index !== current) await open(index);
    if (!stage.editable) continue; // they wait until the image can be drawn on
    const same = saver.revision(index) === base;
    const usable = same ? edits : edits.filter((edit) => edit.kind === "stroke");
    if (!stage.map.wouldChange(usable)) {
      saver.forget(entry);
      continue;
    }
    await drawAgain(index, usable);
    saver.forget(entry);
    count += usable.length;
    last = state.images[index].name;
  }
  if (count) {
    showBanner(
      "adopted",
      `${count} stroke${count > 1 ? "s" : ""} on ${last} had not been saved when the program ` +
        "stopped. They are saved now; Undo takes them back.",
      { kind: "info", dismiss: true },
    );
  }
}

function lost(problem) {
  const waiting = saver.waiting;
  const kept = waiting
    ? ` ${waiting} change${waiting > 1 ? "s" : ""} wait${waiting > 1 ? "" : "s"} in this browser ` +
      "and will be saved then."
    : "";
  const text =
    problem?.kind === "token"
      ? `The program was started again and has a new address: open the one on its terminal.${kept}`
      : `The program does not answer. Start it again: blpseg draw ${state.folder}.${kept}`;
  showBanner("lost", text, { kind: "error" });
  element("engine").dataset.phase = "wrong";
  element("engine").lastElementChild.textContent = "Not connected";
}

async function found() {
  if (!found.before) {
    found.before = true;
    return;
  }
  hideBanner("lost");
  saver.retry();
  const fresh = await get("state");
  showStatus(fresh.status);
  classes.set(fresh);
  tellFocus();
}

start();
