"""What may be changed in the words of a vocabulary: the synonyms of classes, the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maskclip.core.class_lists import fold
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.vocabulary import BACKGROUND, Background, Vocabulary

_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Synonyms:
    """A class is looked for by these words."""

    name: str
    words: tuple[str, ...]

    @property
    def question(self) -> str:
        """What this is an answer to, of which there is one."""
        return self.name

    def apply(self, vocabulary: Vocabulary) -> Vocabulary:
        """Return the vocabulary with the change."""
        place = vocabulary.names.index(self.name)
        prompts = [*vocabulary.prompts]
        prompts[place] = self.words
        return replace(vocabulary, prompts=tuple(prompts))


@dataclass(frozen=True)
class BackgroundWord:
    """A word more or less for the background."""

    word: str
    added: bool

    @property
    def question(self) -> str:
        """What this is an answer to, of which there is one."""
        return f"{BACKGROUND} {self.word}"

    def apply(self, vocabulary: Vocabulary) -> Vocabulary:
        """Return the vocabulary with the change; the last word of a background stays."""
        words = vocabulary.prompts[0] if vocabulary.has_background else ()
        left = (*words, self.word) if self.added else tuple(w for w in words if w != self.word)
        return vocabulary.with_background(left) if left else vocabulary


@dataclass(frozen=True)
class BackgroundRule:
    """Another threshold for the background, or words instead of one."""

    rule: Background

    @property
    def question(self) -> str:
        """What this is an answer to, of which there is one."""
        return BACKGROUND

    def apply(self, vocabulary: Vocabulary) -> Vocabulary:
        """Return the vocabulary with the change."""
        return vocabulary.with_background(self.rule)


Change = Synonyms | BackgroundWord | BackgroundRule


def read_tries(texts: Sequence[str], vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Read words to try: `dog=puppy,hound`, `background=sky,wall`.

    Raises:
        MaskCLIPError: not written so, an unknown class, or a word that is another's already.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, words = text.partition("=")
        listed = tuple(dict.fromkeys(fold(word) for word in words.split(",") if word.strip()))
        name = " ".join(name.split())
        if not name or not listed:
            raise MaskCLIPError(f"`tries`: expected NAME=WORDS, such as dog=puppy, got {text!r}")
        if name != BACKGROUND and name not in vocabulary.names:
            near = did_you_mean(name, vocabulary.names)
            raise MaskCLIPError(f"`tries`: {name!r} is none of the classes{near}")
        found[name] = (*found.get(name, ()), *listed)
    for name, given in found.items():
        for other, prompts in zip(vocabulary.names, vocabulary.prompts, strict=True):
            taken = [word for word in given if word in prompts and other != name]
            if taken:
                raise MaskCLIPError(f"`tries`: {taken[0]!r} is a word of {other!r} already")
    return found


def synonym_changes(vocabulary: Vocabulary, tries: Mapping[str, Sequence[str]]) -> list[Change]:
    """Return what may be tried for the words of classes: one alone, one less, one more, or all."""
    found: list[Change] = []
    start = 1 if vocabulary.has_background else 0
    for name, words in zip(vocabulary.names[start:], vocabulary.prompts[start:], strict=True):
        more = tuple(word for word in tries.get(name, ()) if word not in words)
        every = (*words, *more)
        options: list[tuple[str, ...]] = [(word,) for word in every]
        options += [tuple(w for w in words if w != word) for word in words if len(words) > 2]
        options += [(*words, word) for word in more]
        options += [every]
        found += [Synonyms(name, one) for one in dict.fromkeys(options) if one != words]
    return found


def background_changes(vocabulary: Vocabulary, tries: Sequence[str]) -> list[Change]:
    """Return what may be tried for the background; nothing where there is none, and no words."""
    if vocabulary.threshold is not None:
        rules: list[Background] = [t for t in _THRESHOLDS if t != vocabulary.threshold]
        return [BackgroundRule(rule) for rule in [*rules, *([tuple(tries)] if tries else [])]]
    words = vocabulary.prompts[0] if vocabulary.has_background else ()
    if not words:
        return [BackgroundRule(tuple(tries))] if tries else []
    more = [word for word in tries if word not in words]
    fewer = list(words) if len(words) > 1 else []
    return [
        *(BackgroundWord(word, added=True) for word in more),
        *(BackgroundWord(word, added=False) for word in fewer),
    ]
