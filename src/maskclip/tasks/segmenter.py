"""Models by name, as segmenters: CLIPs and the preview, which take words, and students."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from maskclip.clip.choice import choose
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel, shared_copy
from maskclip.clip.prompts import (
    MEMORY_BYTES,
    OnWord,
    RecentlyUsed,
    never_saw,
    template_set,
    text_rows,
)
from maskclip.clip.proxy import Proxy, load_proxy
from maskclip.clip.towers import build_tower
from maskclip.clip.weights import load_of
from maskclip.core.config import (
    DEFAULT_MODEL,
    DEFAULT_OPTIONS,
    PREVIEWS,
    ModelConfig,
    ModelSettings,
    Options,
    check_keywords,
    check_options,
)
from maskclip.core.dense import Dense, Scoring
from maskclip.core.device import check_precision, choose_precision
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.method import Method
from maskclip.core.methods import with_proxy
from maskclip.core.view import check_view
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.tasks.classes import Classes, as_vocabulary, useless, with_usable_confidence
from maskclip.tasks.exported import load_exported
from maskclip.tasks.model_names import names_clip, names_exported
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.tasks.photos import Encode
from maskclip.tasks.runtimes import placed, run_by
from maskclip.tasks.without_clip import load_preview, load_student, refuse_settings_of_clip


def load(
    model: str | os.PathLike[str] | ModelConfig = DEFAULT_MODEL,
    *,
    device: str = "auto",
    options: Options = DEFAULT_OPTIONS,
    runtime: str = "torch",
    **settings: Unpack[ModelSettings],
) -> Segmenter:
    """Load a CLIP, a trained student, or the preview without CLIP, as a segmenter.

    Args:
        model: `ViT-B-16:openai`, any other architecture and tag of `maskclip models`, an embedded
            model (`emoji`), the preview without CLIP (`photo`), `hf-hub:org/name`, a folder as
            open_clip writes it, a weights file, the file of a student or the run folder of its
            training, a file of `maskclip export`; or a `ModelConfig`.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"` or `"mps"`.
        options: how images will be cut, by which `method="auto"` chooses; `Segmenter.why` says why.
        runtime: what runs the network: `"torch"`, `"onnx"`, `"openvino"`, or `"auto"`: the fastest
            of those that are installed; `Segmenter.runtime_why` says why. The latter three make a
            graph of the network first, which is kept for the next time.
        settings: other fields of `ModelConfig`: `weights`, `method`, `templates`, `precision`,
            `proxy`, `tokenizer`, `language`.

    Returns:
        What labels photos by it.

    Raises:
        MaskCLIPError: the model or the device cannot be used; the message says what to do.

    Examples:
        >>> segmenter = maskclip.load("emoji")
        >>> found = segmenter.segment("photo.jpg", ["dog", "grass"])
        >>> list(found.coverage())
        ['grass', 'dog']

        By another method, on the CPU:

        >>> segmenter = maskclip.load("emoji-vit", method="naclip", device="cpu")
        >>> segmenter.method.name, segmenter.device.type
        ('naclip', 'cpu')
    """
    check_keywords(settings, ModelSettings, others=["model", "device", "options", "runtime"])
    check_options(options)
    base = model if isinstance(model, ModelConfig) else ModelConfig(name=model)  # type: ignore[arg-type]
    config = replace(base, **settings)  # type: ignore[arg-type]  # paths become text
    config, place = placed(config, device, runtime)
    check_precision(config.precision)
    segmenter = _opened(config, place, options)
    run_by(segmenter, runtime)
    return segmenter


def _opened(config: ModelConfig, device: torch.device, options: Options) -> Segmenter:
    """Read a model as a segmenter that PyTorch runs, or the file's own runtime."""
    if names_exported(config.name):
        return load_exported(config, device=device)
    if not names_clip(config.name):
        refuse_settings_of_clip(config)
        if config.name in PREVIEWS:
            return load_preview(config.name, device=device, precision=config.precision)
        return load_student(
            Path(config.name),
            weights=config.weights,
            tokenizer=config.tokenizer,
            device=device,
            precision=config.precision,
        )
    template_set(config.templates)  # an unknown name is refused before weights are read
    clip = load_of(config, options)
    choice = choose(clip, config.method, options)
    method = with_proxy(choice.method, config.proxy)
    if config.proxy is not None:  # a network of a file is refused before a proxy is loaded
        build_tower(shared_copy(clip.visual), method)
    return CLIPSegmenter(
        clip,
        method=method,
        device=device,
        precision=config.precision,
        templates=config.templates,
        why=choice.why,
        proxy=None if config.proxy is None else load_proxy(config.proxy),
    )


class CLIPSegmenter(Segmenter):
    """A CLIP that labels pixels with any words; made by `load`."""

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

    def tokenizer_identity(self) -> str:
        """Return a hash of the tokenizer and the language of its words; "" is CLIP's own."""
        return self.clip.tokenizer_identity()

    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
        on_word: OnWord | None = None,
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use, its words encoded; refuse bad ones now.

        Raises:
            MaskCLIPError: there are no classes, or they cannot be used.
        """
        check_options(options)
        if classes is None:
            raise MaskCLIPError(f"no classes: {self.clip.name} labels with the words that it gets")
        if options.key_smoothing is not None:
            self.check_keys()
        self.check_view(options)
        vocabulary = as_vocabulary(classes).with_background(background)
        vocabulary = with_usable_confidence(vocabulary, self.method)
        self.text_rows(vocabulary, on_word=on_word)
        warning = useless(vocabulary, self.method)
        if warning is not None:
            warnings.warn(warning, MaskCLIPWarning, stacklevel=3)  # the caller of `segment`
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
        check_view(
            options,
            working_size=self.short_side,
            cell=self.cell,
            check_size=self.encoder.check_size,
        )

    def check_keys(self) -> None:
        """Refuse what needs keys, where the tower has none under its method.

        Raises:
            UnsupportedMethodError: it has none.
        """
        self.encoder.check_keys()

    def check_image(self) -> None:
        """Refuse nothing: every CLIP embeds whole images."""

    def text_rows(self, vocabulary: Vocabulary, *, on_word: OnWord | None = None) -> Tensor:
        """Return the (P, D) unit text rows of a vocabulary's prompts, kept for the next call.

        Raises:
            PromptError: a name is too long for the model.
        """
        rows = self._rows.get(vocabulary)
        if rows is not None:
            return rows
        rows, unknown = text_rows(
            self.clip,
            vocabulary.flat_prompts,
            templates=self.templates,
            device=self.device,
            on_word=on_word,
        )
        if unknown:
            warning = never_saw(self.clip, unknown)
            warnings.warn(warning, MaskCLIPWarning, stacklevel=4)  # the caller of `segment`
        rows = rows.to(self.device)
        self._rows.put(vocabulary, rows, rows.nbytes)
        return rows

    @property
    def stretch(self) -> bool:
        """Whether the grid is stretched over what the network sees."""
        return self.method.stretch

    def plain(self) -> tuple[nn.Module, Encode]:
        """Return the image tower with its weights as they were read, and what sees by it."""
        encoder = DenseCLIP.of(self.clip, method=self.method, proxy=self.encoder.proxy)
        return encoder, encoder.encode

    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        return self.encoder.encode(crops, keys=keys, image=image)
