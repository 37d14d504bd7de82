"""What one detail of a protocol is worth in mIoU: `python benchmarks/protocols.py --data ROOT`.

A world is a model on some images, measured in one way. Then one thing is changed at a time: the
size that the network sees, windows, how photos are resized, prompts, names, the rule of the
background, or what the mean is taken of. `photos` are Pascal VOC's below ROOT, by the preview
`photo`; `drawn` are scenes, by the embedded `emoji-vit`. What is measured is kept below `--out`.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from measuring import Rows, kept, machine, show
from PIL import Image

from maskclip.core.config import ModelConfig, Options
from maskclip.core.method import CLEAN, IMAGENET_MEAN, IMAGENET_STD, Method
from maskclip.core.metrics import ConfusionMatrix, Counts, Scores, influences
from maskclip.core.resize import fit_within
from maskclip.core.samples import Ids, Sample, Samples
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.data.datasets import open_dataset
from maskclip.emoji.layers import texture_names
from maskclip.emoji.scenes import EmojiScenes
from maskclip.emoji.sprites import COLORS, colored_pairs, object_names
from maskclip.tasks.evaluation.evaluate import read_samples
from maskclip.tasks.evaluation.predictors import ModelPredictor, load_predictor
from maskclip.tasks.evaluation.settings import Evaluation, Run

BILINEAR = replace(CLEAN, name="bilinear", antialias=False)
WHOLE_BLOCK = replace(CLEAN, name="block", residual=True, mlp=True)
IMAGENET = replace(CLEAN, name="imagenet", mean=IMAGENET_MEAN, std=IMAGENET_STD)
TWICE = replace(CLEAN, name="twice", upsample="maps", resizes=2)
KNOWN = (
    "seashore",
    "lake",
    "mountain",
    "fence",
    "curtain",
    "bookcase",
    "rug",
    "building",
    "window",
)
"""Words for what lies around things that the preview knows."""
SCLIP = {"airplane": ("aeroplane",), "boat": ("ship",), "dining table": ("table",)}
"""What the vocabulary `voc20-sclip` has in the place of the data set's own names."""
TO_95 = 1.96  # standard errors


@dataclass(frozen=True, kw_only=True)
class Way:
    """A measurement: of whom, on what, and what is compared."""

    change: str
    evaluation: Evaluation
    samples: Samples
    method: Method | None = None  # how the preview's images and maps are resized; None is its own
    shrunk: int | None = (
        None  # the short side in px at which labels are compared; None is their own
    )


class World(NamedTuple):
    """The way that others are compared with, the others, and other means over what it counted."""

    base: Way
    others: tuple[Way, ...]
    means: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Things(EmojiScenes):
    """Drawn scenes whose textures are one background, of id 0, or left out."""

    ignored: bool = False

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Draw a scene; its 52 things have ids from 1, or from 0 where textures are left out."""
        found = super().__getitem__(index)
        first = 0 if self.ignored else 1
        things = found.labels < len(object_names())
        labels = np.where(things, found.labels + first, self.vocabulary.ignore * self.ignored)
        return replace(found, labels=labels)


def way(change: str, samples: Samples, model: str, **given: Any) -> Way:
    """Return a measurement; `given` are fields of `ModelConfig`, `Options` and `Evaluation`."""
    config = {"name": model, "precision": "float32"}
    of_preview = given.pop("method", None) if model == "photo" else None
    config |= {name: given.pop(name) for name in ("method", "templates") if name in given}
    background: Background | None = given.pop("background", None)
    shrunk = given.pop("shrunk", None)
    evaluation = Evaluation(
        dataset=samples.name,
        protocol="segment",
        model=ModelConfig(**config),
        options=Options(**given),
        background=background,
    )
    return Way(
        change=change, evaluation=evaluation, samples=samples, method=of_preview, shrunk=shrunk
    )


def photos(root: Path) -> World:
    """VOC's objects on its photos: sizes, windows, resizes, names."""
    voc = open_dataset("voc20", root, split="val")
    words = voc.vocabulary
    prompts = tuple(
        SCLIP.get(name, own) for name, own in zip(words.names, words.prompts, strict=True)
    )
    other = replace(voc, vocabulary=replace(words, prompts=prompts))
    return World(
        way("VOC20 by `photo`, whole photos at a short side of 320 px", voc, "photo"),
        (
            way("short side 240 px", voc, "photo", short_side=240),
            way("short side 448 px", voc, "photo", short_side=448),
            way("windows of 224 px every 112 px", voc, "photo", window=224, stride=112),
            way("photos resized by OpenCV's bilinear", voc, "photo", method=BILINEAR),
            way("maps enlarged twice, and not as probabilities", voc, "photo", method=TWICE),
            way("names of SCLIP's list: aeroplane, ship, table", other, "photo"),
        ),
        ("of images", "first 50"),
    )


