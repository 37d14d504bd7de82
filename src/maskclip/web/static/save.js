// Taking results along: files of the labels, and the lines that repeat what is seen.

import { call } from "./api.js";
import { say } from "./controls.js";

const find = (id) => document.getElementById(id);

/**
 * Let the buttons save.
 *
 * @param {() => {path: string, json: object, mark: string} | null} request what is shown, as it is
 *   requested; names of files end in the mark.
 */
export function listenForSaves(request) {
  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", async () => {
      const shown = request();
      if (!shown || button.getAttribute("aria-busy") === "true") return;
      button.setAttribute("aria-busy", "true");
      try {
        const what = button.dataset.save;
        const response = await call(shown.path, { json: { ...shown.json, what } });
        const name = nameOf(response) ?? `${what}.png`;
        save(await response.blob(), name.replace(/(?=\.\w+$)/, shown.mark));
        say("save-error", "");
      } catch (error) {
        say("save-error", error.message);
      } finally {
        button.removeAttribute("aria-busy");
      }
    });
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(button));
  }
}

/** Show the lines that repeat an answer; null shows none. */
export function showRepeat(answer) {
  say("command", answer?.command ?? "");
  say("python", answer?.python ?? "");
  for (const button of document.querySelectorAll("#save-panel button")) button.disabled = !answer;
}

async function copy(button) {
  const place = find(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(place.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(place); // without TLS browsers refuse: Ctrl+C does the rest
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2500);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function nameOf(response) {
  return /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
}
