/* Search where a page is opened from a file: browsers refuse workers there.

   A stand-in for Worker that runs its script in a hidden frame instead. Messages come as they do
   from a worker, each in a turn of its own. Over http this file does nothing. The builder looks for
   a script of this name, and would fetch one from elsewhere.
*/
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = this.onerror = this.onmessageerror = null;
      this.waiting = []; // messages that came before the script was there
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.addEventListener("load", () => this.start(new URL(url, location.href)), { once: true });
      document.documentElement.appendChild(this.frame);
    }

    start(url) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.tell(this, "message", data));
      const script = inside.document.createElement("script");
      script.src = url.href;
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.postMessage(data));
      };
      script.onerror = () => this.tell(this, "error");
      inside.document.head.appendChild(script);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else setTimeout(() => this.frame && this.tell(this.frame.contentWindow, "message", data));
    }

    terminate() {
      if (this.frame) this.frame.remove();
      this.frame = null;
    }

    tell(target, type, data) {
      const event = new MessageEvent(type, { data, cancelable: true });
      if (target === this && this["on" + type]) this["on" + type](event);
      target.dispatchEvent(event);
    }
  };
}
