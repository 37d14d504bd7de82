// A side of the page: its settings, and the labels that come for them, first as a draft.

import { call } from "./api.js";
import { decode } from "./layers.js";
import { busy } from "./legend.js";

const CLASSES = ["words", "vocabulary", "background"];

export class Side {
  constructor(index, settings) {
    this.index = index;
    this.settings = settings;
    this.hidden = new Set();
    this.heatName = null;
    this.lent = null; // by an example: {before, chosen}
    this.news = ""; // what is said of its settings until they change
    this.forget();
  }

  /** Begin as another side is. */
  begin({ settings, lent, hidden, answer, labels, scores, sent }) {
    Object.assign(this, { settings: { ...settings }, lent, answer, labels, scores, sent });
    this.hidden = new Set(hidden);
  }

  /** Take what an example chooses, until `giveBack`. */
  borrow(chosen, before = this.settings) {
    const still = this.lent && this.settings.model === this.lent.chosen.model;
    this.lent = { before: still ? this.lent.before : before, chosen };
    this.settings = { ...this.settings, ...chosen };
  }

  /**
   * Go back to the model that was there before an example chose one, and to its words, unless
   * others were typed meanwhile; return whether the model has changed.
   */
  giveBack() {
    const { before, chosen } = this.lent ?? { before: this.settings, chosen: this.settings };
    this.lent = null;
    const { settings } = this;
    if (settings.model !== chosen.model || settings.model === before.model) return false;
    const typed = CLASSES.some((name) => settings[name] !== chosen[name]);
    const names = typed ? ["model"] : ["model", ...CLASSES];
    this.settings = { ...settings, ...Object.fromEntries(names.map((name) => [name, before[name]])) };
    return true;
  }

  /** Without labels: they were of another photo. */
  forget() {
    this.stop();
    this.answer = this.labels = this.scores = this.heat = this.error = null;
  }

  /** Nothing that is under way, or was to be, is wanted any more. */
  stop() {
    this.request?.abort();
    this.request = null;
    clearTimeout(this.timer);
  }

  /**
   * Label a photo, and yield each time that there is more to show: a draft, where refining takes
   * its time, then the whole. What another call, or `stop`, has overtaken yields nothing more.
   *
   * @param {string} photo its id.
   * @param {object} sent words and options.
   * @throws {ServiceError} the service refused; what came before stays.
   */
  async *label(photo, sent) {
    this.stop();
    const request = (this.request = new AbortController());
    const { signal } = request;
    const same = JSON.stringify(sent) === JSON.stringify(this.sent) && this.answer?.draft === false;
    const ask = (what, json) =>
      call(`/v1/photos/${photo}/${what}`, { json: { ...sent, ...json }, signal, onBusy: busy });
    try {
      let found = same ? this : await labelsOf(await ask("labels", { draft: true }));
      for (;;) {
        const { answer, labels, scores } = found;
        const heat = await heatOf(answer, this.heatName, ask);
        if (signal.aborted) return;
        Object.assign(this, { answer, labels, scores, heat, sent, error: null });
        yield;
        if (!answer.draft || signal.aborted) return;
        found = await labelsOf(await ask("labels"));
        found.answer.network_ran ||= answer.network_ran;
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      if (this.request === request) this.request = null;
    }
  }
}

async function labelsOf(response) {
  const answer = await response.json();
  const { labels, bits, scores } = answer;
  return { answer, labels: await decode(labels, bits), scores: await decode(scores) };
}

async function heatOf({ classes, draft }, heatName, ask) {
  const wanted = classes.find((one) => one.name === heatName);
  if (!wanted) return null;
  const response = await ask("heat", { id: wanted.id, draft });
  const [low, high] = ["X-Low", "X-High"].map((name) => Number(response.headers.get(name)));
  return { name: wanted.name, low, high, map: await decode(await response.blob()) };
}
