"""Classes as they are given: names or a vocabulary, and which of them do nothing under a method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.method import Method
from maskclip.core.methods import get_method, gives_probabilities
from maskclip.core.text import brief
from maskclip.core.vocabulary import Vocabulary

Classes = Vocabulary | Sequence[str] | Mapping[str, Sequence[str]]


def as_vocabulary(classes: Classes) -> Vocabulary:
    """Return a vocabulary from one, or from names, as `Vocabulary.parse` takes them."""
    if isinstance(classes, Vocabulary):
        return classes
    return Vocabulary.parse(classes)


def useless(vocabulary: Vocabulary, method: Method) -> str | None:
    """Return a warning of classes or a background that cannot do anything, or None."""
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


def with_usable_confidence(vocabulary: Vocabulary, method: str | Method) -> Vocabulary:
    """Return the vocabulary; without the scores that classes need where a method has no such ones.

    Warns (MaskCLIPWarning) where that is so.
    """
    if not vocabulary.confidence or gives_probabilities(method):
        return vocabulary
    warnings.warn(
        "the scores that classes need ([confidence] of the class file) are probabilities, and the "
        f"method {get_method(method).name} gives none: no pixel is dropped by them",
        MaskCLIPWarning,
        stacklevel=4,  # the caller of `segment`
    )
    return vocabulary.with_confidence({})
