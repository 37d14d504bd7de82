// Words and settings as a form: it shows the settings of one side, and tells when they change.

import { call } from "./api.js";
import { hasPreset, withPreset } from "./settings.js";

const NUMBERS = ["short_side", "window", "stride", "key_smoothing", "prompt_denoising"];
/**
 * Where the line of an error belongs, by its beginning: its end is advice, and names other fields.
 * All else is about the words.
 */
const PLACES = [
  ["background", /^`?background\b|^\S+ has learnt a background\b/],
  ["window", /^`?(window|stride)\b|^the model would see\b/],
  ["fine", /^`?(short_side|key[_ ]smoothing|prompt[_ ]denoising|regions)\b/],
  ["method", /^(no )?`?method\b/],
  ["refine", /^(no |the |unknown )?`?refine(ment)?\b|^surgery\b|^[\d,]+ classes at .* to refine\b/],
  ["model", /^(no )?`?(model|weights)\b/],
];
/** What lines of the service advise to programs, and what does so on the page. */
const ADVICE = [
  [/`background=([\d.]+)`/, "Background “below a threshold”, $1"],
  [/`maskclip vocabularies \S+` lists/, "“Words that this model knows” lists"],
];

const find = (id) => document.getElementById(id);

/** The form. */
export class Controls {
  /**
   * @param {object} options of `/v1/options`.
   * @param {(settings: object) => void} onChange called with new settings when one changes.
   */
  constructor(options, onChange) {
    this.options = options;
    this.onChange = onChange;
    this.settings = {};
    this.known = null;
    this.fill();
    this.listen();
  }

  /** The model of settings, as `/v1/options` describes it. */
  modelOf(settings) {
    const { models } = this.options;
    return models.find((one) => one.name === settings.model) ?? models[0];
  }

  fill() {
    const { models, methods, refinements, vocabularies, regions, windows, presets } = this.options;
    choices("model", models.map((one) => [one.default ? "" : one.name, one.name]));
    choices("method", [["", "clean (default)"], ...methods
      .filter((one) => one.name !== "clean").map((one) => [one.name, one.name])]);
    choices("refine", refinements.map((one) => [one.name, one.name || "the model's own"]));
    choices("vocabulary", vocabularies.map((one) => [one.name, `${one.name} (${one.count})`]));
    choices("regions", regions.map((one) => [one.name, one.name || "off"]));
    choices("windows", [...windows.map((one, index) => [String(index), windowName(one)]),
      ["own", "own numbers"]]);
    find("presets").replaceChildren(...presets.map((one) => {
      const button = element("button", { type: "button", textContent: one.name, title: one.note });
      button.addEventListener("click", () => this.change(withPreset(this.settings, one)));
      return button;
    }));
    if (!models.some((one) => one.kind === "clip" || one.kind === "student")) {
      find("offline").hidden = false;
      find("offline").textContent =
        "No weights of CLIP are on this machine: these models come with the package. They know " +
        "few words; a CLIP takes any. maskclip download ViT-B-16:openai fetches one.";
    }
  }

  listen() {
    const text = (id, name = id) =>
      find(id).addEventListener("input", () => this.set({ [name]: find(id).value }));
    text("words");
    for (const name of ["model", "method", "refine", "regions", "vocabulary"]) text(name);
    for (const name of NUMBERS) {
      find(name).addEventListener("input", () => {
        const { value, valueAsNumber } = find(name);
        this.set({ [name]: value === "" ? undefined : valueAsNumber });
      });
    }
    for (const radio of document.getElementsByName("kind")) {
      radio.addEventListener("change", () => this.set({
        vocabulary: radio.value === "words" ? undefined : this.suggested(),
      }));
    }
    find("background-kind").addEventListener("input", ({ target }) => {
      const values = { none: undefined, threshold: "0.5", words: find("background-words").value };
      this.set({ background: values[target.value] });
      this.showBackground(target.value);
    });
    for (const id of ["threshold", "threshold-range"]) {
      find(id).addEventListener("input", () => this.set({ background: find(id).value }));
    }
    text("background-words", "background");
    find("windows").addEventListener("input", ({ target }) => {
      const one = this.options.windows[Number(target.value)];
      if (!one) {
        find("fine").open = true;
        find("window").focus();
        return;
      }
      const { window, stride, short_side } = one;
      this.set({ window: window ?? undefined, stride, short_side });
    });
    find("known").addEventListener("toggle", () => this.showKnown());
  }

  /** The vocabulary to begin with: the model's own words, or the first. */
  suggested() {
    return this.modelOf(this.settings).vocabulary ?? "voc20";
  }

  set(values) {
    this.change({ ...this.settings, ...values });
  }

  change(settings) {
    this.show(settings);
    this.onChange(settings);
  }

  /** Show settings; what is typed into stays as it is. */
  show(settings) {
    this.settings = settings;
    const model = this.modelOf(settings);
    put("words", settings.words);
    for (const name of ["method", "refine", "regions", ...NUMBERS]) put(name, settings[name]);
    put("model", model.default ? "" : model.name);
    put("vocabulary", settings.vocabulary);
    const kind = settings.vocabulary ? "vocabulary" : "words";
    for (const radio of document.getElementsByName("kind")) {
      radio.checked = radio.value === kind;
      radio.disabled = !model.takes_words;
    }
    find("words-part").hidden = kind !== "words" || !model.takes_words;
    find("vocabulary-part").hidden = kind !== "vocabulary" || !model.takes_words;
    find("own-classes").hidden = model.needs_words;
    find("method").disabled = !model.takes_methods;
    find("background-kind").disabled = !model.takes_words;
    find("known").hidden = !model.vocabulary;
    if (find("known").open) this.showKnown();
    this.showBackground(kindOfBackground(settings.background));
    this.showNotes(model);
  }

