"""Folders as open_clip writes them, here or on the hub: a configuration beside weights.

A stranger wrote the configuration: each of its values is compared with what open_clip could have
written before anything is built of it, and no code of a repository is ever fetched or run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskclip.clip.checkpoint import WeightsError
from maskclip.clip.hub import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    DownloadError,
    cache_folder,
    cached_file,
    hub_file,
)
from maskclip.clip.model import OPENAI_MEAN, OPENAI_STD, Statistics
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.text import brief, read_json

_WHAT = "a configuration of open_clip"
_OWN_WORDS = 49_408  # tokens of CLIP's own tokenizer
_LARGEST_CONFIG = 1 << 20  # bytes; those of open_clip have one thousand

Check = Callable[[Any], Any]
"""A value of a configuration -> the value to be used; raises ValueError, which says what fits."""


@dataclass(frozen=True)
class Folder:
    """What lies in a folder, or in a repository of the hub.

    Attributes:
        name: as it was given.
        repository: `org/name` on the hub; "" of a folder.
        revision: a branch, tag or commit of the repository.
        path: the folder; of a repository, that of its snapshot on this machine.
        config: open_clip's configuration of the model, checked.
        mean, std: RGB statistics of its training.
    """

    name: str
    repository: str
    revision: str
    path: Path
    config: dict[str, Any]
    mean: Statistics
    std: Statistics

    def weights(self) -> Path:
        """Return the file of its weights, downloaded if need be.

        Raises:
            WeightsError: there is none, or it cannot be downloaded.
        """
        if self.repository:
            return _file(self.name, self.repository, self.revision, *WEIGHTS)
        found = [self.path / name for name in WEIGHTS if (self.path / name).is_file()]
        if not found:
            raise WeightsError(
                f"{self.path} has no weights beside its {CONFIG}: expected {' or '.join(WEIGHTS)}, "
                "or give a file with `weights=FILE`"
            )
        return found[0]

    def tokenizer(self) -> Path | None:
        """Return the folder if its model needs a tokenizer whose files lie in it, else None."""
        from maskclip.clip.tokenizers import VOCABULARY_FILES  # which imports open_clip

        if self.repository or not _named_tokenizer(self.config["text_cfg"]):
            return None
        has_one = any((self.path / name).is_file() for name in VOCABULARY_FILES)
        return self.path if has_one else None


def read_folder(name: str) -> Folder:
    """Read the configuration of a repository (`hf-hub:org/name@revision`) or of a folder.

    Raises:
        WeightsError: it is not to be had, or not one that open_clip could have written.
    """
    if not name.startswith(PREFIX):
        return _read(name, Path(name) / CONFIG)
    repository, revision = split_name(name)
    path = _file(name, repository, revision, CONFIG)
    return _read(name, path, repository=repository, revision=revision)


def split_name(name: str) -> tuple[str, str]:
    """Return the repository and the revision of `hf-hub:org/name@revision`.

    Raises:
        WeightsError: the hub allows no such name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # lazily there

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise WeightsError(
            f"{brief(name)} is no name of a repository: expected {PREFIX}org/name, "
            "which may end with @revision"
        ) from None
    return repository, revision or "main"


def _file(name: str, repository: str, revision: str, *files: str) -> Path:
    try:
        return hub_file(repository, *files, revision=revision)
    except DownloadError as error:
        raise WeightsError(
            f"{name}: {' or '.join(files)} is not on this machine and cannot be downloaded "
            f"({error}); it would be cached in {cache_folder(repository)}"
        ) from error


def cached_config(name: str) -> dict[str, Any] | None:
    """Return the configuration of a repository that is on this machine, or None.

    Raises:
        WeightsError: it is not one that open_clip could have written.
    """
    repository, revision = split_name(name)
    path = cached_file(repository, CONFIG, revision=revision)
    return None if path is None else _read(name, path, repository=repository).config


def _read(name: str, path: Path, *, repository: str = "", revision: str = "main") -> Folder:
    found = read_json(path, _WHAT, limit=_LARGEST_CONFIG)
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: expected {_WHAT}, got {brief(found)}")
    try:
        config = check_config(found.get("model_cfg", found))
        _check_words(config["text_cfg"])
        mean, std = _statistics(found.get("preprocess_cfg", {}))
    except MaskCLIPError as error:
        raise WeightsError(f"{path}: {error}") from None
    return Folder(name, repository, revision, path.parent, config, mean, std)


