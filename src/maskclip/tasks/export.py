"""A model and its words as a file for other runtimes, compared with PyTorch before it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskclip.clip.catalog import license_of, published_weights
from maskclip.core.config import (
    ALIASES,
    BY_PHOTO,
    DEFAULT_OPTIONS,
    EMBEDDED,
    PREVIEWS,
    ModelConfig,
    Options,
)
from maskclip.core.dense import class_agreement
from maskclip.core.dense import label as label_maps
from maskclip.core.dense import score as score_dense
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path, check_writable
from maskclip.core.methods import AUTO, get_method
from maskclip.core.resize import Geometry
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene
from maskclip.export.description import PROGRAM_SUFFIX, SUFFIX, UNKNOWN, Description
from maskclip.export.files import (
    ExportedModel,
    describe,
    halve,
    save_program,
)
from maskclip.export.graph import PIXELS, ExportError, build_graph, cause, export_program
from maskclip.export.labels import OUTPUTS, LabelGraph, check_method
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.tasks.segmenter import CLIPSegmenter, load
from maskclip.tasks.without_clip import StudentSegmenter

PRECISIONS = ("fp32", "fp16")
"""In what weights are stored."""

LEAST = {"fp32": 0.999, "fp16": 0.995}
"""The share of pixels whose labels must be PyTorch's, by precision."""

_SCENES = range(400, 402)  # seeds of the drawn scenes that are compared
_HUB = "hf-hub:"
_SMALLEST, _WHOLE = 128, 32  # px, of a side that any network takes


