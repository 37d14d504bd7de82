"""open_clip's architectures and tags, and files of their weights, as loaded models."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from maskclip.clip.checkpoint import (
    Checkpoint,
    StateDict,
    WeightsError,
    fit,
    read_checkpoint,
    text_config,
    vision_config,
)
from maskclip.clip.download import locate
from maskclip.clip.embedded import ALIASES, EMBEDDED
from maskclip.clip.model import (
    OPENAI_MEAN,
    OPENAI_STD,
    CLIPModel,
    Statistics,
    Tokenizer,
    Whole,
    fingerprint,
)
from maskclip.clip.towers import SUPPORTED, UnsupportedTowerError
from maskclip.core.errors import MaskCLIPWarning

RANDOM = "random"
RANDOM_SEED = 0


def load_pretrained(name: str, *, weights: str | None = None) -> CLIPModel:
    """Load an architecture of open_clip; see `clip.weights.load_clip` for arguments and errors."""
    architecture, _, tag = name.replace("/", "-").partition(":")
    config = _architecture(architecture)
    if weights is None:
        tag = tag or _default_tag(architecture)
    pretrained = _pretrained(architecture, tag) if tag else {}
    # Tags know what architectures do not: OpenAI's weights want QuickGELU in a plain ViT-B-16 too.
    config["quick_gelu"] = bool(config.get("quick_gelu") or pretrained.get("quick_gelu"))
    if weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model = _build(config)
    else:
        path = locate(architecture, tag) if weights is None else Path(weights)
        model = _fitted(config, read_checkpoint(path), path, None if tag else architecture)
    return _loaded(
        f"{architecture}:{tag if weights is None else Path(weights).name}",
        Whole(model, _tokenizer(architecture)),
        mean=pretrained.get("mean", OPENAI_MEAN),
        std=pretrained.get("std", OPENAI_STD),
    )


def architectures() -> list[str]:
    """Return open_clip's architectures that have a dense reading."""
    return [name for name in open_clip.list_models() if _has_dense_reading(_raw_config(name))]


def tags(architecture: str) -> list[str]:
    """Return the pretrained tags of an architecture."""
    return list(open_clip.list_pretrained_tags_by_model(architecture))


def _loaded(
    name: str, whole: Whole, *, mean: Statistics = OPENAI_MEAN, std: Statistics = OPENAI_STD
) -> CLIPModel:
    """Return a model that open_clip has built."""
    visual = whole.model.visual
    assert isinstance(visual, nn.Module)
    return CLIPModel(name, visual, lambda: whole, fingerprint(whole.model), mean=mean, std=std)


def _raw_config(architecture: str) -> dict[str, Any]:
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    return config


def _architecture(architecture: str) -> dict[str, Any]:
    """Return a supported architecture's configuration."""
    if architecture not in open_clip.list_models():
        known = {name.casefold(): name for name in (*EMBEDDED, *ALIASES, *architectures())}
        near = difflib.get_close_matches(architecture.casefold(), known, n=3, cutoff=0.4)
        hint = f"; nearest: {', '.join(known[name] for name in near)}" if near else ""
        raise WeightsError(f"unknown model {architecture!r}{hint}; `maskclip models` lists them")
    config = _raw_config(architecture)
    if not _has_dense_reading(config):
        raise UnsupportedTowerError(
            f"{architecture} has no dense reading here: expected {SUPPORTED}"
        )
    return config


def _has_dense_reading(config: dict[str, Any]) -> bool:
    vision = config["vision_cfg"]
    return (
        isinstance(vision, dict)
        and not vision.get("timm_model_name")
        and not vision.get("attentional_pool")
        and vision.get("pool_type", "tok") == "tok"
        and "multimodal_cfg" not in config
    )


def _default_tag(architecture: str) -> str:
    known = tags(architecture)
    if "openai" in known:
        return "openai"
    if len(known) == 1:
        return known[0]
    if not known:
        raise WeightsError(f"{architecture} has no published weights: give --weights FILE")
    raise WeightsError(
        f"{architecture} has several weights: say {architecture}:TAG with one of {', '.join(known)}"
    )


