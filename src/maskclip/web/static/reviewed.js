/* The photos of a review as they are listed: what was made of each, and which are shown. */

const MARKS = { accepted: "✓", rejected: "✕", corrected: "✎", open: "" };

/** Return what was made of a photo: accepted, rejected, corrected or open. */
export function stateOf(photo) {
  return photo.state === "open" && photo.corrected ? "corrected" : photo.state;
}

export function span(kind, text = "") {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  return element;
}

export class PhotoList {
  /**
   * @param {Array} photos as the service describes them, in their order.
   * @param {object} parts the elements `list`, `filter` and `progress`.
   * @param {function(number)} onChoose is called with the place of a photo that is clicked.
   */
  constructor(photos, parts, onChoose) {
    Object.assign(this, { photos, parts, at: -1 });
    this.places = new Map(photos.map((photo, index) => [photo.name, index]));
    this.buttons = photos.map((photo, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(span("mark"), span("path", photo.photo), span("doubt"));
      button.addEventListener("click", () => onChoose(index));
      return button;
    });
    parts.list.replaceChildren(
      ...this.buttons.map((button) => {
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
    photos.forEach((_, index) => this.describe(index));
    parts.filter.addEventListener("change", () => this.refresh());
    this.refresh();
  }

  get current() {
    return this.photos[this.at];
  }

  /** Return the place of a photo, or undefined. */
  placeOf(name) {
    return this.places.get(name);
  }

  /** Take in how the service describes a photo now; return its place. */
  take(photo) {
    const index = this.placeOf(photo.name);
    this.photos[index] = photo;
    this.describe(index);
    return index;
  }

  /** Mark a photo as the one that is looked at. */
  turnTo(index) {
    this.buttons[this.at]?.removeAttribute("aria-current");
    this.at = index;
    this.buttons[index].setAttribute("aria-current", "true");
    this.refresh();
    this.reveal(this.buttons[index]);
  }

  /** Scroll the list, and nothing around it: on a phone it is far below the photo. */
  reveal(button) {
    const { list } = this.parts;
    const [box, row] = [list, button].map((one) => one.getBoundingClientRect());
    if (row.top < box.top) list.scrollTop -= box.top - row.top;
    else if (row.bottom > box.bottom) list.scrollTop += row.bottom - box.bottom;
  }

  /** Return the place of the next listed photo in a direction, or null. */
  next(by) {
    for (let at = this.at + by; at >= 0 && at < this.photos.length; at += by) {
      if (this.isListed(this.photos[at])) return at;
    }
    return null;
  }

  isListed(photo) {
    const wanted = this.parts.filter.value;
    if (wanted === "all") return true;
    if (wanted === "corrected") return photo.corrected && photo.state !== "rejected";
    return stateOf(photo) === wanted;
  }

  /** Show those that are listed, and how many are done. */
  refresh() {
    let done = 0;
    this.photos.forEach((photo, index) => {
      const hidden = !this.isListed(photo) && index !== this.at;
      const item = this.buttons[index].parentElement;
      if (item.hidden !== hidden) item.hidden = hidden;
      done += stateOf(photo) !== "open";
    });
    this.parts.progress.textContent = `${done} of ${this.photos.length} reviewed`;
  }

  describe(index) {
    const photo = this.photos[index];
    const button = this.buttons[index];
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
}
