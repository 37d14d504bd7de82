"""The command and the lines of Python that repeat what a page shows."""

from __future__ import annotations

import shlex
from typing import Any

from maskclip.core.class_lists import read_background, split_words
from maskclip.web.models import Offer
from maskclip.web.settings import Settings

_VIEW = ("short_side", "window", "stride")
_OPTIONS = (
    "method",
    "key_smoothing",
    "prompt_denoising",
    "refine",
    "regions",
    *_VIEW,
)


def command_of(given: Settings, offered: Offer, photo: str) -> str:
    """Return the `maskclip segment` that gives the labels that a request got.

    Args:
        given: the request.
        offered: its model.
        photo: the name of its photo's file.
    """
    parts = ["maskclip", "segment", _as_path(photo)]
    if given.vocabulary is not None:
        parts += [_option("vocabulary"), given.vocabulary]
    for line in split_words(given.words or ""):
        parts += [_option("class"), line]
    if given.background is not None and read_background(given.background) is not None:
        parts += [f"{_option('background')}={given.background}"]  # it may begin with a minus
    for name, value in {"model": offered.name, **_chosen(given)}.items():
        parts += [_option(name), str(value)]
    return shlex.join(parts)


def python_of(given: Settings, offered: Offer, photo: str) -> str:
    """Return the lines of Python that give the labels that a request got; see `command_of`."""
    chosen = _chosen(given)
    method = chosen.pop("method", None)
    view = {name: value for name, value in chosen.items() if name in _VIEW}
    loading = [repr(offered.name)]
    if method is not None:
        loading.append(f"method={method!r}")
    imports = ["import maskclip"]
    if method == "auto" and view:
        imports.append("from maskclip.core.config import Options")
        loading.append(f"options=Options({_keywords(view)})")
    if given.vocabulary is not None:
        words = f"maskclip.Vocabulary.builtin({given.vocabulary!r})"
    else:
        words = repr(split_words(given.words)) if given.words else "None"
    if "refine" in chosen:
        chosen["refine"] = str(chosen["refine"])
    rule = read_background(given.background)
    options = {**({} if rule is None else {"background": rule}), **chosen}
    arguments = ", ".join(
        part for part in (repr(_as_path(photo)), words, _keywords(options)) if part
    )
    return "\n".join(
        [
            *imports,
            "",
            f"segmenter = maskclip.load({', '.join(loading)})",
            f"found = segmenter.segment({arguments})",
            "found.labels  # (H, W): indices into found.vocabulary.names",
            'found.overlay().save("overlay.png")',
        ]
    )


def _option(name: str) -> str:
    """Return the option of an argument."""
    return f"--{name.replace('_', '-')}"


def _chosen(given: Settings) -> dict[str, Any]:
    """Return the options that were chosen, by name."""
    values = {name: getattr(given, name) for name in _OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


def _keywords(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _as_path(photo: str) -> str:
    """Return a name that no command takes for an option."""
    return f"./{photo}" if photo.startswith("-") else photo
