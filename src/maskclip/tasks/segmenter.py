"""Models by name, as segmenters: CLIPs and the preview, which take words, and students."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from maskclip.clip.choice import choose
from maskclip.clip.embedded import ALIASES, EMBEDDED
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel, shared_copy
from maskclip.clip.prompts import MEMORY_BYTES, RecentlyUsed, template_set, text_rows
from maskclip.clip.proxy import Proxy, load_proxy
from maskclip.clip.towers import build_tower
from maskclip.clip.weights import load_clip
from maskclip.core.config import (
    DEFAULT_MODEL,
    DEFAULT_OPTIONS,
    PREVIEWS,
    ModelConfig,
    ModelSettings,
    Options,
    check_keywords,
)
from maskclip.core.dense import Dense, Scoring
from maskclip.core.device import choose_device, choose_precision
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.files import file_fingerprint
from maskclip.core.method import CLEAN, Method
from maskclip.core.methods import AUTO, get_method, with_proxy
from maskclip.core.text import brief
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.imagenet.classifier import load_classifier
from maskclip.plus.files import TrainedStudent, is_student_file, read_student, student_file
from maskclip.tasks.photo_segmenter import Classes, PhotoSegmenter, as_vocabulary
from maskclip.tasks.photos import LONG_SIDE_RATIO
from maskclip.tasks.preview import PreviewSegmenter

_FILES = (".safetensors", ".ckpt", ".pth", ".pt")
_NAMED = 6  # classes that a message lists


def load(
    model: str | ModelConfig = DEFAULT_MODEL,
    *,
    device: str = "auto",
    options: Options = DEFAULT_OPTIONS,
    **settings: Unpack[ModelSettings],
) -> Segmenter | StudentSegmenter | PreviewSegmenter:
    """Load a CLIP, a trained student, or the preview without CLIP, as a segmenter.

    Args:
        model: `ViT-B-16:openai`, any other architecture and tag of `maskclip models`, an embedded
            model (`emoji`), the preview without CLIP (`photo`), a weights file, the file of a
            student or the run folder of its training; or a `ModelConfig`.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"` or `"mps"`.
        options: how images will be cut, by which `method="auto"` chooses; `Segmenter.why` says why.
        settings: other fields of `ModelConfig`: `weights`, `method`, `templates`, `precision`,
            `proxy`.

    Raises:
        MaskCLIPError: the model or the device cannot be used; the message says what to do.

    Example:
        >>> segmenter = maskclip.load("emoji")
        >>> found = segmenter.segment("photo.jpg", ["dog", "grass"])
        >>> found.labels.shape, found.coverage()
    """
    check_keywords(settings, ModelSettings, others=["model", "device", "options"])
    base = model if isinstance(model, ModelConfig) else ModelConfig(name=model)
    config = replace(base, **settings)
    if not names_clip(config.name):
        refuse_settings_of_clip(config)
        where, precision = choose_device(device), config.precision
        if config.name in PREVIEWS:
            return load_preview(config.name, device=where, precision=precision)
        return load_student(Path(config.name), device=where, precision=precision)
    clip = load_clip(config.name, weights=config.weights)
    choice = choose(clip, config.method, options)
    method = with_proxy(choice.method, config.proxy)
    if config.proxy is not None:
        build_tower(shared_copy(clip.visual), method)  # refuses a ResNet before a proxy is loaded
    return Segmenter(
        clip,
        method=method,
        device=choose_device(device),
        precision=config.precision,
        templates=config.templates,
        why=choice.why,
        proxy=None if config.proxy is None else load_proxy(config.proxy),
    )


def load_preview(
    name: str, *, method: Method = CLEAN, device: torch.device, precision: str = "auto"
) -> PreviewSegmenter:
    """Load one of `PREVIEWS` as a segmenter.

    Raises:
        MaskCLIPError: its weights are not installed, or there is no such precision.
    """
    return PreviewSegmenter(
        load_classifier(name), method=method, device=device, precision=precision
    )


def load_student(
    path: Path, *, method: Method = CLEAN, device: torch.device, precision: str = "auto"
) -> StudentSegmenter:
    """Read a student's file, or the run folder of a training, as a segmenter.

    Raises:
        MaskCLIPError: the file cannot be used, or there is no such precision.
    """
    run, path = path, student_file(path)
    if run != path and path.suffix == ".ckpt":
        warnings.warn(
            f"{run} is a training that has not finished: its {path.name} is taken",
            MaskCLIPWarning,
            stacklevel=3,
        )
    return StudentSegmenter(
        read_student(path),
        name=str(path),
        fingerprint=file_fingerprint(path),
        method=method,
        device=device,
        precision=precision,
    )


def names_clip(name: str) -> bool:
    """Return whether the name of a model is a CLIP's, neither the preview's nor a student's.

    Raises:
        MaskCLIPError: as `names_student`.
    """
    return name not in PREVIEWS and not names_student(name)


def names_student(name: str) -> bool:
    """Return whether the name of a model is the file of a student, or a run folder with one.

    Raises:
        MaskCLIPError: it names a file that there is not, or a folder that is no run folder.
    """
    if "://" in name:
        raise MaskCLIPError(f"{name} is an address: download the file, and give its path")
    if Path(name).suffix in _FILES and not Path(name).exists():
        raise MaskCLIPError(f"{name}: no such model file")
    if name in {*EMBEDDED, *ALIASES, *PREVIEWS}:
        return False
    if Path(name).is_dir() and student_file(Path(name)) == Path(name) and not _is_clip(name):
        raise MaskCLIPError(
            f"{name} is a folder, but no run folder: expected student.safetensors or best.ckpt in "
            "it, as `maskclip train` leaves them"
        )
    return is_student_file(Path(name))


def _is_clip(name: str) -> bool:
    from maskclip.clip.open_clip_models import architectures

    return name.partition(":")[0] in architectures()


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
        why: str = "",
        proxy: Proxy | None = None,
    ) -> None:
        self.clip = clip
        self.why = why
        self.proxy = None if proxy is None else proxy.name
        own = "" if proxy is None else f"+{proxy.fingerprint}"
        self.fingerprint, self.short_side = f"{clip.fingerprint}{own}", clip.short_side
        self.refine = clip.refine
        self.method = method
        self.device = device
        self.templates = templates
        template_set(templates)  # an unknown name is refused now, not at the first image
        size = sum(weight.numel() for weight in clip.visual.parameters())
        self.precision = choose_precision(precision, device, parameters=size)
        self.encoder = DenseCLIP.of(clip, method=method, proxy=proxy).to(device)
        self.encoder.prepare(self.precision)
        self.cell = self.encoder.cell
        self._rows: RecentlyUsed[Vocabulary, Tensor] = RecentlyUsed(MEMORY_BYTES)

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
        if options.key_smoothing is not None:
            self.check_keys()
        self.check_view(options)
        vocabulary = as_vocabulary(classes).with_background(background)
        self.text_rows(vocabulary)
        useless = _useless(vocabulary, self.method)
        if useless is not None:
            warnings.warn(useless, MaskCLIPWarning, stacklevel=3)  # the caller of `segment`
        return vocabulary

    def scoring(self, vocabulary: Vocabulary, options: Options) -> Scoring:
        """Return the text rows of a vocabulary, and what is made of their similarities.

        Raises:
            PromptError: a name is too long for the model.
        """
        first = 0 if vocabulary.threshold is None else 1
        return Scoring(
            rows=self.text_rows(vocabulary),
            classes=tuple(index - first for index in vocabulary.prompt_class),
            method=self.method,
            temperature=self.encoder.temperature,
            prompt_denoising=options.prompt_denoising,
            key_smoothing=options.key_smoothing,
            threshold=vocabulary.threshold,
            refine=options.refine,
            refine_size=options.refine_size,
            pamr_iterations=options.pamr_iterations,
            pamr_dilations=options.pamr_dilations,
        )

    def check_view(self, options: Options) -> None:
        """Refuse images and windows so small that nothing can be seen in any of them.

        Raises:
            MaskCLIPError: a side fills less than half of one position of the grid, or the method
                cannot work in the largest that the network will see.
        """
        super().check_view(options)
        short = self.short_side if options.short_side is None else options.short_side
        sides = (short, options.long_side or LONG_SIDE_RATIO * short) if short else (math.inf,) * 2
        height, width = (min(side, options.window or math.inf) for side in sides)
        if height < math.inf:
            self.encoder.check_size(int(height), int(width))

    def check_keys(self) -> None:
        """Refuse what needs keys, where the tower has none under its method.

        Raises:
            UnsupportedMethodError: it has none.
        """
        self.encoder.check_keys()

    def check_image(self) -> None:
        """Refuse nothing: every CLIP embeds whole images."""

    def text_rows(self, vocabulary: Vocabulary) -> Tensor:
        """Return the (P, D) unit text rows of a vocabulary's prompts, kept for the next call.

        Raises:
            PromptError: a name is too long for the model.
        """
        rows = self._rows.get(vocabulary)
        if rows is not None:
            return rows
        rows, unknown = text_rows(
            self.clip, vocabulary.flat_prompts, templates=self.templates, device=self.device
        )
        if unknown:
            warnings.warn(
                f"{self.clip.name} was trained on the words of the vocabulary emoji alone and "
                f"never saw: {', '.join(unknown[:8])}"
                + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""),
                MaskCLIPWarning,
                stacklevel=4,  # the caller of `segment`
            )
        rows = rows.to(self.device)
        self._rows.put(vocabulary, rows, rows.nbytes)
        return rows

    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        return self.encoder.encode(crops, keys=keys, image=image)


class StudentSegmenter(PhotoSegmenter):
    """A student that labels pixels. Made by `load` from a student's file.

    Args:
        trained: the student; it is moved to the device.
        name: what messages and results call it.
        fingerprint: a hash of its file.
        method: how images are shrunk and logits enlarged; the rest of it is CLIP's.
        device, precision: as `load` takes them, the device chosen.
    """

    def __init__(
        self,
        trained: TrainedStudent,
        *,
        name: str,
        fingerprint: str,
        method: Method,
        device: torch.device,
        precision: str,
    ) -> None:
        self.trained = trained
        self.name = name
        self.fingerprint, self.short_side = fingerprint, trained.short_side
        self.method = method
        self.device = device
        self.student = trained.student.to(device).eval()
        self.cell = self.student.stride
        size = sum(weight.numel() for weight in self.student.parameters())
        self.precision = choose_precision(precision, device, parameters=size)

    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use; refuse now what it would refuse.

        Raises:
            MaskCLIPError: the classes are not the student's, or an option is one of CLIP's.
        """
        refuse_options_of_clip(
            self.name,
            background=background is not None,
            key_smoothing=options.key_smoothing is not None,
            prompt_denoising=options.prompt_denoising is not None,
            surgery="surgery" in options.refine,
        )
        self.check_view(options)
        own, count = self.trained.vocabulary, len(self.trained)
        if classes is None:
            if own is None:
                raise MaskCLIPError(
                    f"{self.name} carries no class names: give its {count} classes in the order of "
                    "its training, or put them into the file with `maskclip convert`"
                )
            return own
        given = as_vocabulary(classes)
        if own is None and len(given) != count:
            raise MaskCLIPError(
                f"{self.name} tells {count} classes apart, not {len(given)}: give those that it "
                "was trained on, in their order"
            )
        if own is not None and given.names != own.names:
            raise MaskCLIPError(
                f"{self.name} knows its own {count} classes alone, in this order: "
                f"{_listed(own.names)}; for other classes take a CLIP"
            )
        return given

    def scoring(self, vocabulary: Vocabulary, options: Options) -> Scoring:
        """Return the student's own rows, whose inner products are logits without temperature."""
        rows = self.student.classifier().detach()
        return Scoring(
            rows=rows,
            classes=self.student.classes,
            method=self.method,
            temperature=1.0,
            normalize=False,
            refine=options.refine,
            refine_size=options.refine_size,
            pamr_iterations=options.pamr_iterations,
            pamr_dilations=options.pamr_dilations,
        )

    def check_keys(self) -> None:
        """Refuse what needs keys: students have none."""
        refuse_options_of_clip(self.name, keys=True)

    def check_image(self) -> None:
        """Refuse what needs embeddings of whole images: students have none."""
        refuse_options_of_clip(self.name, image=True)

    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        """Return features on the grid, which is stretched over the crops."""
        reduced = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=reduced):
            features = self.student.features(crops)
        return Dense(features.float(), None, (crops.shape[2], crops.shape[3]))


