// The photo with its layers: zoom, pan, the divider between two sides, and what is pointed at.

import { cutOut, paintGround } from "./layers.js";

const LEAST_ZOOM = 0.05;
const MOST_ZOOM = 32;
const STEP = 1.3;
const PAN = 40; // px, by an arrow key

/** The view. It knows pixels of the photo, and nothing of classes. */
export class Stage {
  /**
   * @param {HTMLElement} view holds canvas and divider.
   * @param {object} on `probe(point)`: what is pointed at, {x, y, side, left, top, keyboard} or
   *   null; `zoom(scale)`; `divide(share)`.
   */
  constructor(view, on) {
    this.view = view;
    this.canvas = view.querySelector("canvas");
    this.divider = view.querySelector('[role="slider"]');
    this.on = on;
    this.photo = null;
    this.layers = [null, null];
    this.opacity = 1;
    this.comparing = false;
    this.split = 0.5;
    this.mark = null;
    this.scale = 1;
    this.x = this.y = 0;
    this.fitted = true;
    this.dragging = false;
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(view);
  }

  /** Show another photo, an <img>, the whole of it. */
  setPhoto(photo) {
    this.photo = photo;
    this.ground = photo && paintGround(photo);
    this.layers = [null, null];
    this.mark = null;
    this.fit();
  }

  /** Lay colours over a side: {colors, lines} of layers.js, or null for the photo alone. */
  setLayer(side, layer) {
    this.layers[side] = layer && { ...layer, ground: cutOut(this.ground, layer.colors) };
    this.draw();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.draw();
  }

  setComparing(comparing) {
    this.comparing = comparing;
    this.divider.hidden = !comparing;
    this.setSplit(this.split);
  }

  setSplit(share) {
    this.split = Math.min(1, Math.max(0, share));
    this.divider.style.left = `${100 * this.split}%`;
    this.divider.setAttribute("aria-valuenow", Math.round(100 * this.split));
    this.draw();
  }

  fit() {
    if (!this.photo) return this.draw();
    const { width, height } = this.size();
    const least = Math.min(width / this.photo.naturalWidth, height / this.photo.naturalHeight);
    this.fitted = true;
    this.scale = Math.min(least, 4);
    this.x = (width - this.photo.naturalWidth * this.scale) / 2;
    this.y = (height - this.photo.naturalHeight * this.scale) / 2;
    this.moved();
  }

  /** Zoom to a scale around a point of the view, or its middle. */
  zoomTo(scale, at = null) {
    if (!this.photo) return;
    const { width, height } = this.size();
    const [x, y] = at ?? [width / 2, height / 2];
    const next = Math.min(MOST_ZOOM, Math.max(LEAST_ZOOM, scale));
    this.x = x - ((x - this.x) * next) / this.scale;
    this.y = y - ((y - this.y) * next) / this.scale;
    this.scale = next;
    this.fitted = false;
    this.moved();
  }

  zoomBy(factor, at = null) {
    this.zoomTo(this.scale * factor, at);
  }

  pan(dx, dy) {
    if (!this.photo) return;
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.moved();
  }

  size() {
    return { width: this.view.clientWidth, height: this.view.clientHeight };
  }

  resize() {
    const { width, height } = this.size();
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    if (this.fitted) this.fit();
    else this.moved();
  }