  showNotes(model) {
    const { settings, options } = this;
    const of = (list, name) => list.find((one) => one.name === (name ?? ""));
    const method = of(options.methods, settings.method || "clean");
    const vocabulary = of(options.vocabularies, settings.vocabulary);
    const index = windowOf(options.windows, settings);
    const preset = options.presets.find((one) => hasPreset(settings, one));
    find("windows").value = index < 0 ? "own" : String(index);
    say("model-note", model.note);
    say("method-note", model.takes_methods ? aboutMethod(method) : "this model is read in one way");
    const refine = of(options.refinements, settings.refine)?.note ?? "";
    say("refine-note", settings.refine ? refine : `${refine}: ${model.refine}`);
    say("vocabulary-note", vocabulary?.note ?? "");
    say("windows-note", index < 0 ? "the numbers below" : options.windows[index].note);
    say("preset-note", preset?.note ?? "your own settings");
    [...find("presets").children].forEach((button, at) => {
      const one = options.presets[at];
      button.setAttribute("aria-pressed", one === preset);
      button.disabled = Boolean(one.settings.method) && !model.takes_methods;
    });
  }

  showBackground(kind) {
    const { background } = this.settings;
    find("background-kind").value = kind;
    find("threshold-part").hidden = kind !== "threshold";
    find("background-words").hidden = kind !== "words";
    if (kind === "threshold") {
      put("threshold", background);
      put("threshold-range", background);
    } else if (kind === "words") put("background-words", background);
    const at = ["none", "threshold", "words"].indexOf(kind);
    say("background-note", this.options.backgrounds[at]?.note ?? "");
  }

  async showKnown() {
    const { vocabulary } = this.modelOf(this.settings);
    if (!vocabulary || this.known === vocabulary) return;
    this.known = vocabulary;
    const { classes } = await (await call(`/v1/vocabularies/${vocabulary}`)).json();
    find("known-words").replaceChildren(...classes.map(({ name }) => {
      const button = element("button", { type: "button", textContent: name });
      button.addEventListener("click", () => this.set({ words: withWord(this.settings.words, name) }));
      return button;
    }));
  }

  /** Show the line of an error beside what it is about; null shows none. */
  showError(line) {
    const place = line && (PLACES.find(([, pattern]) => pattern.test(line))?.[0] ?? "words");
    for (const name of ["words", "fine", ...PLACES.map(([first]) => first)]) {
      say(`${name}-error`, name === place ? line : "");
    }
    if (place === "fine") find("fine").open = true;
  }

  /** Show what is worth knowing about the labels that came. */
  showAdvice(lines) {
    find("notes").replaceChildren(...lines.map((line) => element("li", { textContent: line })));
  }
}

/** Return an error's line as it is said on the page. */
export function onPage(line) {
  return ADVICE.reduce((said, [pattern, here]) => said.replace(pattern, here), line);
}

/** Make an element with properties. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Show a line, or nothing; what is said already is not said again to screen readers. */
export function say(id, line) {
  const place = find(id);
  if (place.textContent !== line) place.textContent = line;
}

function put(id, value) {
  const text = value === undefined || value === null ? "" : String(value);
  const field = find(id);
  if (field.value !== text && !(field === document.activeElement && Number(field.value) === value)) {
    field.value = text;
  }
}

function choices(id, pairs) {
  find(id).replaceChildren(...pairs.map(([value, text]) =>
    element("option", { value, textContent: text })));
}

function kindOfBackground(text) {
  if (text === undefined || text === null || text === "none") return "none";
  return text.trim() !== "" && Number.isFinite(Number(text)) ? "threshold" : "words";
}

function windowName({ window, stride, short_side: side }) {
  if (!window) return "whole photo";
  const parts = [`${window} px`, stride && `step ${stride}`, side && `photo at ${side}`];
  return parts.filter(Boolean).join(", ");
}

function windowOf(windows, settings) {
  return windows.findIndex((one) => ["window", "stride", "short_side"]
    .every((name) => (one[name] ?? "") === (settings[name] ?? "")));
}

function aboutMethod(method) {
  if (!method) return "";
  const parts = [method.note];
  if (method.from) parts.push(method.from);
  if (method.published) parts.push(`published: ${method.published} mIoU`);
  if (method.time && method.time >= 1.1) parts.push(`takes ${method.time} times as long`);
  return parts.join(" · ");
}

function withWord(words, word) {
  const before = (words ?? "").trim();
  if (before.split(/[,;\n=]/).some((one) => one.trim() === word)) return words;
  if (!before) return word;
  return /[,;]$/.test(before) ? `${before} ${word}` : `${before}${joint(before)} ${word}`;
}

/** A class with synonyms ends at a semicolon: a comma would be within it. */
function joint(words) {
  return words.split(/[;\n]/).at(-1).includes("=") ? ";" : ",";
}