def check_config(config: Any) -> dict[str, Any]:
    """Return a model's configuration of open_clip, if all of it is what open_clip may write.

    Raises:
        MaskCLIPError: a value is missing, unknown, or out of its range; it is named.
    """
    found = _checked(_table(config, "model_cfg"), _MODEL, "")
    for part in ("embed_dim", "vision_cfg", "text_cfg"):
        if part not in found:
            raise MaskCLIPError(f"expected {_WHAT}, got none of {part}")
    vision = found["vision_cfg"] = _checked(found["vision_cfg"], _VISION, "vision_cfg.")
    vision.pop("patch_dropout", None)  # which counts in training alone
    found["text_cfg"] = _checked(found["text_cfg"], _TEXT, "text_cfg.")
    if "multimodal_cfg" in found:
        found["multimodal_cfg"] = _checked(found["multimodal_cfg"], _CAPTION, "multimodal_cfg.")
    if vision.get("timm_model_name") is not None:
        _check_timm(vision["timm_model_name"])
        vision["timm_model_pretrained"] = False
    else:
        vision.setdefault("layers", 12)
    return found


def _check_words(text: Mapping[str, Any]) -> None:
    """Refuse a text tower of other words than CLIP's own, whose tokenizer is not named."""
    words = text.get("vocab_size", _OWN_WORDS)
    if words != _OWN_WORDS and not _named_tokenizer(text):
        raise MaskCLIPError(
            f"text_cfg.vocab_size: expected the {_OWN_WORDS:,} tokens of CLIP's own tokenizer, or "
            f"hf_tokenizer_name, got {words:,}"
        )


def _named_tokenizer(text: Mapping[str, Any]) -> str | None:
    """Return the repository of the tokenizer that a text tower needs; None is CLIP's own."""
    return text.get("hf_tokenizer_name") or text.get("hf_model_name") or None


def _check_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise MaskCLIPError(f"vision_cfg.timm_model_name: timm has no network {brief(name)}{near}")


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MaskCLIPError(f"{name}: expected a table, got {brief(value)}")
    return value


def _checked(values: Mapping[str, Any], known: Mapping[str, Check], where: str) -> dict[str, Any]:
    """Return a table whose every value was checked by its name."""
    found = {}
    for name, value in values.items():
        if name not in known:
            near = did_you_mean(str(name), known)
            raise MaskCLIPError(f"{where}{brief(name)[1:-1]}: not known to open_clip{near}")
        try:
            found[name] = known[name](value)
        except ValueError as error:
            raise MaskCLIPError(f"{where}{name}: expected {error}, got {brief(value)}") from None
    return found


def _statistics(preprocess: Any) -> tuple[Statistics, Statistics]:
    table, found = _table(preprocess, "preprocess_cfg"), []
    for name, default, lowest in (("mean", OPENAI_MEAN, -8.0), ("std", OPENAI_STD, 1e-3)):
        values = table.get(name, default)
        if not isinstance(values, list | tuple) or len(values) != 3:
            raise MaskCLIPError(
                f"preprocess_cfg.{name}: expected three numbers, got {brief(values)}"
            )
        for value in values:
            if not _is_number(value) or not lowest <= value <= 8:
                raise MaskCLIPError(
                    f"preprocess_cfg.{name}: expected numbers from {lowest:g} to 8, got "
                    f"{brief(value)}"
                )
        red, green, blue = map(float, values)
        found.append((red, green, blue))
    return found[0], found[1]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(frozen=True)
class _Number:
    """Numbers of a range; whole ones, unless its ends are not."""

    low: float
    high: float

    def __call__(self, value: Any) -> Any:
        whole = isinstance(self.low, int)
        fits = type(value) is int if whole else _is_number(value)
        if not fits or not self.low <= value <= self.high:
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{kind} from {self.low:g} to {self.high:g}")
        return value


@dataclass(frozen=True)
class _OneOf:
    """Some values, by name or plain."""

    values: tuple[Any, ...]

    def __call__(self, value: Any) -> Any:
        if not any(value == each and type(value) is type(each) for each in self.values):
            raise ValueError(f"one of {', '.join(map(repr, self.values))}")
        return value