class DisagreementError(MaskCLIPError):
    """An exported file whose labels are not PyTorch's."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is exported, and how.

    Attributes:
        model: which model, read how; its precision is not used.
        vocabulary: the classes; None for a student's own.
        out: the file, .onnx or .pt2.
        options: of them the refinements that work on the grid, the thresholds, and `short_side`.
        pixels: what the input is, one of `graph.PIXELS`.
        precision: one of `PRECISIONS`.
        license: of the weights, where it is known.

    Raises:
        MaskCLIPError: the file has another suffix, or an option cannot be exported.
    """

    model: ModelConfig
    vocabulary: Vocabulary | None
    out: Path
    options: Options = DEFAULT_OPTIONS
    pixels: str = "uint8"
    precision: str = "fp32"
    license: str | None = None

    def __post_init__(self) -> None:
        if self.out.suffix not in (SUFFIX, PROGRAM_SUFFIX):
            raise MaskCLIPError(
                f"{self.out}: expected a name that ends in {SUFFIX} (ONNX) or {PROGRAM_SUFFIX} "
                "(torch.export)"
            )
        for name, known in (("pixels", tuple(PIXELS)), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise MaskCLIPError(
                    f"`{name}`: expected one of {', '.join(known)}, got {getattr(self, name)}"
                )
        if self.precision != "fp32" and self.out.suffix == PROGRAM_SUFFIX:
            raise MaskCLIPError(f"`precision`: {PROGRAM_SUFFIX} has float32 weights: leave it out")
        for name in ("window", "stride", "regions"):
            if getattr(self.options, name) is not None:
                raise MaskCLIPError(f"`{name}` is not exported: give it to `segment`")


@dataclass(frozen=True)
class Agreement:
    """How many labels of a file are PyTorch's: a share, of images of (height, width) px."""

    size: tuple[int, int]
    share: float


@dataclass(frozen=True)
class Exported:
    """What was written: what the file says of itself, and how it agreed; () without a look."""

    description: Description
    agreements: tuple[Agreement, ...]


def export(
    what: Export, *, no_verify: bool = False, on_step: Callable[[str], None] = lambda _: None
) -> Exported:
    """Write a model and its words as one file, which appears once it was found to be right.

    Args:
        what: what is exported.
        no_verify: do not compare its labels with PyTorch's, on drawn pictures of two sizes.
        on_step: called with what is done next.

    Raises:
        DisagreementError: the file's labels are not PyTorch's; it is not kept.
        MaskCLIPError: the model cannot be loaded or exported, the words not be used, or the file
            not be written.
        OSError: the disk is full.
    """
    if what.out.is_dir():
        raise MaskCLIPError(f"{what.out} is a folder: choose another name")
    check_writable(what.out.parent)
    if what.model.method != AUTO:
        check_method(get_method(what.model.method))  # before weights are read
    on_step("loading")
    model = replace(what.model, precision="float32")
    segmenter = load(model, device="cpu", options=what.options)
    vocabulary = segmenter.prepare(what.vocabulary, options=what.options)
    graph = label_graph(segmenter, vocabulary, what.options)
    description = _describe(segmenter, vocabulary, what, model)
    on_step("writing the graph")
    with atomic_path(what.out) as temporary, torch.inference_mode():
        run = _write(graph, what, description, temporary)
        on_step("comparing with PyTorch")
        found = () if no_verify else tuple(_compare(run, segmenter, vocabulary, what))
        worst = min((one.share for one in found), default=1.0)
        least = LEAST[what.precision]
        if worst < least:
            raise DisagreementError(
                f"{what.out} was not written: its labels are PyTorch's on {worst:.2%} of pixels, "
                f"and at least {least:.1%} are expected; `no_verify` writes it all the same"
            )
    return Exported(description, found)


def label_graph(segmenter: Segmenter, vocabulary: Vocabulary, options: Options) -> LabelGraph:
    """Return a model and its words as one module, of the weights as they were before `prepare`.

    Raises:
        ExportError: it cannot be exported.
    """
    grid = tuple(name for name in options.refine if name not in BY_PHOTO)
    scoring = replace(segmenter.scoring(vocabulary, options), refine=grid)
    check_method(scoring.method)
    network, encode = segmenter.plain()
    return LabelGraph(network, encode, scoring)


def _describe(
    segmenter: Segmenter, vocabulary: Vocabulary, what: Export, model: ModelConfig
) -> Description:
    scoring = segmenter.scoring(vocabulary, what.options)
    method, options = segmenter.method, what.options
    smoothed = scoring.key_smoothing is not None
    return Description(
        vocabulary=vocabulary,
        method=method.name,
        templates=_templates(segmenter),
        model=Path(model.name).name if Path(model.name).exists() else model.name,
        fingerprint=segmenter.fingerprint,
        license=what.license or _license(segmenter, model),
        version=version("maskclip"),
        short_side=segmenter.short_side if not options.short_side else options.short_side,
        antialias=method.antialias,
        cell=segmenter.cell,
        stretch=segmenter.stretch,
        probabilities=method.upsample == "probabilities" and not smoothed,
        temperature=scoring.temperature,
        threshold=scoring.threshold,
        resizes=method.resizes,
        by_count=_by_count(segmenter),
        refine=scoring.by_photo,
        agreement=tuple(class_agreement(scoring).tolist()),
    )


def _templates(segmenter: Segmenter) -> str:
    if isinstance(segmenter, CLIPSegmenter):
        return segmenter.templates
    return segmenter.trained.templates if isinstance(segmenter, StudentSegmenter) else "none"


def _license(segmenter: Segmenter, model: ModelConfig) -> str:
    """Return the licence of a model's weights: the embedded ones have the package's own."""
    if model.name in {*EMBEDDED, *ALIASES, *PREVIEWS}:  # what its package says of the preview
        return "apache-2.0"
    if not isinstance(segmenter, CLIPSegmenter) or model.weights is not None:
        return UNKNOWN
    if model.name.startswith(_HUB):
        return license_of(model.name.removeprefix(_HUB).partition("@")[0])[0]
    name = segmenter.clip.name
    return next((one.license for one in published_weights() if one.name == name), UNKNOWN)


def _by_count(segmenter: Segmenter) -> int | None:
    """Return of how many positions a ViT's table is, if its method counts them."""
    if not isinstance(segmenter, CLIPSegmenter) or segmenter.method.position_resize != "count":
        return None
    grid = getattr(segmenter.clip.visual, "grid_size", None)
    return None if grid is None else math.prod(grid)


_Run = Callable[[Tensor], Any]
"""Images (B, 3, H, W) uint8 -> labels (B, H, W)."""


def _write(graph: LabelGraph, what: Export, description: Description, path: Path) -> _Run:
    """Write a file, and return what runs it as those do who get it."""
    if path.suffix == PROGRAM_SUFFIX:
        save_program(export_program(graph, pixels=what.pixels), path, description)
        return _runs_program(path, what)
    model = build_graph(graph, OUTPUTS, pixels=what.pixels)
    if what.precision == "fp16":
        halve(model)
    describe(model, description)
    path.write_bytes(model.SerializeToString())
    del model
    opened = ExportedModel(path, outputs=("labels",), threads=torch.get_num_threads())

    def run(images: Tensor) -> Any:
        return opened.run(_as_input(images, what).numpy())["labels"]

    return run


def _runs_program(path: Path, what: Export) -> _Run:
    program = torch.export.load(path).module()

    def run(images: Tensor) -> Any:
        try:
            return program(_as_input(images, what))[0].numpy()
        except Exception as error:  # a guard of torch's, on sizes that it took for others
            height, width = images.shape[2:]
            raise ExportError(
                f"{what.out} was not written: it does not run on {width}x{height} px "
                f"({cause(error)}); choose a name that ends in {SUFFIX}"
            ) from error

    return run


def _as_input(images: Tensor, what: Export) -> Tensor:
    return images if what.pixels == "uint8" else images.float() / 255


def _compare(
    run: _Run, segmenter: Segmenter, vocabulary: Vocabulary, what: Export
) -> Sequence[Agreement]:
    """Return how a file agrees with PyTorch on drawn pictures of two sizes."""
    scoring = segmenter.scoring(vocabulary, what.options)
    scoring = replace(scoring, refine=tuple(n for n in scoring.refine if n not in BY_PHOTO))
    found = []
    for size in _sizes(segmenter, what):
        scenes = [draw_scene(seed, size=size).image for seed in _SCENES]
        images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).contiguous()
        dense = segmenter.network.encode(images, keys=scoring.needs_keys, image=scoring.needs_image)
        whole = [(range(size[0]), range(size[1]))]
        geometry = Geometry(whole, dense.covered, size, size, segmenter.method.resizes)
        maps = score_dense(dense, scoring)
        expected = [label_maps(own[None], geometry, scoring)[0].numpy() for own in maps]
        share = float((run(images) == np.stack(expected)).mean())
        found.append(Agreement(size, share))
    return found


def _sizes(segmenter: Segmenter, what: Export) -> list[tuple[int, int]]:
    """Return the sizes that are compared, one of them neither square nor of whole cells."""
    short = max(what.options.short_side or segmenter.short_side, _SMALLEST)
    width = short * 4 // 3
    width += width % segmenter.cell == 0
    half = max(short // 2 // _WHOLE * _WHOLE, _SMALLEST)
    return [(short, width), (half, half)]
