"""Which method reads a CLIP best, as far as published figures say: `method="auto"`.

They are mean mIoU in % of zero-shot segmentation, from the papers of the methods. Nothing of them
was measured here, and nothing is measured to choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from maskclip.clip.families import FEATURE_MAPS, traits_of
from maskclip.clip.model import CLIPModel
from maskclip.clip.towers import can_read
from maskclip.clip.weights import load_of
from maskclip.core.config import DEFAULT_OPTIONS, ModelConfig, Options
from maskclip.core.method import CLEAN, Method
from maskclip.core.methods import AUTO, NACLIP, SCCLIP, SOURCES, get_method

_WINDOW = 224  # px that the network sees at once, in what was published
_SIDE = 6  # patches: a square of them has more than the 30 that SC-CLIP needs
_FEWEST_BLOCKS = 4  # of a ViT for which methods were made
_NO_FIGURES = "as nothing is published of other methods where no class token is the embedding"
_BASE, _LARGE = (12, 16, 768), (24, 14, 1024)  # blocks, patch, width: ViT-B/16 and ViT-L/14


class Choice(NamedTuple):
    """A method, and why it was chosen: "" where it was named."""

    method: Method
    why: str


def choose(clip: CLIPModel, method: str | Method, options: Options = DEFAULT_OPTIONS) -> Choice:
    """Return the method of that name or file, or the one that `auto` stands for.

    `auto` goes by the tower, by how much of an image it sees at once, and by whether keys are
    smoothed; whatever the images are, the choice is the same.

    Args:
        clip: the model.
        method: as `ModelConfig` takes it.
        options: how images are cut.

    Raises:
        MaskCLIPError: there is no such method.
    """
    if method != AUTO:
        return Choice(get_method(method), "")
    keys = options.key_smoothing is not None
    for choice in _candidates(clip, options):
        if can_read(clip.visual, choice.method, keys=keys):
            return choice
    return Choice(CLEAN, "as this network can be read in no other way")


def settle(config: ModelConfig, options: Options) -> tuple[ModelConfig, str]:
    """Return a model whose method is settled, and why `auto` became it; "" where it was named.

    For what is recorded of a run before its model is loaded; `auto` looks at the model.

    Raises:
        MaskCLIPError: it cannot be loaded.
    """
    if config.method != AUTO:
        return config, ""
    choice = choose(load_of(config, options), AUTO, options)
    return replace(config, method=choice.method.name), choice.why


def _candidates(clip: CLIPModel, options: Options) -> Iterator[Choice]:
    """Yield what the evidence is for, the best first."""
    if clip.known_tokens is not None:
        yield Choice(CLEAN, "the best of those measured on drawn scenes")
    traits = traits_of(clip.visual)
    if traits.family == "resnet":
        yield Choice(CLEAN, "as a ResNet has no blocks to be read in another way")
    if traits.family in FEATURE_MAPS:
        yield Choice(CLEAN, "as a feature map has no attention to be read in another way")
    if traits.pooling not in ("tok", "token"):
        yield Choice(CLEAN, _NO_FIGURES)
        return
    shape = _shape_of(clip.visual)
    plain = traits.family == "vit"  # the networks of the published figures
    if plain and shape == _BASE:
        yield from _of_base(shape[1], options, clip.short_side)
    large = "36.2 on ViT-L/14, where MaskCLIP falls to 13.7"
    if plain and shape == _LARGE:
        yield Choice(NACLIP, f"for its published figure: {large}")
    if shape[0] < _FEWEST_BLOCKS:
        few = f"fewer than {_FEWEST_BLOCKS} blocks"
        yield Choice(CLEAN, f"as nothing is published of other methods on ViTs of {few}")
    yield Choice(NACLIP, f"as nothing in it is made for one network: it has {large}")


def _of_base(patch: int, options: Options, working_size: int) -> Iterator[Choice]:
    """Yield what suits ViT-B/16, on which most of the evidence is."""
    best, plain = SOURCES["scclip"].mean, SOURCES["clean"].mean
    short = working_size if options.short_side is None else options.short_side
    side = min(short, options.window or short)
    if options.key_smoothing is not None:
        yield Choice(NACLIP, "as SC-CLIP, of higher published figures, has no keys to smooth")
    elif not short:  # any size may come, and SC-CLIP does not read the smallest
        yield Choice(NACLIP, "as it reads photos of any size, which are not resized here")
    elif side > _WINDOW:
        seen = f"{side} px are seen at once here"
        yield Choice(
            NACLIP, f"as higher published figures are of windows of {_WINDOW} px, and {seen}"
        )
    elif side > (_SIDE - 1) * patch:
        found = f"{best} in windows of {_WINDOW} px, where MaskCLIP has {plain}"
        yield Choice(SCCLIP, f"for its published figure: {found}")


def _shape_of(visual: Any) -> tuple[int, int, int]:
    """Return the number of blocks, the patch in px and the width of a ViT with a class token."""
    if not hasattr(visual, "trunk"):
        convolution = visual.conv1
        blocks = visual.transformer.resblocks
        return len(blocks), convolution.kernel_size[0], convolution.out_channels
    trunk = visual.trunk
    return len(trunk.blocks), trunk.patch_embed.feat_ratio(), trunk.num_features
