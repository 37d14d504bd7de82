"""A model's name -> a loaded CLIP.

Names are `ARCHITECTURE:TAG` (any of open_clip's), an architecture with a local file or `random`, a
file alone, a folder as open_clip writes it, `hf-hub:org/name`, or one of the embedded models.
open_clip is imported for what needs it: its import takes longer than labelling a few small images.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import nn

from maskclip.clip.checkpoint import WeightsError, one_line, read_checkpoint
from maskclip.clip.embedded import (
    describes_itself,
    from_checkpoint,
    light_tower,
    load_embedded,
)
from maskclip.clip.families import check_tower
from maskclip.clip.hub import CONFIG, names_folder
from maskclip.clip.model import CLIPModel
from maskclip.clip.proxy import check_proxy
from maskclip.core.config import (
    ALIASES,
    DEFAULT_MODEL,
    DEFAULT_OPTIONS,
    EMBEDDED,
    ModelConfig,
    Options,
)
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.files import refuse_missing_model
from maskclip.core.text import brief

_Key = tuple[str, str | None, str | None, str | None]
_LOADED: ContextVar[dict[_Key, CLIPModel | WeightsError] | None] = ContextVar(
    "_LOADED", default=None
)
ENGLISH, WORD = "eng_Latn", "word"  # the language of templates, and those without any
_WEIGHT_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}


def load_clip(
    name: str = DEFAULT_MODEL,
    *,
    weights: str | None = None,
    tokenizer: str | None = None,
    language: str | None = None,
) -> CLIPModel:
    """Load a CLIP by name.

    Args:
        name: `ViT-B-16:openai`, `RN50` (its only or its `openai` tag), `emoji-rn`, a file, a folder
            of open_clip's, or `hf-hub:org/name`, which may end with `@revision`.
        weights: a local file for the architecture `name`, or `"random"` for seeded random ones.
            A tag beside a file (`ViT-B-16:openai`) says how its weights were trained.
        tokenizer: a folder of files of a tokenizer of transformers, of models that have one, in the
            place of the hub's.
        language: the language of the words, as `deu_Latn`, of models whose tokenizer writes it
            before them (NLLB-CLIP); None is English.

    Raises:
        WeightsError: unknown name or tag, weights or a tokenizer not to be had, or not fitting.
        UnsupportedTowerError: the image tower has no dense reading.
    """
    loaded, key = _LOADED.get(), (ALIASES.get(name, name), weights, tokenizer, language)
    if loaded is None:
        return _load(*key)
    if key not in loaded:
        for other in [one for one in loaded if isinstance(loaded[one], CLIPModel)]:
            del loaded[other]
        try:
            loaded[key] = _load(*key)
        except WeightsError as error:
            loaded[key] = error
    found = loaded[key]
    if isinstance(found, WeightsError):
        raise found
    return found


def load_of(config: ModelConfig, options: Options = DEFAULT_OPTIONS) -> CLIPModel:
    """Load the CLIP of a configuration, as `load_clip`.

    What its network cannot compute is refused before weights are read, or downloaded, where its
    name says how it is built. Warns where English templates would stand around words of another
    language.

    Args:
        config: which CLIP, read how.
        options: how images will be cut, and whether keys are smoothed.

    Raises:
        UnsupportedMethodError: its network cannot compute the method, or has no keys.
        MaskCLIPError: as `load_clip`, or images are cut too small.
    """
    if config.language not in (None, ENGLISH) and config.templates != WORD:
        warnings.warn(
            f"the templates {config.templates} are English sentences, and the words are said to be "
            f"{config.language}: `templates={WORD}` takes the words alone",
            MaskCLIPWarning,
            stacklevel=3,
        )
    key: _Key = (config.name, config.weights, config.tokenizer, config.language)
    if not names_folder(config.name):
        refuse_missing_model(config.name)
    known = {*EMBEDDED, *ALIASES}  # whose weights are here, and whose import of open_clip is none
    if config.name not in known and key not in (_LOADED.get() or {}) and not _names_file(*key[:2]):
        from maskclip.clip.readings import check_ahead

        check_ahead(config, options)
        if config.proxy is not None:
            check_proxy(config.proxy)
    name, weights, tokenizer, language = key
    return load_clip(name, weights=weights, tokenizer=tokenizer, language=language)


@contextmanager
def remembering() -> Iterator[None]:
    """Let `load_clip` return the model that it loaded last, while the block runs.

    It also remembers which could not be loaded: none is looked for on the net twice. Encoders may
    share a model, so the model may be given out again.
    """
    token = _LOADED.set({})
    try:
        yield
    finally:
        _LOADED.reset(token)


def _load(name: str, weights: str | None, tokenizer: str | None, language: str | None) -> CLIPModel:
    if name in EMBEDDED:
        for argument, value in (
            ("weights", weights),
            ("tokenizer", tokenizer),
            ("language", language),
        ):
            if value is not None:
                raise WeightsError(f"{name} brings its own {argument}: leave `{argument}` out")
        return load_embedded(name)
    if names_folder(name):
        from maskclip.clip.open_clip_models import load_folder

        return load_folder(name, weights=weights, tokenizer=tokenizer, language=language)
    refuse_missing_model(name)
    if os.sep in name and Path(name).is_dir():
        raise WeightsError(
            f"{name} is a folder without {CONFIG}: expected the name of a CLIP, a file of weights, "
            "or a folder as open_clip writes it"
        )
    if _names_file(name, weights):
        path = Path(name)
        for argument, value in (("tokenizer", tokenizer), ("language", language)):
            if value is not None:
                raise WeightsError(
                    f"`{argument}`: {path} alone is a CLIP with its own tokenizer: leave "
                    f"`{argument}` out, or name its architecture: `model=NAME` and `weights={path}`"
                )
        checkpoint = read_checkpoint(path)
        if describes_itself(checkpoint):
            return from_checkpoint(checkpoint, path)
        from maskclip.clip.open_clip_models import load_file

        with one_line(path):
            return load_file(checkpoint, path)
    from maskclip.clip.open_clip_models import load_pretrained

    return load_pretrained(
        name,
        weights=weights,
        tokenizer=tokenizer,
        language=language,
        other_names=(*EMBEDDED, *ALIASES),
    )


def _names_file(name: str, weights: str | None) -> bool:
    """Whether a name is that of a file of weights, which stands alone."""
    return weights is None and (Path(name).is_file() or Path(name).suffix in _WEIGHT_SUFFIXES)


def build_tower(config: Mapping[str, Any]) -> nn.Module:
    """Build an image tower of random weights, of values that need not be trusted.

    Args:
        config: of `CLIPModel.tower`.

    Raises:
        WeightsError: they do not describe a tower.
    """
    try:
        if config["family"] == "architecture" and isinstance(config["name"], str):
            from maskclip.clip.open_clip_models import build_named

            return build_named(config["name"], quick_gelu=config["quick_gelu"] is True)
        check_tower(config)
        family, embed_dim, vision = config["family"], config["embed_dim"], config["vision_cfg"]
        if family == "embedded":
            return light_tower(embed_dim, dict(vision))
        if family == "open_clip":
            from maskclip.clip.open_clip_models import build_visual

            return build_visual(embed_dim, dict(vision), quick_gelu=config["quick_gelu"] is True)
    except (KeyError, TypeError, ValueError, AttributeError, MaskCLIPError) as error:
        reason = error if isinstance(error, MaskCLIPError) else brief(error)
        raise WeightsError(f"not the description of an image tower ({reason})") from error
    raise WeightsError(f"not an image tower that is known: {brief(family)}")
