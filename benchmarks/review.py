"""A review of thousands of photos: how long a person waits, and what it takes of memory.

    python benchmarks/review.py --photos 3000 --markdown

A labelling of drawn scenes is made without a model, and opened in Chromium without a window
(Playwright): until the first photo is there with its labels; from the key that turns the page, and
from the key that accepts, to the next one; and the memory of the service and of the page before
and after. Every photo that is turned to is fetched, decoded and drawn.
"""

from __future__ import annotations

import shutil
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measuring import Rows, kib, machine, show, spans
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from service import serving

from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import Labeled
from maskclip.data.formats.per_photo import Palette
from maskclip.data.sources import Source
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.label import MANIFEST, ClassStats, Outcome
from maskclip.tasks.label.manifest import Manifest

WORDS = Vocabulary.builtin("emoji")
DRAWN = 100  # scenes, of which all photos are copies

TURN = """key => new Promise(done => {
  const start = performance.now();
  const image = document.getElementById("image");
  const seen = new MutationObserver(() => {  // the classes are listed when labels are drawn
    seen.disconnect();
    image.decode().then(() => requestAnimationFrame(() => done(performance.now() - start)));
  });
  seen.observe(document.getElementById("classes"), { childList: true });
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
})"""


def labelling(folder: Path, count: int, side: int) -> Path:
    """Write photos, and labels as `maskclip label` leaves them; return the folder of these."""
    out, drawn = folder / "labels", [draw_scene(seed, size=side) for seed in range(DRAWN)]
    (folder / "photos").mkdir()
    for seed, scene in enumerate(drawn):
        Image.fromarray(scene.image).save(folder / f"{seed}.jpg", quality=90)
    sources, writer = [], Palette(WORDS, out / "png")
    for number in range(count):
        name, scene = f"{number:05}", drawn[number % DRAWN]
        path = shutil.copyfile(folder / f"{number % DRAWN}.jpg", folder / f"photos/{name}.jpg")
        writer.write(Labeled(name, path.name, scene.labels.astype(np.uint8)))
        sources.append(Source(path, path.name))
    settings = {"vocabulary": WORDS.to_dict(), "formats": ["png"], "options": {}, "cleaning": {}}
    with Manifest(out / MANIFEST) as manifest:
        manifest.plan(sources, settings)
        for chunk in manifest.chunks():
            outcomes = []
            for task in chunk:
                ids, counts = np.unique(drawn[int(task.name) % DRAWN].labels, return_counts=True)
                score = 0.5 + 0.4 * (7919 * int(task.name) % 997) / 997
                pairs = zip(ids.tolist(), counts.tolist(), strict=True)
                stats = [ClassStats(k, n, n, score) for k, n in pairs if k < len(WORDS)]
                outcomes.append(Outcome(task, side, side, tuple(stats)))
            manifest.record(outcomes)
    return out


class Watched:
    """A page in Chromium, its memory, and the memory of the service."""

    def __init__(self, page: Page, service: int) -> None:
        browser = page.context.browser
        assert browser is not None
        self.page, self._service = page, service
        self._tab, self._all = page.context.new_cdp_session(page), browser.new_browser_cdp_session()

    def turns(self, key: str, count: int) -> list[float]:
        """Press a key so often; return the ms until each next photo was there."""
        return [self.page.evaluate(TURN, key) for _ in range(count)]

    def memory(self) -> tuple[float, float, float]:
        """Return the MiB of the service, of the page's process, and of what its scripts hold."""
        self._tab.send("HeapProfiler.collectGarbage")
        found = self._all.send("SystemInfo.getProcessInfo")["processInfo"]
        renderers = [one["id"] for one in found if one["type"] == "renderer"]
        heap = self._tab.send("Runtime.getHeapUsage")["usedSize"] / 2**20
        page = max(kib(f"{pid}/status", "VmRSS") for pid in renderers) / 1024
        return kib(f"{self._service}/status", "VmRSS") / 1024, page, heap


def measure(arguments: Namespace, folder: Path) -> Rows:
    """Return the table of a review."""
    out = labelling(folder, arguments.photos, arguments.side)
    start = time.perf_counter()
    options = ("--model", "emoji", "--review", str(out))
    with serving(*options, threads=1) as (address, pid), sync_playwright() as driver:
        opened = time.perf_counter() - start
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        with driver.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            page.goto(f"{address}/review.html")
            page.wait_for_selector("#classes li")
            first = time.perf_counter() - start
            watched = Watched(page, pid)
            watched.turns("ArrowRight", 20)  # until caches and compilers are warm
            before = watched.memory()
            turned = watched.turns("ArrowRight", arguments.turns)
            accepted = watched.turns("a", arguments.turns)
            after = watched.memory()
    moved = [f"{one:.0f} -> {other:.0f}" for one, other in zip(before, after, strict=True)]
    head = ["photos", "service up, s", "first photo, s", "next photo, ms", "accepted, next, ms"]
    head += ["service, MiB", "page, MiB", "its scripts, MiB"]
    times = [f"{opened:.2g}", f"{first:.2g}", spans(turned), spans(accepted)]
    return [head, [f"{arguments.photos:,}", *times, *moved]]


def main() -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--side", type=int, default=512, help="of the photos, in px")
    parser.add_argument("--turns", type=int, default=300, help="photos that are turned to")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    show("Review", rows, markdown=arguments.markdown)
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
