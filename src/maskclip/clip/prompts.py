"""Words -> unit text rows: prompt ensembles, and a cache on disk so that words are encoded once."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskclip.clip.model import CLIPModel
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path

TEMPLATE_SETS = ("published", "open_clip", "plain")

_BATCH = 256  # prompts a forward of the text tower; bounds memory for vocabularies of any size


class TextRows(NamedTuple):
    """What a model makes of names.

    Attributes:
        rows: (P, D) float32 unit rows, one per name, on the CPU.
        unknown: the names with a word that an embedded model never saw; none for other models.
    """

    rows: Tensor
    unknown: tuple[str, ...]


class PromptError(MaskCLIPError):
    """A name cannot be put into a prompt."""


@cache
def template_set(name: str) -> tuple[str, ...]:
    """Return a set of prompt templates, each with one `{}`.

    `published`: the authors' 85; `open_clip`: its 80 for ImageNet; `plain`: "a photo of a {}.".

    Raises:
        PromptError: no set has that name.
    """
    if name == "open_clip":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if name not in TEMPLATE_SETS:
        raise PromptError(f"unknown templates {name!r}: expected one of {', '.join(TEMPLATE_SETS)}")
    text = resources.files(__package__).joinpath("templates.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)[name])


def cache_folder() -> Path:
    """Return the folder of cached text rows; it may not exist yet."""
    return platformdirs.user_cache_path("maskclip") / "text"


def text_rows(
    clip: CLIPModel, names: Sequence[str], *, templates: str, folder: Path | None = None
) -> TextRows:
    """Return one unit row per name, from the cache where they were made before.

    Args:
        clip: the model; its text tower runs only for words that are not cached.
        names: P names, as they stand in prompts.
        templates: which `template_set` to average over.
        folder: where rows are cached; `cache_folder()` by default.

    Raises:
        PromptError: a name does not fit into the model's context.
    """
    path = (folder or cache_folder()) / f"{_key(clip, names, templates)}.safetensors"
    try:
        return _read(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # never made, or not readable: made (again) below
    rows = encode_names(clip, names, template_set(templates))
    unknown = unknown_words(clip, names)
    try:
        with atomic_path(path) as temporary:
            save_file({"rows": rows}, temporary, metadata={"unknown": json.dumps(unknown)})
    except OSError:
        pass  # a cache that cannot be written costs time, not results
    return TextRows(rows, tuple(unknown))


def _read(path: Path) -> TextRows:
    with safe_open(path, framework="pt") as file:
        return TextRows(file.get_tensor("rows"), tuple(json.loads(file.metadata()["unknown"])))


def _key(clip: CLIPModel, names: Sequence[str], templates: str) -> str:
    content = [clip.name, clip.fingerprint, template_set(templates), list(names)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def class_rows(clip: CLIPModel, prompts: Sequence[Sequence[str]], *, templates: str) -> Tensor:
    """Return one unit text row per class, (K, D): the mean of the rows of its names.

    Args:
        clip: the model.
        prompts: the names of each class, one at least.
        templates: a set of `TEMPLATE_SETS`.

    Raises:
        PromptError: a name is too long for the model.
    """
    sizes = [len(names) for names in prompts]
    rows = text_rows(clip, [name for names in prompts for name in names], templates=templates).rows
    means = [part.mean(dim=0) for part in torch.split(rows, sizes)]
    return F.normalize(torch.stack(means), dim=1)


@torch.inference_mode()
def encode_names(clip: CLIPModel, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Run the text tower: per name normalise each template's row, average, normalise.

    It runs, and stays, where the image tower is.

    Returns:
        (P, D) float32, unit rows, on the CPU.

    Raises:
        PromptError: a name does not fit into the model's context.
    """
    check_lengths(clip, names, templates)
    device = next(clip.visual.parameters()).device
    model: Any = clip.model.to(device)
    at_once = max(1, _BATCH // len(templates))
    rows = []
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        prompts = [template.format(name) for name in some for template in templates]
        each = F.normalize(model.encode_text(clip.tokenizer(prompts).to(device)), dim=-1)
        mean = each.float().view(len(some), len(templates), -1).mean(dim=1)
        rows.append(F.normalize(mean, dim=-1).cpu())
    return torch.cat(rows)


def check_lengths(clip: CLIPModel, names: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse names that CLIP's tokenizer would silently cut.

    Raises:
        PromptError: names the first name that is too long, and the limit.
    """
    tokenizer: Any = clip.tokenizer
    encode = _token_counter(tokenizer)
    limit = tokenizer.context_length
    frame = max(encode(template.format("")) for template in templates)
    for name in names:
        used = encode(name) + frame + 2  # start and end of text
        if used > limit:
            shown = name if len(name) <= 40 else f"{name[:40]}..."
            raise PromptError(
                f"the name {shown!r} takes {used} tokens with its prompt, and {clip.name} reads "
                f"{limit}: shorten it"
            )


def unknown_words(clip: CLIPModel, names: Sequence[str]) -> list[str]:
    """Return the names with a word that an embedded model never saw; [] for open-world models."""
    if clip.known_tokens is None:
        return []
    tokenizer: Any = clip.tokenizer
    return [name for name in names if not clip.known_tokens.issuperset(tokenizer.encode(name))]


def _token_counter(tokenizer: Any) -> Callable[[str], int]:
    if hasattr(tokenizer, "encode"):
        return lambda text: len(tokenizer.encode(text))
    # open_clip's wrapper of transformers' tokenizers counts the special tokens in.
    return lambda text: len(tokenizer.tokenizer(text)["input_ids"]) - 2
