"""What a visitor can choose, with one line about each, so that a page repeats nothing of it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from maskclip.core.config import REFINEMENTS, own_refinement
from maskclip.core.methods import AUTO, COSTS, METHODS, SOURCES
from maskclip.core.vocabulary import Vocabulary, builtin_names, describe
from maskclip.web.models import Models, Offer

_METHODS = {
    AUTO: "the one that published figures speak for, by the model and how it sees the photo",
    "clean": "MaskCLIP: each patch by its own value in CLIP's last block",
    "published": "the same, as the authors' code computes it, accidents included",
    "baseline": "CLIP as it was trained: what it sees is blurred over the whole photo",
    "clearclip": "patches with like queries mix, and nothing else is added",
    "sclip": "patches with like queries and like keys mix",
    "gem": "like values, keys and queries, in the last six blocks",
    "surgery": "like values, in a stream beside the last six blocks",
    "naclip": "like keys that are near each other",
    "resclip-rcs": "NACLIP, and what middle blocks attend to",
    "resclip": "the same, then patches of one class attend to each other",
    "pearl": "queries, and keys that were turned towards them",
    "scclip": "outliers are repaired, and patches averaged over those alike in middle blocks",
    "sfp": "the same, where outliers are what the class token attends to",
}


def describe_models(models: Models) -> list[dict[str, Any]]:
    """Return the models that are offered, the default first."""
    return [_model(one, models) for one in models.offers.values()]


def _model(one: Offer, models: Models) -> dict[str, Any]:
    return {
        "name": one.name,
        "kind": one.kind,
        "note": one.note,
        "default": one.name == models.default,
        "takes_words": one.takes_words,
        "needs_words": one.needs_words,
        "takes_methods": one.kind in ("clip", "embedded"),
        "vocabulary": {"embedded": "emoji", "preview": "photo"}.get(one.kind),
        "refine": "+".join(own_refinement(one.source)) or "none",
    }


def describe_vocabularies(name: str | None = None) -> list[dict[str, Any]]:
    """Return the built-in sets of classes, or the one of a name with its classes.

    Raises:
        VocabularyError: there is no such set.
    """
    if name is None:
        return [_set(known) for known in builtin_names()]
    words = Vocabulary.builtin(name)
    classes = [
        {"id": label, "name": entry, "words": list(words.prompts[label])}
        for label, entry in enumerate(words.names)
    ]
    return [{**_set(name), "classes": classes}]


def _set(name: str) -> dict[str, Any]:
    words = Vocabulary.builtin(name)
    return {
        "name": name,
        "note": describe(name),
        "count": len(words),
        "has_background": words.has_background,
    }


def describe_options(models: Models) -> dict[str, Any]:
    """Return everything that can be chosen, with its values and one line about each."""
    refinements = [
        {"name": "", "note": "the model's own"},
        {"name": "none", "note": "no refinement: maps as the model gives them"},
        *({"name": name, "note": note} for name, note in REFINEMENTS.items()),
        {"name": "tlp+pamr", "note": "first tlp, then pamr"},
    ]
    return {
        "models": describe_models(models),
        "methods": [
            {
                "name": name,
                "note": _METHODS.get(name, ""),
                "from": SOURCES[name].paper if name in SOURCES else "",
                "published": SOURCES[name].mean if name in SOURCES else None,
                "time": COSTS.get(name),
            }
            for name in dict.fromkeys((AUTO, *METHODS))
        ],
        "refinements": refinements,
        "regions": _regions(),
        "backgrounds": [
            {"value": "none", "note": "every pixel gets the best of the words"},
            {"value": "0.5", "note": "pixels whose best probability is below it are background"},
            {"value": "sky, wall, road", "note": "one class of these words"},
        ],
        "windows": [
            {"window": None, "note": "the whole photo at once"},
            {"window": 224, "stride": 112, "short_side": 336, "note": "as later papers measure"},
            {"window": 512, "stride": 256, "note": "large photos, piece by piece"},
        ],
        "vocabularies": describe_vocabularies(),
        "presets": _PRESETS,
    }


def _regions() -> list[dict[str, str]]:
    found = [{"name": "", "note": "pixels do not vote"}]
    if find_spec("skimage") is not None:
        found.append({"name": "slic", "note": "the pixels of superpixels vote"})
    return found


_PRESETS = [
    {
        "name": "as it comes",
        "note": "the clean reading and the model's own refinement",
        "settings": {},
    },
    {
        "name": "plain",
        "note": "maps as the model gives them, without refinement: the fastest",
        "settings": {"refine": "none"},
    },
    {
        "name": "paper",
        "note": "MaskCLIP as published, with key smoothing and prompt denoising (ECCV 2022)",
        "settings": {
            "method": "published",
            "refine": "none",
            "key_smoothing": 1.0,
            "prompt_denoising": 0.5,
        },
    },
    {
        "name": "best published",
        "note": "the method with the best figures, in windows of 224 px as its paper has them",
        "settings": {
            "method": "auto",
            "refine": "none",
            "short_side": 336,
            "window": 224,
            "stride": 112,
        },
    },
    {
        "name": "sharp borders",
        "note": "borders are moved to the photo's own edges by PAMR",
        "settings": {"refine": "pamr"},
    },
]
