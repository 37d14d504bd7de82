// The classes of a side: how much of the photo each has, and which are shown.

import { element, say } from "./controls.js";

const find = (id) => document.getElementById(id);

/** The list of classes. */
export class Legend {
  /**
   * @param {object} on `show(names, shown)`: classes are switched on or off; `spot(name|null)`: one
   *   is pointed at; `heat(name)`: its map is wanted, or no more.
   */
  constructor(on) {
    this.on = on;
    this.names = [];
    find("all").addEventListener("click", () => on.show(this.names, true));
    find("none").addEventListener("click", () => on.show(this.names, false));
  }

  /**
   * Show classes, the largest first.
   *
   * @param {Array} classes of an answer; null where there is none.
   * @param {Set<string>} hidden names that are switched off.
   * @param {string|null} heat the name whose map is shown.
   */
  show(classes, hidden, heat) {
    const found = (classes ?? []).filter((one) => one.coverage > 0 || one.name === heat)
      .sort((one, other) => other.coverage - one.coverage);
    const absent = (classes ?? []).filter((one) => one.coverage === 0 && one.name !== heat);
    this.names = (classes ?? []).map((one) => one.name);
    find("legend-empty").hidden = Boolean(classes);
    find("all").disabled = find("none").disabled = found.length === 0;
    const focused = document.activeElement?.dataset?.key;
    find("legend").replaceChildren(...found.map((one) => this.row(one, hidden, heat)));
    if (focused) find("legend").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    find("absent").hidden = absent.length === 0;
    const [summary, list] = find("absent").children;
    summary.textContent = `${absent.length} without a pixel`;
    list.textContent = absent.map((one) => one.name).join(", ");
  }

  row({ name, words, color, coverage, mean_score: score }, hidden, heat) {
    const box = element("input", { type: "checkbox", checked: !hidden.has(name) });
    box.addEventListener("change", () => this.on.show([name], box.checked));
    box.dataset.key = `show ${name}`;
    box.style.setProperty("--color", color);
    const label = element("label", { title: words.join(", ") }, box,
      element("span", { className: "name", textContent: name }));
    const only = element("button", { type: "button", className: "small", textContent: "only" });
    only.dataset.key = `only ${name}`;
    only.setAttribute("aria-label", `Only ${name}`);
    only.addEventListener("click", () => {
      this.on.show(this.names, false);
      this.on.show([name], true);
    });
    const map = element("button", { type: "button", className: "small", textContent: "heat" });
    map.dataset.key = `heat ${name}`;
    map.setAttribute("aria-label", `Heat map of ${name}`);
    map.setAttribute("aria-pressed", name === heat);
    map.addEventListener("click", () => this.on.heat(name === heat ? null : name));
    const row = element("li", {}, label,
      element("span", { className: "figure", textContent: percent(coverage) }),
      element("span", {
        className: "figure quiet",
        textContent: score === null ? "–" : score.toFixed(2),
        title: "mean score",
      }), only, map);
    row.style.setProperty("--share", `${100 * coverage}%`);
    row.style.setProperty("--color", color);
    row.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") this.on.spot(name);
    });
    row.addEventListener("pointerleave", () => this.on.spot(null));
    return row;
  }
}

/** Say in one line what a photo is labelled with, for those who do not see it. */
export function described(classes) {
  return classes.filter((one) => one.coverage > 0)
    .sort((one, other) => other.coverage - one.coverage)
    .slice(0, 8).map((one) => `${one.name} ${percent(one.coverage)}`).join(", ");
}

/** Show a line about the labels. */
export function readOut(line) {
  say("readout", line);
  find("readout").title = line;
}

/** Say that the service is busy. */
export function busy(seconds) {
  readOut(`the service is busy: again in ${seconds} s`);
}

/**
 * Say in one line how an answer came.
 *
 * @param {object} answer
 * @param {number[]} times ms until there was something to show, and until it was refined.
 */
export function aboutAnswer(answer, times) {
  const took = times.map((time) => `${Math.round(time)} ms`).join(", refined ");
  const parts = [answer.model, answer.method, took];
  if (answer.draft) parts.push("refining …");
  if (!answer.network_ran) parts.push("features reused");
  if (answer.why) parts.push(answer.why);
  return parts.join(" · ");
}

function percent(share) {
  const value = 100 * share;
  return value > 0 && value < 0.1 ? "<0.1 %" : `${value.toFixed(1)} %`;
}