def background(root: Path) -> World:
    """VOC's objects and background."""
    voc = open_dataset("voc21", root, split="val")
    rules = {f"below {limit}": limit for limit in (0.3, 0.8, 0.9)}
    return World(
        way("VOC21 by `photo`, background below 0.5", voc, "photo", background=0.5),
        (
            *(way(f"background {name}", voc, "photo", background=to) for name, to in rules.items()),
            way(f"background by {len(KNOWN)} words", voc, "photo", background=KNOWN),
            way(
                "20 classes, background not scored",
                open_dataset("voc20", root, split="val"),
                "photo",
            ),
        ),
        ("without class 0", "of images", "first 50"),
    )


def full_size(root: Path) -> World:
    """Photos that are shrunk."""
    voc = open_dataset("voc20", root, split="trainaug")
    return World(
        way(
            "VOC20 by `photo`, photos of 500 x 375 px at a short side of 240 px",
            voc,
            "photo",
            short_side=240,
        ),
        (
            way(
                "photos resized by OpenCV's bilinear", voc, "photo", short_side=240, method=BILINEAR
            ),
            way(
                "labels compared at a short side of 224 px",
                voc,
                "photo",
                short_side=240,
                shrunk=224,
            ),
        ),
    )


def drawn() -> World:
    """All 60 classes of drawn scenes, by a CLIP: prompts, sizes, windows."""
    scenes, model = EmojiScenes(), "emoji-vit"
    words = scenes.vocabulary
    tinted = {thing for _, thing in colored_pairs()}
    prompts = tuple(
        (*own, *(f"{color} {name}" for color in COLORS)) if name in tinted else own
        for name, own in zip(words.names, words.prompts, strict=True)
    )
    colored = replace(scenes, vocabulary=replace(words, prompts=prompts))
    return World(
        way("60 classes by `emoji-vit`, whole scenes at 256 px, 85 templates", scenes, model),
        (
            way("80 templates", scenes, model, templates="open_clip"),
            way("one template, `a photo of a {}.`", scenes, model, templates="plain"),
            way("the word alone", scenes, model, templates="word"),
            way("synonyms: 8 things by 5 colours, too", colored, model),
            way("short side 192 px", scenes, model, short_side=192),
            way("short side 384 px", scenes, model, short_side=384),
            way("short side 384 px, windows of 256 px", scenes, model, short_side=384, window=256),
            way("temperature 100", scenes, model, method=replace(CLEAN, temperature=100.0)),
            way("maps enlarged twice, and not as probabilities", scenes, model, method=TWICE),
            way("`--method published`", scenes, model, method="published"),
            way("residual and MLP of the last block", scenes, model, method=WHOLE_BLOCK),
            way("pixels by ImageNet's mean and deviation", scenes, model, method=IMAGENET),
        ),
        ("of images", "first 50"),
    )


def drawn_background() -> World:
    """The 52 things of drawn scenes, and what is behind them."""
    own, model = Vocabulary.builtin("emoji"), "emoji-vit"
    count = len(object_names())
    parts = {part: getattr(own, part)[:count] for part in ("names", "prompts", "colors")}
    words = replace(own, **parts)
    textures = texture_names()
    scenes = Things(name="things", vocabulary=words.with_background(textures))
    alone = Things(name="things", vocabulary=words, ignored=True)
    return World(
        way("52 things and background by `emoji-vit`, background by its 8 words", scenes, model),
        (
            way("by 4 of the 8 words", scenes, model, background=textures[:4]),
            *(
                way(f"below {limit}", scenes, model, background=limit)
                for limit in (0.1, 0.3, 0.5, 0.9)
            ),
            way("52 classes, background not scored", alone, model),
        ),
        ("without class 0", "of images", "first 50"),
    )


def load(one: Way) -> ModelPredictor:
    """Load the model of a way."""
    predictor = load_predictor(one.evaluation, one.samples, device="cpu")
    assert isinstance(predictor, ModelPredictor)
    if one.method is not None:
        predictor.segmenter.method = one.method
    return predictor


