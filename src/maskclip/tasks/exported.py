"""A file of `maskclip export` as a segmenter: its own words, run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskclip.clip.prompts import OnWord
from maskclip.core.config import BY_PHOTO, DEFAULT_OPTIONS, ModelConfig, Options, check_options
from maskclip.core.dense import Dense, Scoring
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import file_fingerprint
from maskclip.core.method import CLEAN, Method
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.export.description import Description
from maskclip.export.files import ExportedModel
from maskclip.tasks.classes import Classes, as_vocabulary
from maskclip.tasks.photo_segmenter import Segmenter

_MAPS = "maps"


def load_exported(config: ModelConfig, *, device: torch.device) -> ExportedSegmenter:
    """Open an exported file as a segmenter.

    Args:
        config: its name is the file; what else a CLIP is given is frozen.
        device: where it is to be run.

    Raises:
        MaskCLIPError: the file cannot be used, or a setting is one that is frozen in it.
    """
    default = ModelConfig(name=config.name)
    for name in ("weights", "tokenizer", "language", "method", "templates", "proxy"):
        if getattr(config, name) != getattr(default, name):
            raise MaskCLIPError(
                f"`{name}`: {config.name} was exported with its own, which is frozen: leave it out"
            )
    if config.precision not in ("auto", "float32"):
        raise MaskCLIPError(
            f"`precision`: {config.name} computes in float32, got {config.precision}: leave it out"
        )
    return ExportedSegmenter(Path(config.name), device=device)


class ExportedSegmenter(Segmenter):
    """An exported file that labels pixels with its own words. Made by `load`.

    The network runs in ONNX Runtime; photos are cut, refined and enlarged as for every model.

    Args:
        path: the file.
        device: a GPU is used where the installed ONNX Runtime can.
    """

    precision = torch.float32
    runtime = "onnx"

    def __init__(self, path: Path, *, device: torch.device) -> None:
        self.name = str(path)
        threads = torch.get_num_threads()
        cuda = device.type == "cuda"
        self.model = ExportedModel(path, outputs=(_MAPS,), threads=threads, cuda=cuda)
        self.description = self.model.description
        self.fingerprint = file_fingerprint(path)
        self.short_side, self.cell = self.description.short_side, self.description.cell
        self.refine = self.description.refine
        self.method = _arithmetic(self.description)
        self.device = torch.device("cpu")

    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
        on_word: OnWord | None = None,
    ) -> Vocabulary:
        """Return the vocabulary of the file; refuse others, and options that are frozen in it.

        Raises:
            MaskCLIPError: says which.
        """
        check_options(options)
        own = self.description.vocabulary
        same = classes is None or as_vocabulary(classes) == own
        if not same or background is not None:
            raise MaskCLIPError(
                f"{self.name}: its words are frozen: {_few(own.names)}; leave classes and "
                "background out, or export the model with others"
            )
        for name in ("key_smoothing", "prompt_denoising"):
            if getattr(options, name) is not None:
                raise MaskCLIPError(f"`{name}`: {self._frozen()}")
        for name in options.refine:
            if name not in BY_PHOTO:
                raise MaskCLIPError(f"`refine={name}`: {self._frozen()}")
        self.check_view(options)
        return own

    def _frozen(self) -> str:
        return f"{self.name} makes its maps as it was exported: export the model with it"

    def scoring(self, vocabulary: Vocabulary, options: Options) -> Scoring:
        """Return what is done with the file's maps: each is a class's."""
        found = self.description
        return Scoring(
            rows=torch.eye(len(found.agreement)),
            classes=tuple(range(len(found.agreement))),
            method=self.method,
            temperature=found.temperature,
            normalize=False,
            threshold=found.threshold,
            refine=options.refine,
            refine_size=options.refine_size,
            pamr_iterations=options.pamr_iterations,
            pamr_dilations=options.pamr_dilations,
            own=torch.tensor(found.agreement),
        )

    def check_keys(self) -> None:
        """Refuse what needs keys: a file gives none."""
        raise MaskCLIPError(f"key smoothing: {self._frozen()}")

    def check_image(self) -> None:
        """Refuse what needs embeddings of whole images: a file gives none."""
        raise MaskCLIPError(f"surgery: {self._frozen()}")

    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        """Return the file's maps as features, of one channel a class."""
        pixels = crops.numpy()
        if self.model.pixels == "float32":
            pixels = pixels.astype(np.float32) / 255
        maps = torch.from_numpy(self.model.run(np.ascontiguousarray(pixels))[_MAPS])
        self._check_maps(maps, crops)
        grid = (maps.shape[2], maps.shape[3])
        size = (crops.shape[2], crops.shape[3])
        if self.description.by_count == grid[0] * grid[1] and grid[0] != grid[1]:
            raise MaskCLIPError(
                f"{self.name}: the method {self.description.method!r} reads a grid of "
                f"{grid[1]}x{grid[0]} positions in a way that no graph does: choose another "
                "`short_side`, or the model itself"
            )
        stretch = self.description.stretch
        return Dense(maps, None, size if stretch else (grid[0] * self.cell, grid[1] * self.cell))

    def _check_maps(self, maps: Tensor, crops: Tensor) -> None:
        count = len(self.description.agreement)
        covers = self.description.stretch or all(
            self.cell * positions >= side
            for positions, side in zip(maps.shape[2:], crops.shape[2:], strict=False)
        )
        floats = maps.dtype == torch.float32 and maps.ndim == 4
        if not floats or maps.shape[:2] != (len(crops), count) or not covers:
            raise MaskCLIPError(
                f"{self.name}: expected float32 maps of {count} classes that cover the image, "
                f"got {maps.dtype} {tuple(maps.shape)}: it is damaged, or not of `maskclip export`"
            )


def _arithmetic(found: Description) -> Method:
    """Return how images are shrunk for a file, and its maps enlarged; the rest is in its graph."""
    return replace(
        CLEAN,
        name=found.method,
        antialias=found.antialias,
        upsample="probabilities" if found.probabilities else "maps",
        resizes=2 if found.resizes == 2 else 1,
    )


def _few(names: tuple[str, ...], most: int = 4) -> str:
    dots = ", ..." if len(names) > most else ""
    return ", ".join(names[:most]) + dots
