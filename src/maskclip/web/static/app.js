// The page: one photo, one or two sides with settings, and the labels that come for them.

import { call } from "./api.js";
import { Controls, onPage, say } from "./controls.js";
import { paintHeat, paintLabels, paintScale } from "./layers.js";
import { aboutAnswer, busy, described, Legend, readOut } from "./legend.js";
import { exampleFile, listenForPhotos, pictureOf, showExamples, upload } from "./photos.js";
import { listenForSaves, showRepeat } from "./save.js";
import { readHash, toSend, writeHash } from "./settings.js";
import { Side } from "./side.js";
import { Stage } from "./stage.js";

const PATIENCE = 120; // ms without a key before words are sent
const find = (id) => document.getElementById(id);

class Page {
  constructor(options, examples) {
    const kinds = options.models.map((one) => one.kind);
    const known = examples.filter((one) => kinds.includes("clip") || kinds.includes(one.model));
    this.examples = known;
    const state = readHash(location.hash);
    this.photo = null;
    this.example = state.example;
    this.comparing = state.comparing;
    this.opacity = state.opacity;
    this.sides = state.sides.map((settings, index) => new Side(index, settings));
    this.active = 0;
    this.spot = null;
    this.controls = new Controls(options, (settings) => this.changed(settings));
    this.legend = new Legend({
      show: (names, shown) => this.switchClasses(names, shown),
      spot: (name) => this.point(name),
      heat: (name) => this.chooseHeat(name),
    });
    showExamples(known, (example) => this.openExample(example));
    this.stage = new Stage(find("view"), {
      probe: (point) => this.probe(point),
      zoom: (scale) => (find("zoom").textContent = `${Math.round(100 * scale)} %`),
    });
    listenForSaves(() => this.saveRequest());
    paintScale(find("scale-colors"));
    this.listen();
  }

  get side() {
    return this.sides[this.active];
  }

