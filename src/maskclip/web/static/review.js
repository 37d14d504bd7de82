/* The page of a review: photos in the order of what is worth a look, and what is done to them. */

import { connected, outlined, painted } from "./regions.js";

const $ = (id) => document.getElementById(id);
const AROUND = 2; // photos before and after the one that is shown whose pictures are fetched

const page = {
  photos: [], // as the service describes them
  classes: [],
  ignore: 255,
  colors: new Map(), // class -> pixel of an image
  at: -1,
  shown: null, // {width, height, labels, numbers, regions, order}
  selected: null, // a region of it
  hovered: null,
  busy: Promise.resolve(),
};

async function call(path, body) {
  const answer = await fetch(
    path,
    body === undefined
      ? {}
      : {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(body),
        },
  );
  if (answer.ok) return answer;
  let line = `the service answered ${answer.status}`;
  try {
    line = (await answer.json()).error ?? line;
  } catch {
    /* no JSON: the status has to do */
  }
  throw new Error(line);
}

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
      $("problem").textContent = error instanceof TypeError ? offline(error) : error.message;
    }
  });
  return page.busy;
}

function offline(error) {
  return /fetch|network|load failed/i.test(error.message)
    ? "not saved: the service cannot be reached"
    : error.message;
}

/* What is listed */

function stateOf(photo) {
  if (photo.state !== "open") return photo.state;
  return photo.corrected ? "corrected" : "open";
}

const MARKS = { accepted: "✓", rejected: "✕", corrected: "✎", open: "" };

function isListed(photo) {
  const wanted = $("filter").value;
  if (wanted === "all") return true;
  if (wanted === "corrected") return photo.corrected && photo.state !== "rejected";
  return stateOf(photo) === wanted;
}

function listPhotos() {
  const list = $("photos");
  list.replaceChildren(
    ...page.photos.map((photo, index) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.append(span("mark"), span("path", photo.photo), span("doubt"));
      button.addEventListener("click", () => inTurn(() => show(index)));
      item.append(button);
      return item;
    }),
  );
  page.photos.forEach((_, index) => describe(index));
  listed();
}

function span(kind, text = "") {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  return element;
}

function describe(index) {
  const photo = page.photos[index];
  const button = $("photos").children[index].firstElementChild;
  const state = stateOf(photo);
  const [mark, , doubt] = button.children;
  mark.textContent = MARKS[state] || (photo.reasons.length ? "!" : "");
  doubt.style.setProperty("--share", `${Math.round(100 * Math.min(1, photo.doubt))}%`);
  button.dataset.state = state;
  const flags = photo.reasons.length ? ", worth a look" : "";
  const what = state === "open" ? `not reviewed${flags}` : state;
  button.setAttribute("aria-label", `${photo.photo}, ${what}`);
  button.title = `${what}; doubt ${photo.doubt.toFixed(2)}`;
}

function listed() {
  page.photos.forEach((photo, index) => {
    $("photos").children[index].hidden = !isListed(photo) && index !== page.at;
  });
  const done = page.photos.filter((photo) => stateOf(photo) !== "open").length;
  $("progress").textContent = `${done} of ${page.photos.length} reviewed`;
}

async function step(by) {
  for (let at = page.at + by; at >= 0 && at < page.photos.length; at += by) {
    if (isListed(page.photos[at])) return show(at);
  }
}

/* The photo */

async function show(index) {
  const before = $("photos").children[page.at]?.firstElementChild;
  before?.removeAttribute("aria-current");
  page.at = index;
  page.selected = page.hovered = page.shown = null;
  const photo = page.photos[index];
  const current = $("photos").children[index].firstElementChild;
  current.setAttribute("aria-current", "true");
  current.scrollIntoView({ block: "nearest", inline: "nearest" });
  history.replaceState(null, "", `#${encodeURIComponent(photo.name)}`);
  headings();
  clear($("labels"));
  clear($("outline"));
  $("image").src = address("image", photo.name);
  $("image").alt = photo.photo;
  await Promise.all([$("image").decode().catch(unreadable), readLabels(photo)]);
  listed();
  for (let near = index + 1; near <= index + AROUND && near < page.photos.length; near++) {
    new Image().src = address("image", page.photos[near].name);
  }
}

