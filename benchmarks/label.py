"""A labelling of photos beside its network alone: `benchmarks/label.py`.

Two ways run in turn in one process (A B A B ...), with random weights, in batches of 16 photos:

    network  the limit: the network alone, on photos that lie ready in memory at its size
    label    what `maskclip label` does: photos from disk to files on disk, and the record of them

Loading the model is in neither. Then memory: drawn scenes are labelled by an embedded model in a
fresh process, which says what it holds after every tenth of them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import Rows, apart, in_turn, kib, machine, ratios, show, spans
from PIL import Image
from three_ways import smooth_photo

from maskclip.core.config import ModelConfig
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.images import load_image
from maskclip.data.sources import Source, find_sources
from maskclip.emoji.scenes import EmojiScenes
from maskclip.tasks.label import Job, Outcome
from maskclip.tasks.label import worker as worker_module
from maskclip.tasks.label.manifest import CHUNK, Counts, Manifest
from maskclip.tasks.label.pipeline import label_photos
from maskclip.tasks.label.worker import Worker
from maskclip.tasks.photos import batches_of, network_input, network_size

PHOTO = (375, 500)  # height x width, px, of most photos in PASCAL VOC


def draw_photos(folder: Path, count: int) -> None:
    """Write smooth photos with a little noise, which compress as photos do."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for index in range(count):
        pixels = np.array(smooth_photo(PHOTO, seed=index))
        pixels = (pixels + noise.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05}.jpg", quality=92)


def network_alone(worker: Worker, sources: Sequence[Source]) -> Iterable[torch.Tensor]:
    """Return the batches of `worker`, ready for its network."""
    options, network = worker.job.options, worker.network
    for start in range(0, len(sources), CHUNK):
        photos = [load_image(source.path) for source in sources[start : start + CHUNK]]
        sizes = [network_size((photo.height, photo.width), options, network) for photo in photos]
        for batch in batches_of(sizes, options):
            inputs = [network_input(photos[index], sizes[index], network) for index in batch]
            yield torch.stack(inputs)


def throughput(how: Namespace) -> Rows:
    rows = [["network", "formats", "network alone, photos a second", "label / network", "clock"]]
    with tempfile.TemporaryDirectory() as place:
        folder = how.photos or Path(place, "photos")
        if how.photos is None:
            draw_photos(folder, how.count)
        sources = find_sources([folder])[: how.count]
        for model in how.models:
            for formats in how.formats:
                config = ModelConfig(
                    name=model, weights="random", templates="plain", precision=how.precision
                )
                job = Job(
                    model=config,
                    vocabulary=Vocabulary.builtin(how.vocabulary),
                    formats=tuple(formats.split(",")),
                    out=Path(place, "labels"),
                )
                worker = Worker(job, how.device)
                inputs = list(network_alone(worker, sources))

                @torch.inference_mode()
                def alone(worker: Worker = worker, inputs: list[torch.Tensor] = inputs) -> None:
                    for batch in inputs:
                        worker.network.encode(
                            batch.to(worker.network.device), keys=False, image=False
                        )

                def label(worker: Worker = worker, job: Job = job) -> None:
                    shutil.rmtree(job.out, ignore_errors=True)
                    job.out.mkdir()
                    with Manifest(job.out / "manifest.sqlite") as manifest:
                        manifest.plan(sources, {})
                        for outcomes in worker.label(manifest.chunks()):
                            manifest.record(outcomes)

                for clock in dict.fromkeys(("wall", how.clock)):
                    times = in_turn({"network": alone, "label": label}, how.repeats, clock=clock)
                    rows.append(
                        [
                            f"{model} {worker.job.model.precision}",
                            formats,
                            spans((len(sources) / np.array(times["network"])).tolist()),
                            ratios(times, "network", "label"),
                            clock,
                        ]
                    )
    return rows


