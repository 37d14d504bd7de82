// Answers as pictures: class ids and scores are decoded, and drawn as layers over the photo.

import { specks } from "./specks.js";

const LIGHT = pixel(255, 255, 255, 230);
const DARK = pixel(0, 0, 0, 115);
const FAINT = 0.2; // of the classes that are not pointed at

/** Decode a PNG, base64 or a Blob: {width, height, data}, ids or levels, row by row. */
export async function decode(png, bits = 8) {
  const blob = typeof png === "string" ? blobOf(png) : png;
  const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, exact);
  const { width, height } = bitmap;
  const context = canvasOf(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = bits > 8 ? new Uint16Array(width * height) : new Uint8Array(width * height);
  for (let i = 0; i < data.length; i += 1) {
    data[i] = bits > 8 ? rgba[4 * i] + 256 * rgba[4 * i + 1] : rgba[4 * i];
  }
  return { width, height, data };
}

/**
 * Draw class ids: {colors, lines}, two canvases of their size; hidden classes are transparent, and
 * specks have no line around them.
 *
 * @param {object} labels of `decode`.
 * @param {Array} classes the legend, by id.
 * @param {Set<number>} hidden ids that are switched off.
 * @param {number|null} spot the id that is pointed at: others are faint.
 */
export function paintLabels(labels, classes, hidden, spot = null) {
  const { width, height, data } = labels;
  const table = new Uint32Array(65536);
  for (const { id, color } of classes) {
    if (hidden.has(id)) continue;
    const [red, green, blue] = [1, 3, 5].map((at) => Number.parseInt(color.slice(at, at + 2), 16));
    table[id] = pixel(red, green, blue, spot === null || spot === id ? 255 : 255 * FAINT);
  }
  const small = (labels.specks ??= specks(labels)); // of labels that are painted many times
  const colors = new Uint32Array(data.length);
  const lines = new Uint32Array(data.length);
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1) {
      const here = data[i];
      colors[i] = table[here];
      const meets = (j) =>
        here !== data[j] && !small[i] && !small[j] && (table[here] || table[data[j]]);
      if ((x + 1 < width && meets(i + 1)) || (y + 1 < height && meets(i + width))) {
        border(lines, i, x, width);
      }
    }
  }
  return { colors: toCanvas(colors, width, height), lines: toCanvas(lines, width, height) };
}

/** Draw a heat map: {colors}, a canvas. */
export function paintHeat({ width, height, data }) {
  const colors = new Uint32Array(data.length);
  for (let i = 0; i < data.length; i += 1) colors[i] = HEAT[data[i]];
  return { colors: toCanvas(colors, width, height), lines: null };
}

/** Draw the colours of heat maps, from low to high, into a canvas. */
export function paintScale(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    const [red, green, blue] = heatColor(x / (canvas.width - 1));
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

/** Return a photo as the ground that colours are told apart on: grey, and of less contrast. */
export function paintGround(photo) {
  const canvas = canvasOf(photo.naturalWidth, photo.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(photo, 0, 0);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  const { data } = image;
  for (let i = 0; i < data.length; i += 4) {
    const grey = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
    data[i] = data[i + 1] = data[i + 2] = 128 + 0.75 * (grey - 128);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Return the part of a picture that lies under a layer, as a canvas. */
export function cutOut(picture, layer) {
  const canvas = canvasOf(layer.width, layer.height);
  const context = canvas.getContext("2d");
  context.drawImage(layer, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.drawImage(picture, 0, 0, layer.width, layer.height);
  return canvas;
}

/** A light line with a dark one beside it: seen on any photo and between any two colours. */
function border(lines, i, x, width) {
  lines[i] = LIGHT;
  for (const beside of [x ? i - 1 : i, i - width, x + 1 < width ? i + 1 : i, i + width]) {
    if (beside >= 0 && beside < lines.length && lines[beside] === 0) lines[beside] = DARK;
  }
}

const HEAT_STOPS = [
  [12, 10, 40],
  [86, 15, 109],
  [187, 55, 84],
  [249, 142, 9],
  [252, 255, 190],
];

function heatColor(share) {
  const place = share * (HEAT_STOPS.length - 1);
  const from = Math.min(Math.floor(place), HEAT_STOPS.length - 2);
  return HEAT_STOPS[from].map((low, channel) =>
    Math.round(low + (place - from) * (HEAT_STOPS[from + 1][channel] - low)),
  );
}

const HEAT = Uint32Array.from({ length: 256 }, (_, level) => pixel(...heatColor(level / 255), 255));

/** A pixel as it lies in memory: every machine with a browser has the least byte first. */
function pixel(red, green, blue, alpha) {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function toCanvas(pixels, width, height) {
  const canvas = canvasOf(width, height);
  const bytes = new Uint8ClampedArray(pixels.buffer);
  canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
  return canvas;
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function blobOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return new Blob([bytes], { type: "image/png" });
}