  /** Some of the photo stays in view, wherever it was moved to. */
  moved() {
    const { width, height } = this.size();
    const wide = this.photo ? this.photo.naturalWidth * this.scale : 0;
    const high = this.photo ? this.photo.naturalHeight * this.scale : 0;
    this.x = Math.min(width - 32, Math.max(32 - wide, this.x));
    this.y = Math.min(height - 32, Math.max(32 - high, this.y));
    this.canvas.style.touchAction = this.fitted ? "pan-y" : "none";
    this.on.zoom(this.scale);
    this.draw();
  }

  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.drawNow();
    });
  }

  drawNow() {
    const context = this.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.photo) return;
    const { width, height } = this.size();
    const middle = this.comparing ? this.split * width : width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawSide(context, this.layers[0], 0, middle, height);
    if (this.comparing) this.drawSide(context, this.layers[1], middle, width, height);
    if (this.mark) this.drawMark(context);
  }

  drawSide(context, layer, left, right, height) {
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, height);
    context.clip();
    context.translate(this.x, this.y);
    context.scale(this.scale, this.scale);
    context.imageSmoothingEnabled = this.scale < 3;
    const { naturalWidth: width, naturalHeight: high } = this.photo;
    const lay = (picture, alpha) => {
      context.globalAlpha = alpha;
      context.drawImage(picture, 0, 0, width, high);
    };
    lay(this.photo, 1);
    if (layer && this.opacity > 0) {
      lay(layer.ground, Math.min(1, 2 * this.opacity));
      lay(layer.colors, this.opacity);
      if (layer.lines) lay(layer.lines, 1);
    }
    context.restore();
  }

  drawMark(context) {
    const x = this.x + (this.mark.x + 0.5) * this.scale;
    const y = this.y + (this.mark.y + 0.5) * this.scale;
    for (const [color, line] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.beginPath();
      context.arc(x, y, 6, 0, 7);
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + 6 * dx, y + 6 * dy);
        context.lineTo(x + 12 * dx, y + 12 * dy);
      }
      context.stroke();
    }
  }

  /** Return what lies at a place of the view, or null beside the photo. */
  pointAt(left, top, keyboard = false) {
    if (!this.photo) return null;
    const x = Math.floor((left - this.x) / this.scale);
    const y = Math.floor((top - this.y) / this.scale);
    const inside = x >= 0 && y >= 0 && x < this.photo.naturalWidth && y < this.photo.naturalHeight;
    if (!inside) return null;
    const side = this.comparing && left >= this.split * this.size().width ? 1 : 0;
    return { x, y, side, left, top, keyboard };
  }

  listen() {
    const { canvas, divider, pointers } = this;
    const place = (event) => {
      const box = this.view.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.06 : 0.0016)), place(event));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoomBy(2, place(event)));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place(event));
      this.mark = null;
      this.on.probe(this.pointAt(...place(event)));
    });
    canvas.addEventListener("pointermove", (event) => this.pointerMoved(event, place(event)));
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        pointers.delete(event.pointerId);
        this.dragging = pointers.size > 0 && this.dragging;
      });
    }
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.on.probe(null);
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.setMark(null));

    divider.addEventListener("pointerdown", (event) => {
      divider.setPointerCapture(event.pointerId);
      event.preventDefault();
      divider.focus();
    });
    divider.addEventListener("pointermove", (event) => {
      if (divider.hasPointerCapture(event.pointerId)) {
        this.setSplit(place(event)[0] / this.size().width);
      }
    });
    divider.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02 };
      const ends = { Home: 0, End: 1 };
      if (event.key in steps) this.setSplit(this.split + steps[event.key]);
      else if (event.key in ends) this.setSplit(ends[event.key]);
      else return;
      event.preventDefault();
    });
  }

  pointerMoved(event, [left, top]) {
    const { pointers } = this;
    const before = pointers.get(event.pointerId);
    if (!before) {
      this.on.probe(this.pointAt(left, top));
      return;
    }
    if (pointers.size === 2) {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const apart = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
      this.zoomBy(apart([left, top]) / Math.max(1, apart(before)), other);
    } else if (!(this.fitted && event.pointerType === "touch")) {
      const far = Math.hypot(left - before[0], top - before[1]) > 3;
      if (!far && !this.dragging) return;
      this.dragging = true;
      this.pan(left - before[0], top - before[1]);
      this.on.probe(null);
    }
    pointers.set(event.pointerId, [left, top]);
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move && event.shiftKey) this.moveMark(...move);
    else if (move) this.pan(-PAN * move[0], -PAN * move[1]);
    else if (event.key === "+" || event.key === "=") this.zoomBy(STEP);
    else if (event.key === "-") this.zoomBy(1 / STEP);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.zoomTo(1);
    else if (event.key === "Escape") this.setMark(null);
    else return;
    event.preventDefault();
  }

  moveMark(dx, dy) {
    if (!this.photo) return;
    const { naturalWidth: width, naturalHeight: height } = this.photo;
    const step = Math.max(1, Math.round(8 / this.scale));
    const from = this.mark ?? { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    this.setMark({
      x: Math.min(width - 1, Math.max(0, from.x + dx * step)),
      y: Math.min(height - 1, Math.max(0, from.y + dy * step)),
    });
  }

  setMark(mark) {
    if (!mark && !this.mark) return;
    this.mark = mark;
    this.draw();
    if (!mark) return this.on.probe(null);
    const left = this.x + (mark.x + 0.5) * this.scale;
    const top = this.y + (mark.y + 0.5) * this.scale;
    this.on.probe(this.pointAt(left, top, true));
  }
}