async function unreadable() {
  await call($("image").src); // its error says why
  throw new Error("the photo cannot be shown");
}

function headings() {
  const photo = page.photos[page.at];
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
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const wide = page.classes.length > 255;
  const labels = new Uint16Array(width * height);
  for (let at = 0; at < labels.length; at++) {
    labels[at] = pixels[4 * at] + (wide ? 256 * pixels[4 * at + 1] : 0);
  }
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
  const thickness = Math.max(1, Math.round((region === page.selected ? 4 : 2) / scale()));
  const data = outlined(width, height, inside, thickness);
  sized($("outline")).getContext("2d").putImageData(data, 0, 0);
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
  const photo = page.photos[page.at];
  const body = { name: photo.name, ...edit };
  const onRegion = ["relabel", "ignore", "merge"].includes(edit.action);
  if (onRegion) {
    if (page.selected === null) return;
    const { start } = page.selected;
    const x = start % shown.width;
    const y = Math.floor(start / shown.width);
    body.row = Math.floor((y * photo.height) / shown.height);
    body.column = Math.floor((x * photo.width) / shown.width);
    body.whole = $("whole").checked;
  }
  took(await (await call("v1/review/change", body)).json());
  if (onRegion || edit.action === "reset") await readLabels(page.photos[page.at]);
}

function took(answer) {
  $("undo").disabled = !answer.can_undo;
  $("redo").disabled = !answer.can_redo;
  if (!answer.photo) return -1;
  const index = page.photos.findIndex((photo) => photo.name === answer.photo.name);
  page.photos[index] = answer.photo;
  describe(index);
  if (index === page.at) headings();
  listed();
  return index;
}

async function judge(action) {
  const at = page.at;
  const state = { accept: "accepted", reject: "rejected" }[action];
  const again = page.photos[at].state === state; // the same once more takes it back
  await change({ action: again ? "open" : action });
  if (!again) await step(1);
}

async function goBack(which) {
  const index = took(await (await call(`v1/review/${which}`, {})).json());
  if (index === page.at) await readLabels(page.photos[index]);
  else if (index >= 0) await show(index);
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
    return $("stage").focus();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const pressed = event.target.matches("button, summary, input") && [" ", "Enter"].includes(event.key);
  if (pressed || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const digit = /^[1-9]$/.test(event.key) ? found()[Number(event.key) - 1] : undefined;
  if (!action && !digit) return;
  event.preventDefault();
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key that is held judges once
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
  o: () => setOpacity($("opacity").value === "0" ? 60 : 0),
  w: () => $("whole").click(),
  "/": () => $("search").focus(),
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ArrowUp: () => stepRegion(-1),
  ArrowDown: () => stepRegion(1),
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
  $("filter").addEventListener("change", listed);
  $("search").addEventListener("input", listClasses);
  document.addEventListener("keydown", keyed);
}

async function start() {
  const answer = await fetch("v1/review");
  if (answer.status === 404) {
    throw new Error("no labels are reviewed here: start the service with --review LABELS");
  }
  const found = await (answer.ok ? answer : call("v1/review")).json();
  Object.assign(page, { photos: found.photos, classes: found.classes, ignore: found.ignore });
  for (const { id, color } of page.classes) {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    page.colors.set(id, (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0);
  }
  $("title").textContent = found.title;
  $("undo").disabled = !found.can_undo;
  $("redo").disabled = !found.can_redo;
  setOpacity($("opacity").value);
  listPhotos();
  listen();
  const wanted = decodeURIComponent(location.hash.slice(1));
  const at = page.photos.findIndex((photo) => photo.name === wanted);
  const open = page.photos.findIndex((photo) => stateOf(photo) === "open");
  await inTurn(() => show(Math.max(0, at >= 0 ? at : open)));
  $("stage").focus();
}

start().catch((error) => {
  $("problem").textContent = error.message;
});
