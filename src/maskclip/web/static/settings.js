// What one side of the page is labelled with, and how it is written in the address of the page.

/** Options beside words, model and background: what presets set. */
export const OPTIONS = [
  "method",
  "refine",
  "key_smoothing",
  "prompt_denoising",
  "regions",
  "short_side",
  "window",
  "stride",
];
const FIELDS = ["words", "vocabulary", "background", "model", ...OPTIONS];
const NUMBERS = ["key_smoothing", "prompt_denoising", "short_side", "window", "stride"];

/**
 * Return what is sent to the service, or null where there are no words yet.
 *
 * @param {object} settings values by field; words stay there while a vocabulary is chosen.
 * @param {object} model as `/v1/options` describes it.
 */
export function toSend(settings, model) {
  const sent = Object.fromEntries(
    FIELDS.filter((name) => isSet(settings[name])).map((name) => [name, settings[name]]),
  );
  if (!model.takes_words) {
    delete sent.words;
    delete sent.vocabulary;
    delete sent.background;
  } else if (sent.vocabulary) {
    delete sent.words;
  } else if (!sent.words?.replaceAll(/[\s,;]/g, "")) {
    if (model.needs_words) return null;
    delete sent.words;
    delete sent.background;
  }
  if (!model.takes_methods) delete sent.method;
  return sent;
}

/** Return settings with other options: those of a preset, and no others. */
export function withPreset(settings, preset) {
  const kept = Object.fromEntries(Object.entries(settings).filter(([name]) => !OPTIONS.includes(name)));
  return { ...kept, ...preset.settings };
}

/** Whether settings have the options of a preset, and no others. */
export function hasPreset(settings, preset) {
  return OPTIONS.every((name) => (settings[name] ?? "") === (preset.settings[name] ?? ""));
}

/** Return the state that the hash of an address tells; unknown parts are left out. */
export function readHash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const sides = ["", "b."].map((prefix) => {
    const side = {};
    for (const name of FIELDS) {
      const text = given.get(prefix + name);
      if (text === null || text === "") continue;
      const value = NUMBERS.includes(name) ? Number(text) : text;
      if (value === value) side[name] = value;
    }
    return side;
  });
  const opacity = Number.parseFloat(given.get("opacity"));
  return {
    sides,
    comparing: given.has("compare"),
    example: given.get("example"),
    opacity: opacity >= 0 && opacity <= 1 ? opacity : 0.62,
  };
}

/** Return the hash of an address that tells the state; see `readHash`. */
export function writeHash({ sides, comparing, example, opacity }) {
  const state = new URLSearchParams();
  sides.slice(0, comparing ? 2 : 1).forEach((side, index) => {
    for (const name of FIELDS) {
      if (isSet(side[name])) state.set((index ? "b." : "") + name, side[name]);
    }
  });
  if (comparing) state.set("compare", "1");
  if (example) state.set("example", example);
  if (opacity !== 0.62) state.set("opacity", opacity);
  return `#${state}`;
}

function isSet(value) {
  return value !== undefined && value !== null && value !== "";
}
