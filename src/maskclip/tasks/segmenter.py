"""The main job: images and words in, a `Segmentation` for each image out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from maskclip.clip.embedded import ALIASES, EMBEDDED
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel
from maskclip.clip.prompts import template_set, text_rows
from maskclip.clip.weights import load_clip
from maskclip.core import refine
from maskclip.core.config import DEFAULT_MODEL, DEFAULT_OPTIONS, ModelConfig, ModelSettings, Options
from maskclip.core.device import choose_device, choose_precision
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.method import CLEAN, Method, get_method
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.plus.recognize import is_student_file
from maskclip.tasks.photos import (
    Classes,
    Maps,
    Network,
    PhotoSegmenter,
    as_vocabulary,
)

if TYPE_CHECKING:
    from maskclip.tasks.student_segmenter import StudentSegmenter


_FILES = (".safetensors", ".ckpt", ".pth", ".pt")


def load(
    model: str | ModelConfig = DEFAULT_MODEL,
    *,
    device: str = "auto",
    **settings: Unpack[ModelSettings],
) -> Segmenter | StudentSegmenter:
    """Load a CLIP, or a trained student, as a segmenter.

    Args:
        model: `ViT-B-16:openai`, any other architecture and tag of `maskclip models`, an embedded
            model (`emoji`), a weights file, or the file of a student; or a `ModelConfig`.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"` or `"mps"`.
        settings: other fields of `ModelConfig`: `weights`, `method`, `templates`, `precision`.

    Raises:
        MaskCLIPError: something of this cannot be had; the message says what to do.

    Example:
        >>> segmenter = maskclip.load("emoji")
        >>> found = segmenter.segment("photo.jpg", ["dog", "grass"])
        >>> found.labels.shape, found.coverage()
    """
    base = model if isinstance(model, ModelConfig) else ModelConfig(name=model)
    config = replace(base, **settings)
    if names_student(config.name):
        from maskclip.tasks.student_segmenter import (  # timm comes along
            load_student,
            refuse_options_of_clip,
        )

        refuse_options_of_clip(
            config.name,
            weights=config.weights is not None,
            method=get_method(config.method) != CLEAN,
            templates=config.templates != "published",
        )
        return load_student(
            Path(config.name), device=choose_device(device), precision=config.precision
        )
    return Segmenter(
        load_clip(config.name, weights=config.weights),
        method=get_method(config.method),
        device=choose_device(device),
        precision=config.precision,
        templates=config.templates,
    )


def names_student(name: str) -> bool:
    """Return whether the name of a model is the file of a student.

    Raises:
        MaskCLIPError: it names a file that there is not.
    """
    if Path(name).suffix in _FILES and not Path(name).exists():
        raise MaskCLIPError(f"{name}: no such model file")
    return name not in {*EMBEDDED, *ALIASES} and is_student_file(Path(name))


class Segmenter(PhotoSegmenter):
    """A CLIP that labels pixels. Made by `load`."""

    def __init__(
        self,
        clip: CLIPModel,
        *,
        method: Method,
        device: torch.device,
        precision: str,
        templates: str,
    ) -> None:
        self.clip = clip
        self.method = method
        self.device = device
        self.templates = templates
        template_set(templates)  # an unknown name is refused now, not at the first image
        visual = clip.visual.to(device)
        size = sum(weight.numel() for weight in visual.parameters())
        self.precision = choose_precision(precision, device, parameters=size)
        self.encoder = DenseCLIP(visual, method=method, mean=clip.mean, std=clip.std).to(device)
        self.encoder.prepare(self.precision)
        self._rows: dict[Vocabulary, Tensor] = {}

    @property
    def fingerprint(self) -> str:
        """A hash of the weights, 16 hex digits."""
        return self.clip.fingerprint

    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use, its words encoded; refuse bad ones now.

        Raises:
            MaskCLIPError: there are no classes, or they cannot be used.
        """
        if classes is None:
            raise MaskCLIPError(f"no classes: {self.clip.name} labels with the words that it gets")
        vocabulary = as_vocabulary(classes).with_background(background)
        self.text_rows(vocabulary)
        return vocabulary

    def network(self, vocabulary: Vocabulary, options: Options) -> Network:
        """Return the image tower, told to look for the classes of a vocabulary.

        Raises:
            PromptError: a name is too long for the model.
        """
        rows = self.text_rows(vocabulary)
        return Network(
            read=partial(self._maps, rows=rows, vocabulary=vocabulary, options=options),
            short_side=self.clip.short_side,
            antialias=self.method.antialias,
            resizes=self.method.resizes,
            device=self.device,
        )

    def text_rows(self, vocabulary: Vocabulary) -> Tensor:
        """Return the (P, D) unit text rows of a vocabulary's prompts, kept for the next call.

        Raises:
            PromptError: a name is too long for the model.
        """
        if vocabulary not in self._rows:
            names = vocabulary.flat_prompts
            rows, unknown = text_rows(self.clip, names, templates=self.templates)
            if unknown:
                warnings.warn(
                    f"{self.clip.name} was trained on the words of `--vocabulary emoji` alone and "
                    f"never saw: {', '.join(unknown[:8])}"
                    + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""),
                    MaskCLIPWarning,
                    stacklevel=4,  # the caller of `segment`
                )
            self._rows[vocabulary] = rows.to(self.device)
        return self._rows[vocabulary]

    def _maps(
        self, crops: Tensor, *, rows: Tensor, vocabulary: Vocabulary, options: Options
    ) -> Maps:
        """Return the refined maps of crops of one shape, and what they cover."""
        dense = self.encoder.encode(crops, keys=options.key_smoothing is not None)
        maps = refine.similarity(dense.features, rows)
        first = 0 if vocabulary.threshold is None else 1
        maps = refine.pool_synonyms(maps, tuple(c - first for c in vocabulary.prompt_class))
        maps = refine.refine(
            maps,
            dense.keys,
            method=self.method,
            prompt_denoising=options.prompt_denoising,
            key_smoothing=options.key_smoothing,
        )
        if vocabulary.threshold is not None:
            maps = refine.add_threshold_background(maps, vocabulary.threshold)
        return maps, dense.covered