@dataclass(frozen=True)
class _Maybe:
    """What fits another check, or nothing."""

    check: Check

    def __call__(self, value: Any) -> Any:
        return None if value is None else self.check(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise ValueError("a name")
    return value


def _any_table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a table")
    return value


def _layers(value: Any) -> Any:
    """Check the blocks of a ViT, or those of the four stages of a ResNet."""
    one = _Number(1, 64)
    if not isinstance(value, list | tuple):
        return one(value)
    if len(value) != 4:
        raise ValueError("a whole number from 1 to 64, or four of them")
    return [one(each) for each in value]


def _side(value: Any) -> Any:
    """Check the side of square images, which may be given twice."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise ValueError("square images")
        value = value[0]
    return _Number(1, 4096)(value)


def _options(*names: str) -> Check:
    """Return the check of a table of plain values that open_clip hands on to a module."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        for name, each in _any_table(value).items():
            words = isinstance(each, list) and len(each) <= 100 and all(map(_is_word, each))
            if name not in names or not (_is_word(each) or _is_number(each) or words):
                raise ValueError(f"plain values for {', '.join(names)}")
        return value

    return check


def _is_word(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and len(value) <= 200)


_YES_NO = _OneOf((True, False))
_BLOCKS: dict[str, Check] = {
    "mlp_ratio": _Number(0.01, 32.0),
    "ls_init_value": _Maybe(_Number(0.0, 100.0)),
    "final_ln_after_pool": _YES_NO,
    "output_tokens": _YES_NO,
    "act_kwargs": _options("approximate"),
    "norm_kwargs": _options("eps"),
    "block_type": _OneOf((None, "default", "custom")),
    "qk_norm": _YES_NO,
    "scaled_cosine_attn": _YES_NO,
    "scale_heads": _YES_NO,
    "scale_attn_inner": _YES_NO,
    "scale_attn": _YES_NO,
    "scale_fc": _YES_NO,
}
_VISION: dict[str, Check] = {
    **_BLOCKS,
    "layers": _layers,
    "width": _Number(2, 8192),
    "head_width": _Number(1, 1024),
    "patch_size": _Maybe(_Number(1, 1024)),
    "image_size": _side,
    "patch_dropout": _Number(0.0, 1.0),
    "attentional_pool": _OneOf((True, False, "parallel", "cascade")),
    "attn_pooler_queries": _Number(1, 4096),
    "attn_pooler_heads": _Number(1, 256),
    "no_ln_pre": _YES_NO,
    "pos_embed_type": _OneOf(("learnable", "sin_cos_2d")),
    "pool_type": _OneOf(("tok", "avg", "none")),
    "timm_model_name": _Maybe(_text),
    "timm_model_pretrained": _YES_NO,
    "timm_pool": _OneOf(("", "avg", "token", "map", "abs_attn", "rot_attn", "avgmax", "max")),
    "timm_proj": _OneOf((None, "", "none", "linear", "mlp")),
    "timm_proj_bias": _YES_NO,
    "timm_drop": _Number(0.0, 1.0),
    "timm_drop_path": _Maybe(_Number(0.0, 1.0)),
}
_TEXT: dict[str, Check] = {
    **_BLOCKS,
    "context_length": _Number(1, 4096),
    "vocab_size": _Number(1, 2_000_000),
    "hf_tokenizer_name": _Maybe(_text),
    "tokenizer_mode": _OneOf((None, "clips")),
    "tokenizer_kwargs": _options(
        *("clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens")
    ),
    "width": _Number(2, 8192),
    "heads": _Number(1, 256),
    "layers": _Number(1, 64),
    "embed_cls": _YES_NO,
    "pad_id": _Number(0, 2_000_000),
    "eos_id": _Number(0, 2_000_000),
    "no_causal_mask": _YES_NO,
    "pool_type": _OneOf(("argmax", "first", "last", "eos", "none")),
    "proj_bias": _YES_NO,
    "proj_type": _OneOf(("linear", "none")),
    "hf_model_name": _Maybe(_text),
    "hf_model_pretrained": _YES_NO,
    "hf_proj_type": _OneOf((None, "linear", "mlp")),
    "hf_pooler_type": _OneOf(
        (None, "mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
    ),
}
_CAPTION: dict[str, Check] = {
    **_TEXT,
    "dim_head": _Number(1, 1024),
    "n_queries": _Number(1, 4096),
    "attn_pooler_heads": _Number(1, 256),
}
_MODEL: dict[str, Check] = {
    "embed_dim": _Number(1, 8192),
    "vision_cfg": _any_table,
    "text_cfg": _any_table,
    "multimodal_cfg": _any_table,
    "quick_gelu": _YES_NO,
    "custom_text": _YES_NO,
    "init_logit_scale": _Number(-20.0, 20.0),
    "init_logit_bias": _Maybe(_Number(-1000.0, 1000.0)),
    "nonscalar_logit_scale": _YES_NO,
}