def held(count: int, drawn: int) -> list[tuple[int, int]]:
    """Label `count` scenes, `drawn` of them different; -> (photos, KiB) after every tenth."""
    scenes, held_at = EmojiScenes(size=128), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        folder.mkdir()
        for index in range(count):
            path = folder / f"{index:06}.jpg"
            if index < drawn:
                scenes[index].image.save(path, quality=92)
            else:
                path.hardlink_to(folder / f"{index % drawn:06}.jpg")

        def note(outcomes: Sequence[Outcome], counts: Counts) -> None:
            before, now = counts.done - len(outcomes), counts.done
            if now * 10 // count > before * 10 // count:
                held_at.append((now, kib("self/status", "VmRSS")))

        job = Job(
            model=ModelConfig(name="emoji"),
            vocabulary=scenes.vocabulary,
            formats=("png", "coco"),
            out=Path(place, "labels"),
        )
        label_photos(job, find_sources([folder]), on_progress=note)
        held_at.append((count, kib("self/status", "VmHWM")))
    return held_at


def memory(how: Namespace) -> Rows:
    *held_at, (_, most) = apart(held, how.memory, min(how.memory, 100))
    rows = [["photos", "MiB held"]]
    rows += [[f"{photos:,}", f"{size / 1024:.0f}"] for photos, size in held_at]
    return [*rows, ["at its peak, files and report of all included", f"{most / 1024:.0f}"]]


def disk(how: Namespace) -> Rows:
    """Label scenes by the fastest network there is, with and without waiting for the disk."""
    rows = [["formats", "without waiting, photos a second", "waiting / not"]]
    scenes, plain = EmojiScenes(size=128), worker_module.make_durable
    with tempfile.TemporaryDirectory(dir=how.place) as place:
        folder = Path(place, "photos")
        folder.mkdir()
        for index in range(how.disk):
            scenes[index].image.save(folder / f"{index:05}.jpg", quality=92)
        sources = find_sources([folder])
        for formats in how.formats:
            job = Job(
                model=ModelConfig(name="emoji"),
                vocabulary=scenes.vocabulary,
                formats=tuple(formats.split(",")),
                out=Path(place, "labels"),
            )

            def label(wait: Callable[[Iterable[Path]], None], job: Job = job) -> None:
                shutil.rmtree(job.out, ignore_errors=True)
                worker_module.make_durable = wait
                label_photos(job, sources)

            ways = {"waiting": partial(label, plain), "not": partial(label, lambda paths: None)}
            times = in_turn(ways, how.repeats)
            rows.append(
                [
                    formats,
                    spans((how.disk / np.array(times["not"])).tolist()),
                    ratios(times, "waiting", "not"),
                ]
            )
    worker_module.make_durable = plain
    return rows


def read_options(arguments: Iterable[str] | None) -> Namespace:
    parser = ArgumentParser(description="Measure labelling: photos a second, and memory.")
    parser.add_argument("--models", nargs="*", default=["ViT-B-16", "RN50"])
    parser.add_argument("--formats", nargs="+", default=["png", "png,coco"])
    parser.add_argument("--vocabulary", default="voc21")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photos; some are drawn")
    parser.add_argument("--count", type=int, default=32, help="photos a turn")
    parser.add_argument("--memory", type=int, default=10_000, metavar="N", help="photos; 0: none")
    parser.add_argument("--disk", type=int, default=0, metavar="N", help="photos; 0: none")
    parser.add_argument("--place", type=Path, metavar="DIR", help="on the disk to be measured")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args(None if arguments is None else list(arguments))


def main(arguments: Iterable[str] | None = None) -> None:
    how = read_options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(how.threads)  # for the fresh process
    torch.set_num_threads(how.threads)
    if how.models:
        show("Labelling beside its network", throughput(how), markdown=how.markdown)
    if how.memory:
        print(f"labelling {how.memory:,} drawn scenes", file=sys.stderr)
        show("What a labelling holds", memory(how), markdown=how.markdown)
    if how.disk:
        show("What waiting for the disk costs", disk(how), markdown=how.markdown)
    print(machine())


if __name__ == "__main__":
    main()
