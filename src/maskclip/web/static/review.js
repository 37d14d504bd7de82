/* The page of a review: photos in the order of what is worth a look, and what is done to them. */

import { call } from "./api.js";
import { decode } from "./layers.js";
import { connected, outlined, painted } from "./regions.js";
import { PhotoList, span, stateOf } from "./reviewed.js";

const $ = (id) => document.getElementById(id);
const AROUND = 2; // photos before and after the one that is shown whose pictures are fetched

const page = {
  photos: null, // the list of them
  classes: [],
  colors: new Map(), // class -> pixel of an image
  shown: null, // {width, height, labels, numbers, regions, order}
  selected: null, // a region of it
  hovered: null,
  busy: Promise.resolve(),
};

function address(what, name) {
  return `v1/review/${what}?name=${encodeURIComponent(name)}`;
}

/** Do one thing after the other; what fails is said. */
function inTurn(task) {
  page.busy = page.busy.then(async () => {
    try {
      $("problem").textContent = "";
      await task();
    } catch (error) {
      $("problem").textContent = error.message;
      if (error.status === 409) await refresh();
    }
  });
  return page.busy;
}

/** Send what is done; an error says that it is not saved. */
async function send(what, json) {
  try {
    return await (await call(`v1/review/${what}`, { json })).json();
  } catch (error) {
    if (!error.status) error.message = `not saved: ${error.message}`;
    throw error;
  }
}

async function step(by) {
  const next = page.photos.next(by);
  if (next !== null) await show(next);
}

/** Show a photo that is chosen from the list, which may be far below it. */
function choose(index) {
  $("name").parentElement.scrollIntoView({ block: "nearest" });
  inTurn(() => show(index));
}

/* The photo */

async function show(index) {
  const { photos } = page;
  photos.turnTo(index);
  page.selected = page.hovered = page.shown = null;
  const photo = photos.current;
  history.replaceState(null, "", `#${encodeURIComponent(photo.name)}`);
  headings();
  clear($("labels"));
  clear($("outline"));
  $("image").src = address("image", photo.name);
  $("image").alt = photo.photo;
  await Promise.all([$("image").decode().catch(unreadable), readLabels(photo)]);
  for (const near of photos.photos.slice(index + 1, index + 1 + AROUND)) {
    new Image().src = address("image", near.name);
  }
}

async function unreadable() {
  await call($("image").src); // its error says why
  throw new Error("the photo cannot be shown");
}

function headings() {
  const photo = page.photos.current;
  const state = stateOf(photo);
  $("name").textContent = photo.photo;
  $("state").textContent = photo.corrected && state !== "corrected" ? `corrected, ${state}` : state;
  $("state").dataset.state = state;
  $("reasons").textContent = photo.reasons.length ? `Worth a look: ${photo.reasons.join("; ")}` : "";
  $("reset").disabled = state === "open";
  $("accept").setAttribute("aria-pressed", String(state === "accepted"));
  $("reject").setAttribute("aria-pressed", String(state === "rejected"));
}

async function readLabels(photo) {
  const blob = await (await call(address("labels", photo.name))).blob();
  const { width, height, data: labels } = await decode(blob, page.classes.length > 255 ? 16 : 8);
  const { numbers, regions } = connected(labels, width, height);
  const order = [...regions].sort((one, other) => other.size - one.size);
  page.shown = { width, height, labels, numbers, regions, order };
  const layer = sized($("labels"));
  layer.getContext("2d").putImageData(painted(labels, width, height, page.colors), 0, 0);
  listClasses();
  select(null);
}

function sized(canvas) {
  canvas.width = page.shown.width;
  canvas.height = page.shown.height;
  return canvas;
}

