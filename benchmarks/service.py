"""The service on loopback: how long answers take, and what many clients at once do to it.

    python benchmarks/service.py --markdown

Latency is that of whole requests: words that change, as a draft and then refined, which is how the
page sends them; a new photo; eight photos at once; by the processor time of the service with
`--clock cpu`, where other work is on the machine. Load is `--clients` clients that send
`--requests` requests together: what they were answered, how long it took, and by how much the
memory of the process has grown between the first and the second half.
Photos are refined as the model does (`own`) or not (`none`); of `mixed`, one request in three is
spoilt: a photo cut short, a bomb, no photo, 10 MB of words, a name that no value has.
"""

from __future__ import annotations

import io
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from measuring import Rows, kib, machine, show, spans
from PIL import Image

from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene

WORDS = Vocabulary.builtin("emoji").names


def file_of(seed: int, side: int) -> bytes:
    """Return a drawn scene as PNG."""
    file = io.BytesIO()
    Image.fromarray(draw_scene(seed, size=side).image).save(file, "PNG")
    return file.getvalue()


def words(start: int, count: int = 20) -> str:
    """Return some words, others for another start."""
    return ", ".join(WORDS[(start + index) % len(WORDS)] for index in range(count))


@contextmanager
def serving(*options: str, threads: int) -> Iterator[tuple[str, int]]:
    """Run a service; yield its address and the id of its process."""
    command = [sys.executable, "-m", "maskclip", "serve", "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            yield re.findall(r"http://\S+", process.stdout.readline())[0], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


Clock = Callable[[], float]
"""Milliseconds that only grow."""


def wall() -> float:
    """Return milliseconds of the clock on the wall."""
    return 1e3 * time.perf_counter()


def processor(process: int) -> float:
    """Return the milliseconds that all threads of a process have computed."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def timed(runs: int, clock: Clock, run: Callable[[int], object]) -> str:
    """Return the milliseconds of runs, after one that is not counted."""
    found = []
    for index in range(runs + 1):
        start = clock()
        run(index)
        found.append(clock() - start)
    return spans(found[1:])


def posted(client: httpx.Client, path: str, **content: object) -> httpx.Response:
    """Send a request; it must be answered."""
    answer = client.post(path, **content)
    answer.raise_for_status()
    return answer


def latency(given: Namespace) -> Rows:
    """Measure requests one after another, and eight at once."""
    rows = [["model", "refinement", "words changed, ms", "then refined, ms", "new photo, ms",
             "8 at once, ms"]]  # fmt: skip
    for model in given.models:
        with serving("--model", model, threads=given.threads) as (address, process):
            clock = wall if given.clock == "wall" else partial(processor, process)
            for refine in ("none", "own"):
                settings = {"refine": "none"} if refine == "none" else {}
                with httpx.Client(base_url=address, timeout=600) as client:
                    found = _latencies(client, settings, given, clock)
                    rows.append([model, refine, *found])
    return rows


def _latencies(
    client: httpx.Client, settings: dict[str, str], given: Namespace, clock: Clock
) -> list[str]:
    files = [file_of(seed, given.side) for seed in range(8)]
    photo = posted(client, "/v1/photos", files={"image": ("a.png", files[0])}).json()["id"]
    for start in range(len(WORDS)):  # every word is encoded once
        posted(client, f"/v1/photos/{photo}/labels", json={"words": words(start), "refine": "none"})

    def changed(index: int, *, draft: bool) -> None:
        content = {"words": words(index), **settings, "draft": draft}
        assert not posted(client, f"/v1/photos/{photo}/labels", json=content).json()["network_ran"]

    def new(index: int) -> None:
        form = {"words": words(0), **settings}
        posted(client, "/v1/segment", files={"image": ("a.png", files[index % 8])}, data=form)

    def at_once(_: int) -> None:
        threads = [threading.Thread(target=new, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    first, then = partial(changed, draft=True), partial(changed, draft=False)
    found = [timed(given.runs, clock, run) for run in (first, then, new, at_once)]
    return found if "refine" not in settings else [found[0], "-", *found[2:]]


def spoilt(file: bytes) -> list[dict[str, bytes | str]]:
    """Return requests that have to be refused, each with a status of 4xx: a photo, words."""
    claims = file[:16] + (100_000).to_bytes(4, "big") * 2 + file[24:]
    good = words(0)
    return [
        {"image": file[: len(file) // 2], "words": good},
        {"image": claims, "words": good},
        {"image": b"<html>not a photo</html>", "words": good},
        {"image": file, "words": "dog, " * 2_000_000},
        {"image": file, "words": good, "refin": "none"},
    ]


def load(given: Namespace) -> Rows:
    """Let many clients send requests together: refined, not refined, and one in three spoilt."""
    rows = [["requests", "clients", "sent", "answered", "busy", "late", "refused", "errors",
             "a second", "p50, ms", "p95, ms", "memory, MiB", "growth, MiB",
             "answers after"]]  # fmt: skip
    for name in given.loads:
        settings = {} if name == "own" else {"refine": "none"}
        with serving("--model", given.models[0], threads=given.threads) as (address, process):
            rows.append([name, *_loaded(given, address, process, settings, mixed=name == "mixed")])
    return rows


def _loaded(
    given: Namespace, address: str, process: int, settings: dict[str, str], *, mixed: bool
) -> list[str]:
    files = [file_of(seed, given.side) for seed in range(4)]
    bad = spoilt(files[0])
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(given.requests):
        waiting.put(index)
    found: Counter[str] = Counter()
    times: list[float] = []
    memory: list[float] = []

    def send(client: httpx.Client, index: int) -> None:
        is_bad = mixed and index % 3 == 0
        form = {"image": files[index % 4], "words": words(index % 7)}
        fields: dict[str, Any] = {**settings, **(bad[index // 3 % len(bad)] if is_bad else form)}
        image = fields.pop("image")
        start = time.perf_counter()
        try:
            status = client.post("/v1/segment", files={"image": image}, data=fields).status_code
        except httpx.HTTPError:  # a body that is too large need not be read to its end
            status = 0
        right = status // 100 == (4 if is_bad else 2)
        kind = {503: "busy", 504: "late"}.get(status, "errors")
        found[("refused" if is_bad else "answered") if right else kind] += 1
        if status == 200:
            times.append(1e3 * (time.perf_counter() - start))

    def run() -> None:
        with httpx.Client(base_url=address, timeout=600) as client:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                send(client, index)
                if index % 20 == 0:
                    memory.append(kib(f"{process}/status", "VmRSS") / 1024)

    with httpx.Client(base_url=address, timeout=600) as client:
        for start in range(8):
            form = {"words": words(start), **settings}
            posted(client, "/v1/segment", files={"image": ("a.png", files[0])}, data=form)
        began = time.perf_counter()
        threads = [threading.Thread(target=run) for _ in range(given.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        alive = client.get("/healthz").status_code == 200 == client.get("/").status_code
    half = len(memory) // 2
    growth = np.median(memory[half:]) - np.median(memory[: half or None])
    median, late = np.percentile(times, (50, 95))
    counts = [str(found[name]) for name in ("answered", "busy", "late", "refused", "errors")]
    return [
        str(given.clients), str(given.requests), *counts, f"{len(times) / took:.3g}",
        f"{median:.0f}", f"{late:.0f}", f"{max(memory):.0f}", f"{growth:+.0f}",
        "yes" if alive else "no",
    ]  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["emoji", "emoji-vit"])
    parser.add_argument("--side", type=int, default=512, help="of scenes, in px")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=1, help="of the service")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument(
        "--loads", nargs="+", default=["own", "none", "mixed"], help="what clients send together"
    )
    parser.add_argument("--tables", nargs="+", default=["latency", "load"])
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    for name in given.tables:
        table = {"latency": latency, "load": load}[name]
        show(name, table(given), markdown=given.markdown)
    print(f"\n{machine()}; the service has {given.threads}")


if __name__ == "__main__":
    main()