def refuse_options_of_clip(name: str, **given: bool) -> None:
    """Refuse what a model that is no CLIP has no use for.

    Args:
        name: the model, for the message.
        given: option -> whether it was given.

    Raises:
        MaskCLIPError: names the first that was.
    """
    for option, present in given.items():
        if present:
            kind = "a preview without CLIP" if name in PREVIEWS else "a trained student"
            raise MaskCLIPError(
                f"{option.replace('_', ' ')} belongs to CLIP, and {name} is {kind}: leave it out"
            )


def refuse_settings_of_clip(
    config: ModelConfig, *, templates: str = "published", **given: bool
) -> None:
    """Refuse settings of a model that is no CLIP which only a CLIP has.

    Args:
        config: the model.
        templates: those that nobody has chosen.
        given: further options, as `refuse_options_of_clip` takes them.

    Raises:
        MaskCLIPError: names the first that is set.
    """
    refuse_options_of_clip(
        config.name,
        weights=config.weights is not None,
        method=config.method == AUTO or get_method(config.method) != CLEAN,
        templates=config.templates != templates,
        proxy=config.proxy is not None,
        **given,
    )


def _useless(vocabulary: Vocabulary, method: Method) -> str | None:
    """Return what to tell of classes or a background that cannot do anything, or None."""
    if len(vocabulary) == 1:
        return (
            f"one class and no background: every pixel will be {brief(vocabulary.names[0])}; give "
            "more classes, or a background"
        )
    count, threshold = len(vocabulary) - 1, vocabulary.threshold
    if threshold is None or method.upsample == "maps" or threshold > 1 / count:
        return None
    if count == 1:
        return (
            "a background threshold does nothing with one class, whose probability is always 1: "
            "give more classes, or words for the background"
        )
    return (
        f"a background threshold of {threshold:g} does nothing: the best of {count} probabilities "
        f"is never below {1 / count:.3g}; take one above it, or words"
    )


def _listed(names: tuple[str, ...]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