function clear(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

/* Regions */

/** Return how many CSS pixels a pixel of the labels has, which are fitted into the stage. */
function scale() {
  const box = $("stage").getBoundingClientRect();
  return Math.min(box.width / page.shown.width, box.height / page.shown.height);
}

function placeOf(event) {
  const box = $("stage").getBoundingClientRect();
  const { width, height } = page.shown;
  const x = Math.floor((event.clientX - box.left - box.width / 2) / scale() + width / 2);
  const y = Math.floor((event.clientY - box.top - box.height / 2) / scale() + height / 2);
  return x >= 0 && y >= 0 && x < width && y < height ? y * width + x : null;
}

function select(region) {
  page.selected = region;
  outline();
  for (const id of ["ignore", "merge"]) $(id).disabled = region === null;
  for (const button of $("classes").querySelectorAll("button")) button.disabled = region === null;
}

function outline() {
  if (!page.shown) return;
  const { width, height, labels, numbers } = page.shown;
  const region = page.selected ?? page.hovered;
  say(region);
  if (region === null) return clear($("outline"));
  const whole = $("whole").checked;
  const inside = whole
    ? (at) => labels[at] === region.label
    : (at) => numbers[at] === region.number;
  const fine = Math.max(1, Math.floor(scale())); // a small photo is shown large, with fine lines
  const within = (x, y) => inside(Math.floor(y / fine) * width + Math.floor(x / fine));
  const thickness = Math.max(2, Math.round(((region === page.selected ? 4 : 2) * fine) / scale()));
  const data = outlined(width * fine, height * fine, within, thickness);
  const canvas = $("outline");
  Object.assign(canvas, { width: data.width, height: data.height });
  canvas.getContext("2d").putImageData(data, 0, 0);
}

function nameOf(label) {
  return page.classes[label]?.name ?? "ignored";
}

function say(region) {
  if (region === null) {
    $("region").textContent = "Click a region to give it another class.";
    return;
  }
  const share = (100 * region.size) / page.shown.labels.length;
  const size = share < 0.1 ? "under 0.1%" : `${share.toFixed(1)}%`;
  const start = region === page.selected ? "Selected: " : "";
  $("region").textContent = `${start}${nameOf(region.label)}, ${size} of the photo`;
}

function stepRegion(by) {
  const { order } = page.shown ?? { order: [] };
  if (!order.length) return;
  const at = page.selected === null ? -1 : order.indexOf(page.selected);
  select(order[at < 0 && by < 0 ? order.length - 1 : (at + by + order.length) % order.length]);
}

/* Classes */

function found() {
  const text = $("search").value.trim().toLowerCase();
  return page.classes.filter((one) => one.name.toLowerCase().includes(text));
}

function listClasses() {
  const total = page.shown?.labels.length ?? 1;
  const counts = new Map();
  for (const region of page.shown?.regions ?? []) {
    counts.set(region.label, (counts.get(region.label) ?? 0) + region.size);
  }
  $("classes").replaceChildren(
    ...found().map((one, index) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      const chip = span("chip");
      chip.style.background = one.color;
      const key = document.createElement("kbd");
      key.textContent = index < 9 ? String(index + 1) : "";
      const share = counts.get(one.id) ?? 0;
      const part = span("share quiet figure", share ? `${((100 * share) / total).toFixed(1)}%` : "");
      button.append(key, chip, span("path", one.name), part);
      if (index < 9) button.setAttribute("aria-keyshortcuts", String(index + 1));
      button.disabled = page.selected === null;
      button.addEventListener("click", () => inTurn(() => change({ action: "relabel", label: one.id })));
      item.append(button);
      return item;
    }),
  );
}

/* What is done */

async function change(edit) {
  const { shown } = page;
  const photo = page.photos.current;
  const body = { name: photo.name, edit: photo.edit, ...edit };
  const onRegion = ["relabel", "ignore", "merge"].includes(edit.action);
  if (onRegion) {
    if (page.selected === null) {
      $("region").textContent = "Select a region first.";
      return;
    }
    const { start } = page.selected;
    const x = start % shown.width;
    const y = Math.floor(start / shown.width);
    body.row = Math.floor((y * photo.height) / shown.height);
    body.column = Math.floor((x * photo.width) / shown.width);
    body.whole = $("whole").checked;
  }
  took(await send("change", body));
  if (onRegion || edit.action === "reset") await readLabels(page.photos.current);
}

function took(answer) {
  offerHistory(answer);
  if (!answer.photo) return -1;
  const index = page.photos.take(answer.photo);
  page.photos.refresh();
  if (index === page.photos.at) headings();
  return index;
}

function offerHistory({ can_undo: undo, can_redo: redo }) {
  $("undo").disabled = !undo;
  $("redo").disabled = !redo;
}

async function judge(action) {
  const state = { accept: "accepted", reject: "rejected" }[action];
  const again = page.photos.current.state === state; // the same once more takes it back
  await change({ action: again ? "open" : action });
  if (!again) await step(1);
}

async function goBack(which) {
  const index = took(await send(which, {}));
  if (index === page.photos.at) await readLabels(page.photos.current);
  else if (index >= 0) await show(index);
}

/** Take in what others have done meanwhile. */
async function refresh() {
  const found = await (await call("v1/review")).json();
  const before = page.photos.current;
  if (found.photos.length !== page.photos.photos.length) return location.reload();
  const { photos } = page.photos;
  const other = (photo, index) => JSON.stringify(photo) !== JSON.stringify(photos[index]);
  found.photos.filter(other).forEach((photo) => page.photos.take(photo));
  page.photos.refresh();
  offerHistory(found);
  headings();
  if (page.photos.current.edit !== before.edit) await readLabels(page.photos.current);
}

