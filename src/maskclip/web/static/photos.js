// Where photos come from: a file, a drop, the clipboard, an example.

import { call, ServiceError } from "./api.js";
import { element } from "./controls.js";

const find = (id) => document.getElementById(id);

/**
 * Take photos from everywhere.
 *
 * @param {(file: File) => void} onFile called when one is given, also before this was called.
 */
export function listenForPhotos(onFile) {
  const input = find("file");
  const take = () => {
    if (input.files[0]) onFile(input.files[0]);
    input.value = ""; // the same file may be chosen again
  };
  input.addEventListener("change", take);
  document.addEventListener("paste", (event) => {
    const file = firstImage(event.clipboardData);
    if (!file) return; // text is pasted as text
    event.preventDefault();
    onFile(file);
  });
  const stage = find("stage");
  document.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    stage.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) stage.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    stage.classList.remove("dropping");
    if (event.dataTransfer.files.length === 0) return;
    event.preventDefault(); // also a file that is none: the browser would leave the page for it
    onFile(event.dataTransfer.files[0]);
  });
  take();
}

/**
 * Show pictures to try.
 *
 * @param {Array} examples of `/v1/examples`.
 * @param {(example: object) => void} onExample called when one is chosen.
 */
export function showExamples(examples, onExample) {
  find("examples").replaceChildren(...examples.map((one) => {
    const picture = element("img", { src: one.image, alt: "", loading: "lazy" });
    const button = element("button", { type: "button" }, picture,
      element("span", { textContent: one.title }));
    button.addEventListener("click", () => onExample(one));
    return element("li", {}, button);
  }));
}

/** Return the file of an example. */
export async function exampleFile({ name, image }) {
  const blob = await (await call(image)).blob();
  return new File([blob], `${name}.png`, { type: blob.type });
}

/** Upload a photo: what the service says of it, with the file and the picture to show. */
export async function upload(file, { signal, onBusy } = {}) {
  const form = new FormData();
  form.append("image", file, file.name || "photo.png");
  const photo = await (await call("/v1/photos", { form, signal, onBusy })).json();
  return { ...photo, file, picture: await pictureOf(photo.id) };
}

/** Return a photo that the service has, as it is shown. */
export async function pictureOf(id) {
  const picture = new Image();
  picture.src = `/v1/photos/${encodeURIComponent(id)}/image`;
  try {
    await picture.decode();
  } catch {
    throw new ServiceError("no such photo: it may have been kept too long; open it again", 404);
  }
  return picture;
}

function firstImage(data) {
  return [...(data?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