  listen() {
    const click = (id, action) => find(id).addEventListener("click", action);
    click("zoom-in", () => this.stage.zoomBy(1.3));
    click("zoom-out", () => this.stage.zoomBy(1 / 1.3));
    click("fit", () => this.stage.fit());
    click("full", () => this.stage.zoomTo(1));
    click("compare", () => this.compare(!this.comparing));
    click("show-examples", () => this.showStart(find("start").hidden));
    find("opacity").addEventListener("input", ({ target }) => {
      this.opacity = target.valueAsNumber;
      this.stage.setOpacity(this.opacity);
      this.remember();
    });
    for (const button of document.querySelectorAll("[data-side]")) {
      button.addEventListener("click", () => this.activate(Number(button.dataset.side)));
    }
    addEventListener("hashchange", () => this.followHash());
    find("start").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.showStart(false);
    });
  }

  /** Show the photo that was given while the page loaded, or that which the address or visitor has. */
  async begin(file) {
    find("opacity").value = this.opacity;
    this.stage.setOpacity(this.opacity);
    this.showSides();
    const known = this.examples.find((one) => one.name === this.example);
    const before = JSON.parse(sessionStorage.getItem("photo") ?? "null");
    if (file) await this.open(file);
    else if (known) await this.openExample(known, { withWords: !location.hash.includes("words=") });
    else if (before) {
      try {
        const picture = await pictureOf(before.id);
        if (!this.uploading) this.use({ ...before, picture }); // else a photo was given meanwhile
      } catch {
        sessionStorage.removeItem("photo"); // the service has let it go
      }
    }
  }

  // Photos

  async openExample(example, { withWords = true } = {}) {
    const sides = this.comparing ? this.sides : [this.side];
    if (withWords) {
      const { models } = this.controls.options;
      const now = this.controls.modelOf(this.side.settings);
      const knows = now.kind === "clip" || now.kind === example.model;
      const model = knows ? now : (models.find((one) => one.kind === example.model) ?? now);
      const chosen = {
        words: undefined,
        vocabulary: undefined,
        background: undefined,
        ...(model.kind === example.model ? example.settings : { words: example.words }),
        model: model.default ? undefined : model.name,
      };
      for (const side of sides) side.borrow(chosen);
      this.controls.show(this.side.settings);
    } else {
      sides.filter((side) => this.controls.modelOf(side.settings).kind === example.model)
        .forEach((side) => side.borrow(side.settings, {}));
    }
    const before = this.uploading;
    try {
      const file = await exampleFile(example);
      if (this.uploading === before) await this.open(file, example.name);
    } catch (error) {
      tell("photo-error", error.message);
    }
  }

  async open(file, example = null) {
    this.uploading?.abort();
    const request = (this.uploading = new AbortController());
    readOut(`opening ${file.name || "the photo"} …`);
    say("photo-error", "");
    say("stage-error", "");
    try {
      const photo = await upload(file, { signal: request.signal, onBusy: busy });
      if (request !== this.uploading) return;
      this.example = example;
      if (!example) this.leaveExample();
      this.use(photo);
    } catch (error) {
      if (request !== this.uploading || error.name === "AbortError") return;
      tell(find("start").hidden ? "stage-error" : "photo-error", error.message);
    }
  }

  /** A visitor's own photo has come: the model that an example chose may know nothing of it. */
  leaveExample() {
    for (const side of this.sides) {
      if (!side.giveBack()) continue;
      side.news = `your own photo: back to the model ${this.controls.modelOf(side.settings).name}`;
    }
    this.controls.show(this.side.settings);
  }

  use(photo) {
    this.photo = photo;
    const { id, name, width, height } = photo;
    sessionStorage.setItem("photo", JSON.stringify({ id, name, width, height }));
    say("photo-name", `${name} · ${width} × ${height}`);
    this.showStart(false);
    this.stage.setPhoto(photo.picture);
    readOut("");
    for (const side of this.sides) side.forget();
    this.showSide();
    this.remember();
    for (const side of this.comparing ? this.sides : [this.side]) this.label(side);
  }

  showStart(shown) {
    const open = shown || !this.photo;
    find("start").hidden = !open;
    find("start").classList.toggle("over", Boolean(this.photo));
    find("show-examples").setAttribute("aria-expanded", open);
  }

  // Labels

  changed(settings) {
    const { side } = this;
    side.settings = settings;
    side.news = "";
    this.remember();
    side.stop();
    side.timer = setTimeout(() => this.label(side), PATIENCE);
  }

  /** Label the photo for a side, and show what comes: a draft, then the whole. */
  async label(side) {
    if (!this.photo) return;
    const sent = toSend(side.settings, this.controls.modelOf(side.settings));
    if (!sent) {
      side.forget();
      this.shown(side, "type words, and see them on the photo");
      return;
    }
    const started = performance.now();
    const times = [];
    const slow = setTimeout(() => readOut("labelling …"), 400);
    find("stage").setAttribute("aria-busy", "true");
    try {
      for await (const _ of side.label(this.photo.id, sent)) {
        clearTimeout(slow);
        times.push(performance.now() - started);
        this.shown(side, aboutAnswer(side.answer, times));
      }
    } catch (error) {
      if (error.status === 404 && this.photo.file && !this.photo.again) {
        this.openAgain();
        return;
      }
      side.error = onPage(error.message);
      this.shown(side, side.error);
    } finally {
      clearTimeout(slow);
      if (!this.sides.some((one) => one.request)) find("stage").removeAttribute("aria-busy");
    }
  }

  /** The service has let the photo go: it gets it again, and nobody has to know. */
  async openAgain() {
    try {
      this.use({ ...(await upload(this.photo.file, { onBusy: busy })), again: true });
      this.photo.again = false;
    } catch (error) {
      tell("stage-error", error.message);
    }
  }

  shown(side, line) {
    readOut(side.news ? `${side.news} · ${line}` : line);
    this.paint(side);
    this.showDraft();
    if (side === this.side) this.showSide();
  }

  /** Say whether what is seen is refined yet. */
  showDraft() {
    const seen = this.comparing ? this.sides : [this.side];
    const drafts = seen.filter((one) => one.answer?.draft);
    find("draft").hidden = drafts.length === 0;
    say("draft", drafts.some((one) => one.error) ? "not refined" : "refining …");
  }

  paint(side) {
    if (!this.photo) return;
    if (!side.answer) this.stage.setLayer(side.index, null);
    else if (side.heat) this.stage.setLayer(side.index, paintHeat(side.heat.map));
    else {
      const { classes } = side.answer;
      const idOf = (name) => classes.find((one) => one.name === name)?.id ?? null;
      const hidden = new Set([...side.hidden].map(idOf).filter((id) => id !== null));
      const spot = this.spot !== null && side === this.side ? idOf(this.spot) : null;
      this.stage.setLayer(side.index, paintLabels(side.labels, classes, hidden, spot));
    }
  }

  // What is shown of the active side

  showSides() {
    for (const group of document.querySelectorAll(".sides")) group.hidden = !this.comparing;
    for (const mark of document.querySelectorAll(".corner")) mark.hidden = !this.comparing;
    for (const button of document.querySelectorAll("[data-side]")) {
      button.setAttribute("aria-pressed", Number(button.dataset.side) === this.active);
    }
    find("compare").setAttribute("aria-pressed", this.comparing);
    this.stage.setComparing(this.comparing);
    this.showDraft();
    this.controls.show(this.side.settings);
    this.showSide();
  }

  showSide() {
    const { answer, error, heat, hidden } = this.side;
    this.controls.showError(error);
    this.controls.showAdvice(answer?.notes ?? []);
    this.legend.show(answer?.classes ?? null, hidden, heat?.name ?? null);
    showRepeat(answer);
    find("scale").hidden = !heat;
    if (heat) {
      say("scale-low", heat.low.toPrecision(2));
      say("scale-high", `${heat.high.toPrecision(2)} ${heat.name}`);
    }
    const seen = answer ? `Labels: ${described(answer.classes)}` : "Photo without labels";
    find("canvas").setAttribute("aria-label", this.photo ? seen : "No photo yet");
  }

  activate(index) {
    this.active = index;
    this.showSides();
  }

  compare(comparing) {
    this.comparing = comparing;
    if (comparing) {
      const [first, second] = this.sides;
      if (Object.keys(second.settings).length === 0) second.begin(first);
      this.label(second);
    }
    this.activate(comparing ? 1 : 0);
    this.remember();
  }

  switchClasses(names, shown) {
    for (const name of names) {
      if (shown) this.side.hidden.delete(name);
      else this.side.hidden.add(name);
    }
    this.spot = null;
    this.paint(this.side);
    this.showSide();
  }

  point(name) {
    if (this.spot === name || this.side.heat) return;
    this.spot = name;
    this.paint(this.side);
  }

  chooseHeat(name) {
    this.side.heatName = name;
    this.label(this.side);
  }

  probe(point) {
    const box = find("probe");
    const side = point && this.sides[point.side];
    box.hidden = !side?.answer;
    if (box.hidden) return;
    const { width, height, data } = side.labels;
    const x = Math.min(width - 1, Math.floor((point.x * width) / this.photo.picture.naturalWidth));
    const y = Math.min(height - 1, Math.floor((point.y * height) / this.photo.picture.naturalHeight));
    const at = y * width + x;
    const found = side.answer.classes[data[at]];
    const value = side.heat
      ? side.heat.low + (side.heat.map.data[at] / 255) * (side.heat.high - side.heat.low)
      : side.scores.data[at] / 255;
    const name = side.heat ? side.heat.name : (found?.name ?? "unlabelled");
    box.textContent = `${name} ${value.toFixed(2)}`;
    box.style.setProperty("--color", side.heat ? "transparent" : (found?.color ?? "transparent"));
    const { width: wide } = this.stage.size();
    const left = point.left > wide / 2 ? point.left - 12 - box.offsetWidth : point.left + 12;
    box.style.transform = `translate(${Math.max(0, left)}px, ${Math.max(0, point.top - 34)}px)`;
    if (point.keyboard) readOut(`${box.textContent} at ${point.x}, ${point.y}`);
  }

  saveRequest() {
    const { side, photo } = this;
    if (!side.answer) return null;
    const hidden = side.answer.classes.filter((one) => side.hidden.has(one.name)).map((one) => one.id);
    const json = { ...side.sent, opacity: this.opacity, hidden };
    const mark = this.comparing ? `_${"AB"[side.index]}` : "";
    return { path: `/v1/photos/${photo.id}/download`, json, mark };
  }

  // The address

  remember() {
    const sides = this.sides.map((one) => one.settings);
    const { comparing, example, opacity } = this;
    this.hash = writeHash({ sides, comparing, example, opacity });
    history.replaceState(null, "", this.hash);
  }

  followHash() {
    if (location.hash === this.hash) return;
    const state = readHash(location.hash);
    this.sides.forEach((side, index) => (side.settings = state.sides[index]));
    this.comparing = state.comparing;
    this.active = 0;
    this.showSides();
    for (const side of this.comparing ? this.sides : [this.sides[0]]) this.label(side);
  }
}

/** Tell of an error at its place, and in the status line. */
function tell(id, line) {
  say(id, line);
  readOut(line);
}

let page = null;
let given = null;
listenForPhotos((file) => {
  if (page) page.open(file);
  else {
    given = file; // the last: it is opened when the options are there
    say("loading", `loading, then opening ${file.name || "the photo"} …`);
  }
});
try {
  const [options, examples] = await Promise.all(
    ["/v1/options", "/v1/examples"].map(async (path) => (await call(path)).json()),
  );
  say("loading", "");
  page = new Page(options, examples);
  await page.begin(given);
  document.documentElement.dataset.ready = "true";
} catch (error) {
  say("loading", "");
  tell("photo-error", error.message);
}