/* Hands */

function keyed(event) {
  const typing = event.target.matches("input[type=text], select, textarea");
  if (event.key === "Escape") {
    if (typing) $("stage").focus();
    return select(null);
  }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    return inTurn(() => goBack(event.shiftKey ? "redo" : "undo"));
  }
  if (typing && event.target.id === "search" && event.key === "Enter" && found().length) {
    event.preventDefault();
    const { id } = found()[0];
    inTurn(() => change({ action: "relabel", label: id }));
    $("search").value = "";
    listClasses(); // numbers are those of the list that is seen
    return $("stage").focus();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const pressed = event.target.matches("button, summary, input") && [" ", "Enter"].includes(event.key);
  if (pressed || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = KEYS[key] ?? AT_ONCE[key];
  const digit = /^[1-9]$/.test(event.key) ? found()[Number(event.key) - 1] : undefined;
  if (!action && !digit) return;
  event.preventDefault();
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key that is held judges once
  if (AT_ONCE[key]) return action();
  inTurn(digit ? () => change({ action: "relabel", label: digit.id }) : action);
}

const KEYS = {
  a: () => judge("accept"),
  Enter: () => judge("accept"),
  x: () => judge("reject"),
  u: () => goBack("undo"),
  y: () => goBack("redo"),
  m: () => change({ action: "merge" }),
  0: () => change({ action: "ignore" }),
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ArrowUp: () => stepRegion(-1),
  ArrowDown: () => stepRegion(1),
};

/** What waits for nothing: letters that follow a "/" are a class's name, and no keys. */
const AT_ONCE = {
  o: () => setOpacity($("opacity").value === "0" ? 60 : 0),
  w: () => $("whole").click(),
  "/": () => $("search").focus(),
};

function setOpacity(value) {
  $("opacity").value = String(value);
  $("labels").style.opacity = String(value / 100);
}

function listen() {
  const stage = $("stage");
  stage.addEventListener("pointermove", (event) => {
    if (!page.shown || page.selected || event.pointerType === "touch") return;
    const at = placeOf(event);
    const region = at === null ? null : page.shown.regions[page.shown.numbers[at]];
    if (region === page.hovered) return;
    page.hovered = region;
    outline();
  });
  stage.addEventListener("pointerleave", () => {
    page.hovered = null;
    outline();
  });
  stage.addEventListener("click", (event) => {
    if (!page.shown) return;
    const at = placeOf(event);
    const region = at === null ? null : page.shown.regions[page.shown.numbers[at]];
    select(region === page.selected ? null : region);
  });
  const click = (id, action) => $(id).addEventListener("click", () => inTurn(action));
  click("previous", () => step(-1));
  click("next", () => step(1));
  click("accept", () => judge("accept"));
  click("reject", () => judge("reject"));
  click("reset", () => change({ action: "reset" }));
  click("undo", () => goBack("undo"));
  click("redo", () => goBack("redo"));
  click("ignore", () => change({ action: "ignore" }));
  click("merge", () => change({ action: "merge" }));
  $("whole").addEventListener("change", outline);
  $("opacity").addEventListener("input", (event) => setOpacity(event.target.value));
  $("search").addEventListener("input", listClasses);
  document.addEventListener("keydown", keyed);
  window.addEventListener("focus", () => {
    page.busy = page.busy.then(refresh).catch(() => {}); // what is done next says it
  });
}

async function start() {
  const found = await (await call("v1/review").catch(absent)).json();
  page.classes = found.classes;
  for (const { id, color } of page.classes) {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    page.colors.set(id, (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0);
  }
  $("title").textContent = found.title;
  offerHistory(found);
  setOpacity($("opacity").value);
  const parts = { list: $("photos"), filter: $("filter"), progress: $("progress") };
  page.photos = new PhotoList(found.photos, parts, choose);
  listen();
  const wanted = page.photos.placeOf(decodeURIComponent(location.hash.slice(1)));
  const open = found.photos.findIndex((photo) => stateOf(photo) === "open");
  await inTurn(() => show(wanted ?? Math.max(0, open)));
  $("stage").focus();
}

function absent(error) {
  if (error.status !== 404) throw error;
  throw new Error("no labels are reviewed here: start the service with --review LABELS");
}

start().catch((error) => {
  $("problem").textContent = error.message;
});
