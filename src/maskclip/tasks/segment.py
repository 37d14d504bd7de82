"""The main job: images and words in, a `Segmentation` for each image out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel
from maskclip.clip.prompts import template_set, text_rows
from maskclip.clip.weights import DEFAULT_MODEL, load_clip
from maskclip.core import refine, resize
from maskclip.core.device import choose_device, choose_precision
from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.method import CLEAN, Method, get_method
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.core.windows import cut, fit_within
from maskclip.data.images import load_image
from maskclip.tasks.options import Options, OptionValues

ImageSource = str | Path | Image.Image | npt.NDArray[np.uint8]
Classes = Vocabulary | Sequence[str]

LONG_SIDE_RATIO = 4
"""The long side is at most four short sides, as in the published test scale (2048, 512)."""

_BATCH = 8  # windows a forward; bounds memory for large images cut into many


def load(
    name: str = DEFAULT_MODEL,
    *,
    weights: str | None = None,
    method: str | Method = CLEAN,
    device: str = "auto",
    precision: str = "auto",
    templates: str = "published",
) -> Segmenter:
    """Load a CLIP as a segmenter.

    Args:
        name: `ViT-B-16:openai`, any other architecture and tag of `maskclip models`, an embedded
            model (`emoji`), or a weights file.
        weights: a local file for the architecture `name`, or `"random"`.
        method: `"clean"`, `"published"`, `"baseline"`, or a `Method` of your own.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"` or `"mps"`.
        precision: of the image tower: `"auto"`, `"float32"`, `"bfloat16"` or `"float16"`.
        templates: prompt templates: `"published"` (85), `"open_clip"` (80) or `"plain"` (1).

    Raises:
        MaskCLIPError: something of this cannot be had; the message says what to do.

    Example:
        >>> segmenter = maskclip.load("emoji")
        >>> found = segmenter.segment("photo.jpg", ["dog", "grass"])
        >>> found.labels.shape, found.coverage()
    """
    return Segmenter(
        load_clip(name, weights=weights),
        method=get_method(method),
        device=choose_device(device),
        precision=precision,
        templates=templates,
    )


class Segmenter:
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

    @overload
    def segment(
        self,
        images: ImageSource,
        classes: Classes,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        images: list[ImageSource] | tuple[ImageSource, ...],
        classes: Classes,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        classes: Classes,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> Segmentation | list[Segmentation]:
        """Label every pixel of one image, or of each image of a list.

        Args:
            images: a path, a PIL image or a uint8 array (H, W, 3); or a list of them, of any sizes.
            classes: names (`"dog"`, or `"person=man,woman"` with synonyms), or a `Vocabulary`.
            background: None; a threshold in (-1, 1) under which a pixel is background (clean:
                of the best probability; published: of the best map value); or words that are.
            options: fields of `Options`: `key_smoothing`, `prompt_denoising`, `short_side`,
                `long_side`, `window`, `stride`.

        Returns:
            A `Segmentation` at the image's own size, or a list of them for a list.

        Raises:
            MaskCLIPError: an image, a name or an option cannot be used.
        """
        vocabulary = as_vocabulary(classes).with_background(background)
        checked = Options(**options)
        if isinstance(images, list | tuple):
            photos = [load_image(image) for image in images]
            return self._segment_photos(photos, vocabulary, checked)
        return self._segment_photos([load_image(images)], vocabulary, checked)[0]

    @torch.inference_mode()
    def _segment_photos(
        self, photos: list[Image.Image], vocabulary: Vocabulary, options: Options
    ) -> list[Segmentation]:
        """Segment photos in batches of those that the network sees at the same size."""
        rows = self.text_rows(vocabulary)
        results: dict[int, Segmentation] = {}
        for size, members in self._by_network_size(photos, options).items():
            windows = cut(size, window=options.window, stride=options.stride)
            batch = max(1, _BATCH // len(windows))
            for start in range(0, len(members), batch):
                group = members[start : start + batch]
                images = torch.stack([self._network_input(photos[i], size) for i in group])
                crops = torch.cat(
                    [images[:, :, r.start : r.stop, c.start : c.stop] for r, c in windows]
                )
                maps, covered = self._maps(crops, rows, vocabulary, options)
                maps = maps.reshape(len(windows), len(group), *maps.shape[1:])
                for position, index in enumerate(group):
                    photo = photos[index]
                    geometry = resize.Geometry(
                        windows, covered, size, (photo.height, photo.width), self.method.resizes
                    )
                    labels, scores = resize.label(maps[:, position], geometry)
                    results[index] = _segmentation(labels, scores, photo, vocabulary)
        return [results[index] for index in range(len(photos))]

    def _by_network_size(
        self, photos: list[Image.Image], options: Options
    ) -> dict[tuple[int, int], list[int]]:
        """Group the photos' indices by the (h, w) at which the network sees them."""
        short = self.clip.short_side if options.short_side is None else options.short_side
        long = LONG_SIDE_RATIO * short if options.long_side is None else options.long_side
        groups: dict[tuple[int, int], list[int]] = {}
        for index, photo in enumerate(photos):
            size = (photo.height, photo.width)
            if short:
                size = fit_within(size, short=short, long=long)
            groups.setdefault(size, []).append(index)
        return groups

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
                    stacklevel=5,  # the caller of `segment`
                )
            self._rows[vocabulary] = rows.to(self.device)
        return self._rows[vocabulary]

    def _network_input(self, photo: Image.Image, size: tuple[int, int]) -> Tensor:
        """Return the photo at the network's size, (3, h, w) uint8 on the device."""
        if self.method.antialias and photo.size != (size[1], size[0]):
            photo = photo.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
        if tuple(pixels.shape[1:]) != size:
            smooth = F.interpolate(pixels[None].float(), size=size, mode="bilinear")
            pixels = smooth[0].round().to(torch.uint8)
        return pixels.to(self.device)

    def _maps(
        self, crops: Tensor, rows: Tensor, vocabulary: Vocabulary, options: Options
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return the refined maps (B, K, h, w) of crops of one shape, and what they cover."""
        parts = []
        for start in range(0, len(crops), _BATCH):
            some = crops[start : start + _BATCH]
            dense = self.encoder.encode(some, keys=options.key_smoothing is not None)
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
            parts.append(maps)
        return torch.cat(parts), dense.covered


def as_vocabulary(classes: Classes) -> Vocabulary:
    """Return a vocabulary from one, or from names such as `-c` takes them."""
    if isinstance(classes, Vocabulary):
        return classes
    return Vocabulary.parse(classes)


def _segmentation(
    labels: Tensor, scores: Tensor, photo: Image.Image, vocabulary: Vocabulary
) -> Segmentation:
    indices = labels.cpu().numpy()
    narrow = vocabulary.label_dtype is np.uint8
    return Segmentation(
        labels=indices.astype(np.uint8) if narrow else indices.astype(np.uint16),
        scores=scores.cpu().numpy(),
        vocabulary=vocabulary,
        image=photo,
    )