def count(one: Way, limit: int | None) -> dict[str, Any]:
    """Return the intersections and unions of each image, and which classes its truth has."""
    predictor, words, run = load(one), one.samples.vocabulary, Run(limit=limit)
    overlaps, present = [], []
    for sample in read_samples(one.samples, range(run.count(one.samples)), run):
        ids, truth = predictor(sample.name, sample.image), sample.labels
        if one.shrunk is not None:
            ids, truth = (_shrunk(each, one.shrunk) for each in (ids, truth))
        matrix = ConfusionMatrix(len(words), ignore=words.ignore, alone=True)
        found: Scores = matrix(*(torch.from_numpy(each.astype(np.int64)) for each in (ids, truth)))
        overlaps.append(found.overlaps.tolist())
        present.append(np.isfinite(found.accuracy).tolist())
    return {"overlaps": overlaps, "present": present}


def _shrunk(ids: Ids, short: int) -> Ids:
    """Return class ids at another short side, by the nearest."""
    height, width = fit_within(ids.shape, short=short, long=4 * short)
    return np.asarray(Image.fromarray(ids.astype(np.uint8)).resize((width, height), 0))


Moved = npt.NDArray[np.float64]


class Figure(NamedTuple):
    """A mean in percent, and how much each image moves it."""

    mean: float
    moved: Moved


def dataset_mean(overlaps: Counts) -> Figure:
    """Return mean IoU of the counts of all images."""
    hits, unions = overlaps.sum(axis=0)
    iou = hits[unions > 0] / unions[unions > 0]
    return Figure(100 * iou.mean(), 100 * influences(overlaps))


def image_mean(overlaps: Counts, present: Sequence[Sequence[bool]]) -> Figure:
    """Return the mean of the images' own mean IoU over the classes of their truth."""
    with np.errstate(invalid="ignore"):
        own = np.where(present, overlaps[:, 0] / overlaps[:, 1], np.nan)
    each = 100 * np.nanmean(own[np.any(present, axis=1)], axis=1)
    return Figure(float(each.mean()), (each - each.mean()) / len(each))


MEANS: dict[str, tuple[str, Callable[..., Figure]]] = {
    "of images": ("mean of the images' own mIoU", image_mean),
    "without class 0": (
        "the same labels, background not in the mean",
        lambda overlaps, _: dataset_mean(overlaps[:, :, 1:]),
    ),
    "first 50": ("the first 50 images alone", lambda overlaps, _: dataset_mean(overlaps[:50])),
}


def rows(world: World, out: Path, limit: int | None) -> Iterator[list[str]]:
    """Yield the line of the base, and one of each change."""

    def counted(index: int, one: Way) -> dict[str, Any]:
        name = "".join(char if char.isalnum() else "-" for char in one.change)
        return kept(out / f"{index:02d}-{name[:80]}.json", lambda: count(one, limit))

    found = counted(0, world.base)
    base = dataset_mean(np.array(found["overlaps"]))
    yield [f"**{world.base.change}**", f"{base.mean:.1f}", f"± {interval(base.moved):.1f}"]
    for index, one in enumerate(world.others, start=1):
        other = dataset_mean(np.array(counted(index, one)["overlaps"]))
        yield [one.change, f"{other.mean:.1f}", gained(base, other)]
    for name in world.means:
        text, mean = MEANS[name]
        other = mean(np.array(found["overlaps"]), found["present"])
        yield [text, f"{other.mean:.1f}", gained(base, other)]


def gained(base: Figure, other: Figure) -> str:
    """Write a difference and its 95 % interval; of other images, the difference alone."""
    text = f"{other.mean - base.mean:+.1f}"
    if len(base.moved) != len(other.moved):
        return text
    return f"{text} ± {interval(other.moved - base.moved):.1f}"


def interval(moved: Moved) -> float:
    """Return half of the 95 % interval of a mean that each image moves by so much."""
    return float(TO_95 * np.sqrt((moved**2).sum()))


def main() -> None:
    """Print the tables."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder with VOCdevkit; default: no photos")
    parser.add_argument("--full-size", type=Path, help="the same, of photos in their own size")
    parser.add_argument("--out", type=Path, default=Path("build/protocols"))
    parser.add_argument("--limit", type=int, help="images of each; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true")
    how = parser.parse_args()
    torch.set_num_threads(how.threads)
    worlds: dict[str, Callable[[], World]] = {"drawn": drawn, "drawn-background": drawn_background}
    if how.data is not None:
        worlds |= {"photos": lambda: photos(how.data), "background": lambda: background(how.data)}
    if how.full_size is not None:
        worlds["full-size"] = lambda: full_size(how.full_size)
    for name, make in worlds.items():
        table: Rows = [["what is changed", "mIoU, %", "points"]]
        table += rows(make(), how.out / name, how.limit)
        show(name, table, markdown=how.markdown)
    print(machine())


if __name__ == "__main__":
    main()