def _pretrained(architecture: str, tag: str) -> dict[str, Any]:
    if tag not in tags(architecture):
        raise WeightsError(
            f"{architecture} has no weights tagged {tag!r}: expected one of "
            f"{', '.join(tags(architecture)) or 'none; give --weights FILE'}"
        )
    pretrained: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    return pretrained


def _build(config: dict[str, Any]) -> nn.Module:
    """Instantiate open_clip's model of a configuration, in eval mode."""
    config = dict(config)
    custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    try:
        if custom_text:
            text = {**config["text_cfg"], "hf_model_pretrained": False}
            model: nn.Module = open_clip.CustomTextCLIP(**{**config, "text_cfg": text})
        else:
            model = open_clip.CLIP(**config)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"its text tower cannot be built here: {reason}") from error
    return model.eval()


def _tokenizer(architecture: str) -> Tokenizer:
    try:
        tokenizer: Tokenizer = open_clip.get_tokenizer(architecture)
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"the tokenizer of {architecture} cannot be had: {reason}") from error
    return tokenizer


def build_whole(config: dict[str, Any], state: StateDict, *, source: str) -> Whole:
    """Build the model and tokenizer of a configuration and its weights.

    Raises:
        WeightsError: the weights do not fit; `source` says whose they are.
    """
    model = _build(config)
    fit(model, state, source=source)
    context = config["text_cfg"]["context_length"]
    return Whole(model, open_clip.SimpleTokenizer(context_length=context))


def load_file(checkpoint: Checkpoint, path: Path) -> CLIPModel:
    """Find the architecture from the shapes in a file: one of open_clip's, or one like them.

    Raises:
        WeightsError: it is not a CLIP of a supported family.
    """
    try:
        vision, text = vision_config(checkpoint.state), text_config(checkpoint.state)
        embed_dim = checkpoint.state["text_projection"].shape[1]
    except KeyError as error:
        raise WeightsError(
            f"{path}: not a CLIP of the supported families (no {error}): expected {SUPPORTED}; "
            "if it is one, name its architecture: --model NAME --weights FILE"
        ) from error
    found: dict[str, Any] = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
    for architecture in architectures():
        known = _raw_config(architecture)
        if _same_shapes(known, found):
            model = _fitted(known, checkpoint, path, architecture)
            return _loaded(path.stem, Whole(model, _tokenizer(architecture)))
    tokenizer = open_clip.SimpleTokenizer(context_length=text["context_length"])
    model = _fitted(found, checkpoint, path, None)
    return _loaded(path.stem, Whole(model, tokenizer))


def _fitted(
    config: dict[str, Any], checkpoint: Checkpoint, path: Path, architecture: str | None
) -> nn.Module:
    """Build a model and load a checkpoint into it.

    A plain state_dict does not say whether it was trained with QuickGELU, and a file without a tag
    does not either: where an `architecture` was published both ways, that is worth a warning.
    """
    quick = bool(checkpoint.quick_gelu or config.get("quick_gelu"))
    if architecture is not None and not quick:
        published = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags(architecture)]
        if any(pretrained.get("quick_gelu") for pretrained in published):
            warnings.warn(
                f"{path} does not say which activation it was trained with: taken as GELU. For "
                f"OpenAI's weights say --model {architecture}:openai --weights {path}",
                MaskCLIPWarning,
                stacklevel=2,
            )
    model = _build({**config, "quick_gelu": quick})
    fit(model, checkpoint.state, source=str(path))
    return model


def _same_shapes(known: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether an architecture's configuration gives the shapes found in a file."""
    defaults = {"patch_size": 16, "width": 768, "layers": 12, "image_size": 224}
    vision = {
        key: tuple(value) if isinstance(value := known["vision_cfg"].get(key, default), list)
        else value
        for key, default in defaults.items()
        if key in found["vision_cfg"]
    }  # fmt: skip
    text = {key: known["text_cfg"].get(key) for key in found["text_cfg"] if key != "heads"}
    return (
        known["embed_dim"] == found["embed_dim"]
        and vision == found["vision_cfg"]
        and text == {key: value for key, value in found["text_cfg"].items() if key != "heads"}
    )
