"""Pages of `maskclip serve`, as Chromium shows them."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from maskclip.emoji.captions import class_names
from maskclip.emoji.scenes import draw_scene

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SCENES, SIDE = 5, 320
COMMAND = (sys.executable, "-m", "maskclip")


def review() -> Image.Image:
    """Return the page of a review, with a region that is selected."""
    from playwright.sync_api import sync_playwright

    with (
        TemporaryDirectory() as folder,
        sync_playwright() as driver,
        _serving(_labelled(Path(folder))) as address,
        driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page(viewport={"width": 900, "height": 560})
        page.goto(f"{address}/review.html")
        page.wait_for_selector("#classes li")
        for _ in range(4):  # the fourth region by size: smoke, which is taken for a wolf
            page.keyboard.press("ArrowDown")
        page.wait_for_timeout(500)  # until it is outlined
        shown = page.screenshot()
    return Image.open(io.BytesIO(shown)).convert("RGB")


def _labelled(folder: Path) -> Path:
    """Label drawn scenes by the words of what is in them; return the folder of their labels."""
    photos, labels, words = folder / "photos", folder / "labels", folder / "classes.txt"
    photos.mkdir()
    scenes = [draw_scene(seed, size=SIDE) for seed in range(SCENES)]
    for seed, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(photos / f"scene-{seed}.png")
    shown = np.unique([scene.labels for scene in scenes])
    words.write_text("\n".join(class_names()[id] for id in shown))
    given = [
        "label",
        str(photos),
        "--classes",
        str(words),
        "--model",
        "emoji",
        "--out",
        str(labels),
    ]
    subprocess.run([*COMMAND, *given, "--regions", "slic"], check=True, capture_output=True)
    return labels


@contextmanager
def _serving(labels: Path) -> Iterator[str]:
    """Run the service; yield its address."""
    given = ["serve", "--review", str(labels), "--model", "emoji", "--port", "0"]
    with subprocess.Popen([*COMMAND, *given], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield re.findall(r"http://\S+", process.stdout.readline())[0]
        finally:
            process.terminate()
