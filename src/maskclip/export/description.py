"""What an exported file says of itself: words, colours, and how labels are made; plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskclip.core.config import BY_PHOTO, SHORT_SIDES, read_refinements
from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, json_escaped, parse_json
from maskclip.core.vocabulary import Vocabulary, VocabularyError

SUFFIX = ".onnx"
"""Of graphs of ONNX."""

PROGRAM_SUFFIX = ".pt2"
"""Of programs of `torch.export`."""

UNKNOWN = "unknown"
"""The licence of weights of which nobody has said one."""

_LONGEST = 4 << 20  # characters of one entry: a table of colours of 65,535 classes has a third
_LARGEST_CELL = 1024  # px


class DescriptionError(MaskCLIPError):
    """A file that does not say of itself what a runner needs to know."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file says of itself.

    Attributes:
        vocabulary: the classes, with prompts, colours, the background's threshold, and the scores
            that they need.
        method, templates, model: by name.
        fingerprint: of the weights.
        license: of the weights; `UNKNOWN` if nobody has said one.
        version: of the maskclip that wrote it.
        short_side: the size to which runners resize photos, with their aspect ratio; px.
        antialias: whether shrinking filters out what is too fine for the new size.
        cell: px between two positions of the grid.
        stretch: whether the grid's maps are stretched over the image; else each position has its
            own cell, and the last ones may lie partly outside.
        probabilities: whether the maps become probabilities before they are enlarged: softmax of
            temperature x map.
        temperature: of these.
        threshold: the background's, where it is not learnt: a map of this value comes first.
        resizes: 1, from grid to photo; or 2, by way of the size that the network saw.
        by_count: whether a ViT reads its position table in raster order where a grid of another
            shape has as many positions, so many; None if not. The graph always resizes.
        refine: what the photo does to the maps where labels are made of them; the labels of the
            graph are without it.
        agreement: one weight a class, for the refinement tlp.
    """

    vocabulary: Vocabulary
    method: str
    templates: str
    model: str
    fingerprint: str
    license: str
    version: str
    short_side: int
    antialias: bool
    cell: int
    stretch: bool
    probabilities: bool
    temperature: float
    threshold: float | None
    resizes: int
    by_count: int | None
    refine: tuple[str, ...]
    agreement: tuple[float, ...]

    def to_metadata(self) -> dict[str, str]:
        """Return names and values, each of JSON; what a runner of one's own needs comes first."""
        words = self.vocabulary
        rule = words.threshold if words.threshold is not None else list(words.prompts[0])
        values: dict[str, Any] = {
            "classes": list(words.names),
            "palette": [list(color) for color in words.colors],
            "ignore": words.ignore,
            "short_side": self.short_side,
            "background": rule if words.has_background else None,
            "prompts": [list(prompts) for prompts in words.prompts],
            "confidence": list(words.confidence),
            "method": self.method,
            "templates": self.templates,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "license": self.license,
            "maskclip": self.version,
            "reading": {name: _plain(getattr(self, name)) for name in _READING},
        }
        return {name: json_escaped(_json(value)) for name, value in values.items()}

    @classmethod
    def from_metadata(cls, entries: Mapping[str, str], *, source: str) -> Description:
        """Read what `to_metadata` wrote, of values that need not be trusted.

        Raises:
            DescriptionError: an entry is missing or holds something else; `source` says where.
        """
        if "classes" not in entries or "reading" not in entries:
            raise DescriptionError(
                f"{source}: not a file of `maskclip export`: it does not name its classes"
            )
        values = {}
        for name in _ENTRIES:
            text = entries.get(name, "null")
            if len(text) > _LONGEST:
                raise DescriptionError(f"{source}: {name}: an entry of {len(text):,} characters")
            values[name] = parse_json(text, source, f"the entry {name!r}")
        words, reading = _words(values, source), values["reading"]
        for name in ("method", "templates", "model", "fingerprint", "license", "maskclip"):
            if not isinstance(values[name], str):
                raise _unfit(source, name, "text", values[name])
        low, high = SHORT_SIDES
        if type(values["short_side"]) is not int or not low <= values["short_side"] <= high:
            raise _unfit(source, "short_side", f"px from {low} to {high:,}", values["short_side"])
        if not isinstance(reading, dict) or set(reading) != set(_READING):
            raise _unfit(source, "reading", f"a table of {', '.join(_READING)}", reading)
        _check_reading(reading, classes=len(words), source=source)
        own = {
            **reading,
            "refine": read_refinements(reading["refine"], BY_PHOTO),
            "agreement": tuple(map(float, reading["agreement"])),
        }
        return cls(
            vocabulary=words,
            version=values["maskclip"],
            **{n: values[n] for n in ("method", "templates", "model", "fingerprint", "license")},
            short_side=values["short_side"],
            **own,
        )


_READING = (
    *("antialias", "cell", "stretch", "probabilities", "temperature", "threshold"),
    *("resizes", "by_count", "refine", "agreement"),
)
_ENTRIES = (
    *("classes", "palette", "short_side", "background", "prompts", "confidence"),
    *("method", "templates", "model", "fingerprint", "license", "maskclip", "reading"),
)


def _check_reading(reading: Mapping[str, Any], *, classes: int, source: str) -> None:
    """Refuse values that no network is read by."""
    expected = {
        "antialias": "true or false",
        "stretch": "true or false",
        "probabilities": "true or false",
        "cell": f"px from 1 to {_LARGEST_CELL}",
        "temperature": "a number above 0",
        "threshold": "a number between -1 and 1, or null",
        "resizes": "1 or 2",
        "by_count": "a whole number or null",
        "refine": f"some of {', '.join(BY_PHOTO)}",
        "agreement": "one number a class",
    }
    cell, count, agreement = reading["cell"], reading["by_count"], reading["agreement"]
    refine, threshold = reading["refine"], reading["threshold"]
    maps = classes - (threshold is not None)
    fits = {
        **{name: type(reading[name]) is bool for name in list(expected)[:3]},
        "cell": type(cell) is int and 1 <= cell <= _LARGEST_CELL,
        "temperature": _is_number(reading["temperature"]) and reading["temperature"] > 0,
        "threshold": threshold is None or (_is_number(threshold) and -1 < threshold < 1),
        "resizes": reading["resizes"] in (1, 2) and type(reading["resizes"]) is int,
        "by_count": count is None or type(count) is int,
        "refine": isinstance(refine, list) and all(name in BY_PHOTO for name in refine),
        "agreement": isinstance(agreement, list)
        and len(agreement) == maps
        and all(map(_is_number, agreement)),
    }
    for name, fit in fits.items():
        if not fit:
            raise _unfit(source, f"reading.{name}", expected[name], reading[name])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _words(values: Mapping[str, Any], source: str) -> Vocabulary:
    rule = values["background"]
    described = {
        "names": values["classes"],
        "prompts": values["prompts"],
        "colors": values["palette"],
        "threshold": rule if _is_number(rule) else None,
        **({"confidence": values["confidence"]} if values["confidence"] else {}),
    }
    try:
        return Vocabulary.from_dict(described)
    except VocabularyError as error:
        raise DescriptionError(f"{source}: {error}") from error


def _unfit(source: str, name: str, expected: str, value: object) -> DescriptionError:
    return DescriptionError(f"{source}: {name}: expected {expected}, got {brief(value)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
