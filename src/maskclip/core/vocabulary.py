"""The words of a job: ordered classes, what each is called in prompts, its colour, the background.

A vocabulary is made from a list (`Vocabulary.parse`), a text or TOML file (`Vocabulary.from_file`)
or a name (`Vocabulary.builtin`). It knows nothing about models: how words become prompts and
prompts become vectors is not decided here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from maskclip.core.class_files import read_classes
from maskclip.core.class_lists import (
    ClassFile,
    VocabularyError,
    builtin_names,
    builtin_text,
    describe,
    fold,
    parse_color,
    parse_line,
    parse_toml_classes,
    synonyms,
    table_text,
)
from maskclip.core.errors import did_you_mean
from maskclip.core.palettes import BLACK, Color, class_colors
from maskclip.core.text import brief, check_kind, check_path

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "MAX_CLASSES",
    "Background",
    "Vocabulary",
    "VocabularyError",
    "builtin_names",
    "describe",
]

BACKGROUND = "background"
IGNORE = 255  # "no label here" in 8-bit label maps, whose classes are 0..254
WIDE_IGNORE = 65_535  # the same in 16-bit label maps
MAX_CLASSES = 65_535

Background = float | Sequence[str]  # a threshold on the best score, or words


@dataclass(frozen=True)
class Vocabulary:
    """Ordered classes, and the words by which each is looked for.

    Vocabularies with the same values are equal and have the same hash.

    Attributes:
        names: one name per class, in label order; white space in names and prompts is folded.
        prompts: per class the names put into prompts: `(name,)`, or its synonyms. Only a background
            by threshold has none.
        colors: one (red, green, blue) in 0..255 per class.
        threshold: None, or the score in (-1, 1) below which class 0, the background, wins a pixel
            from every other class.
        confidence: one score in [0, 1] per class, below which its pixels are dropped: they get the
            ignored label; () where no class needs one.

    Raises:
        MaskCLIPError: no classes or too many, an empty or duplicate name, missing prompts,
            colours that are too few, too many or out of range, an impossible threshold, a
            confidence out of range.

    Examples:
        >>> words = maskclip.Vocabulary.parse(["dog", "person=man,woman"])
        >>> words.names, words.prompts
        (('dog', 'person'), (('dog',), ('man', 'woman')))
        >>> len(words)
        2
    """

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    colors: tuple[Color, ...]
    threshold: float | None = None
    confidence: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the only moment at which a frozen value may be tidied
        set_field(self, "names", tuple(map(fold, _listed(self.names))))
        prompts = _listed(self.prompts)
        set_field(self, "prompts", tuple(tuple(map(fold, _listed(p))) for p in prompts))
        set_field(self, "colors", tuple(map(parse_color, _listed(self.colors, "colours"))))
        self._check_names()
        self._check_prompts()
        if len(self.colors) != len(self.names):
            raise VocabularyError(
                f"expected one colour per class, got {len(self.colors)} colours "
                f"for {len(self.names)} classes"
            )
        set_field(self, "confidence", self._checked_confidence())

    def _checked_confidence(self) -> tuple[float, ...]:
        needed = tuple(map(_confidence, _listed(self.confidence, "scores")))
        if needed and len(needed) != len(self.names):
            raise VocabularyError(
                f"expected one confidence per class, got {len(needed)} for {len(self.names)}"
            )
        return needed if any(needed) else ()

    def _check_names(self) -> None:
        if not self.names:
            raise VocabularyError("no classes: name at least one, such as 'dog'")
        if len(self.names) > MAX_CLASSES:
            raise VocabularyError(
                f"{len(self.names):,} classes: at most {MAX_CLASSES:,} are possible"
            )
        seen: dict[str, int] = {}
        for index, name in enumerate(self.names):
            if name in seen:
                raise VocabularyError(
                    f"class {name!r} is named twice (classes {seen[name]} and {index}): "
                    "names must differ"
                )
            seen[name] = index

    def _check_prompts(self) -> None:
        if len(self.prompts) != len(self.names):
            raise VocabularyError(
                f"expected the prompts of {len(self.names)} classes, got {len(self.prompts)}"
            )
        prompted = range(len(self.names))
        if self.threshold is not None:
            object.__setattr__(self, "threshold", _threshold(self.threshold))
            if self.prompts[0] or len(self.names) == 1:
                raise VocabularyError(
                    "a background by threshold is class 0, has no prompts, "
                    "and needs at least one other class"
                )
            prompted = range(1, len(self.names))
        for index in prompted:
            if not self.prompts[index]:
                raise VocabularyError(
                    f"class {self.names[index]!r} has no names to put into prompts"
                )

    @classmethod
    def parse(
        cls,
        lines: Iterable[str] | Mapping[str, Sequence[str]],
        *,
        colors: Sequence[Color] | None = None,
    ) -> Vocabulary:
        """Make a vocabulary from lines such as `dog` or `person=man,woman,child`.

        The second form prompts man, woman and child (not person) and calls what it finds person.

        Args:
            lines: a list of such lines, whose white space is folded; or a dictionary that says the
                same: `{"dog": ["dog"], "person": ["man", "woman", "child"]}`.
            colors: one (red, green, blue) in 0..255 per class; None gives each class the everyday
                colour of what it means, or one that is far from the others.

        Raises:
            MaskCLIPError: a line without a name or with an empty synonym, or what the class says.

        Examples:
            >>> maskclip.Vocabulary.parse({"person": ["man", "woman"]}).prompts
            (('man', 'woman'),)
            >>> maskclip.Vocabulary.parse(["dog"], colors=[(255, 0, 0)]).colors
            ((255, 0, 0),)
        """
        if isinstance(lines, Mapping):
            return cls._made([synonyms(name, words) for name, words in lines.items()], colors)
        return cls._made([parse_line(line) for line in _listed(lines)], colors)

    @classmethod
    def _made(
        cls, classes: Sequence[tuple[str, tuple[str, ...]]], colors: Sequence[Color] | None
    ) -> Vocabulary:
        if colors is None:
            colors = class_colors([name for name, _ in classes[:MAX_CLASSES]])
        if len(classes) > MAX_CLASSES:
            colors = ()  # the class count is the error to report
        names, prompts = (name for name, _ in classes), (words for _, words in classes)
        return cls(tuple(names), tuple(prompts), tuple(_listed(colors, "colours")))

    @classmethod
    def _of_file(cls, found: ClassFile, source: object) -> Vocabulary:
        try:
            made = cls._made(found.classes, found.colors).with_background(found.background)
            return made.with_confidence(found.confidence or {})
        except VocabularyError as error:
            raise VocabularyError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read a vocabulary from the file at `path`: a class a line, TOML, or of another tool.

        A text file may have blank lines and comment lines that begin with `#`. TOML has `classes`
        (a list of lines as `parse` takes them) and may have `description`, `colors` (a list of
        "#rrggbb" or [red, green, blue]), `palette` ("voc", or "distinct" where words shall not
        decide), `background` (a list of words, or a number: the threshold) and `confidence`
        (a table of classes and scores, as `with_confidence` takes it). JSON, YOLO's data.yaml,
        CVAT's labelmap.txt, and tables with numbers or colours are read as what they are; a
        `MaskCLIPWarning` says where their numbers are not the labels.

        Raises:
            MaskCLIPError: the file cannot be used; names the file and, in text, the line. Where
                there is no such file, it is a `FileNotFoundError` too.

        Examples:
            `classes.txt` has three lines, `dog`, `person=man,woman` and `grass`:

            >>> maskclip.Vocabulary.from_file("classes.txt").names
            ('dog', 'person', 'grass')
        """
        check_path(path)
        return cls._of_file(read_classes(Path(path)), path)

    @classmethod
    def builtin(cls, name: str) -> Vocabulary:
        """Return the set of classes called `name`; `maskclip vocabularies` lists them.

        Raises:
            MaskCLIPError: there is no such set; names the nearest ones and all of them.

        Examples:
            >>> voc = maskclip.Vocabulary.builtin("voc20")
            >>> len(voc), voc.names[:3]
            (20, ('airplane', 'bicycle', 'bird'))
        """
        check_kind(name, str, "expected the name of a built-in vocabulary")
        return _builtin(name)

    @classmethod
    def from_dict(cls, values: object) -> Vocabulary:
        """Make the vocabulary that `to_dict` described; its `values` need not be trusted.

        Raises:
            MaskCLIPError: a key is missing, unknown or holds something else.

        Examples:
            >>> maskclip.Vocabulary.from_dict(words.to_dict()) == words
            True
        """
        if not isinstance(values, dict) or not _is_description(values):
            raise VocabularyError(
                "not the description of a vocabulary: expected names, prompts, colors and threshold"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Describe the vocabulary with lists, strings and numbers, ready for JSON.

        Examples:
            >>> words.to_dict()["prompts"]
            [['dog'], ['man', 'woman']]
        """
        return {
            "names": list(self.names),
            "prompts": [list(words) for words in self.prompts],
            "colors": [list(color) for color in self.colors],
            "threshold": self.threshold,
            **({"confidence": list(self.confidence)} if self.confidence else {}),
        }

    def to_toml(self, description: str = "") -> str:
        """Return the TOML that `from_file` reads as this vocabulary; its background is black.

        Args:
            description: a line on what the classes are, written before them.

        Raises:
            MaskCLIPError: a name or a word cannot be written there.

        Examples:
            >>> from pathlib import Path
            >>> _ = Path("classes.toml").write_text(words.to_toml(), encoding="utf-8")
            >>> maskclip.Vocabulary.from_file("classes.toml") == words
            True
        """
        check_kind(description, str, "`description`: expected a line of text")
        start = 1 if self.has_background else 0
        words = self.prompts[0] if start else None
        pairs = zip(self.names, self.confidence, strict=bool(self.confidence))
        return table_text(
            list(zip(self.names, self.prompts, strict=True))[start:],
            self.colors[start:],
            background=words if self.threshold is None else self.threshold,
            confidence={name: value for name, value in pairs if value},
            description=description,
        )

    def with_confidence(self, needed: Mapping[str, float]) -> Vocabulary:
        """Return the vocabulary with the scores that some classes need.

        Args:
            needed: by the names of these classes, the score below which their pixels are dropped.

        Raises:
            MaskCLIPError: no class has that name, or a score is not in [0, 1].

        Examples:
            >>> words.with_confidence({"person": 0.6}).confidence
            (0.0, 0.6)
        """
        check_kind(needed, Mapping, "expected a dictionary of names and the scores they need")
        for name in needed:
            if name not in self.names:
                near = did_you_mean(name, self.names)
                raise VocabularyError(f"a confidence for {brief(name)}, which is no class{near}")
        return replace(self, confidence=tuple(needed.get(name, 0.0) for name in self.names))

    def with_background(self, rule: Background | None) -> Vocabulary:
        """Return the vocabulary with a black class "background" at index 0.

        Args:
            rule: None changes nothing. A number in (-1, 1) gives the background every pixel whose
                best score is below it. Words make one class that is prompted with all of them. A
                rule that the vocabulary already has is replaced.

        Raises:
            MaskCLIPError: an impossible threshold, no words, an empty word, a word that is
                already a class or a prompt of one, or another class called background.

        Examples:
            >>> words.with_background(0.5).names
            ('background', 'dog', 'person')
            >>> words.with_background(["wall", "sky"]).prompts[0]
            ('wall', 'sky')
        """
        if rule is None:
            return self
        start = 1 if self.has_background else 0
        names, prompts = self.names[start:], self.prompts[start:]
        if BACKGROUND in names:
            raise VocabularyError("a class is called 'background' already: remove or rename it")
        threshold, words = _background_rule(rule)
        taken = {*names, *(prompt for group in prompts for prompt in group)}
        for word in words:
            if word in taken:
                raise VocabularyError(f"the background word {word!r} is also one of the classes")
        return replace(
            self,
            names=(BACKGROUND, *names),
            prompts=(words, *prompts),
            colors=(self.colors[0] if start else BLACK, *self.colors[start:]),
            threshold=threshold,
            confidence=self.confidence and ((0.0,) * (1 - start) + self.confidence),
        )

    @property
    def has_background(self) -> bool:
        """Whether class 0 is the background, by threshold or by name."""
        return self.threshold is not None or self.names[0] == BACKGROUND

    @property
    def flat_prompts(self) -> tuple[str, ...]:
        """All names that go into prompts, class after class."""
        return tuple(prompt for words in self.prompts for prompt in words)

    @property
    def prompt_class(self) -> tuple[int, ...]:
        """The class index of each of `flat_prompts`, ascending.

        Examples:
            >>> words.flat_prompts, words.prompt_class
            (('dog', 'man', 'woman'), (0, 1, 1))
        """
        return tuple(index for index, words in enumerate(self.prompts) for _ in words)

    @property
    def label_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The type of label maps: uint8 up to 255 classes (255 stays free for `ignore`)."""
        return np.uint8 if len(self.names) <= IGNORE else np.uint16

    @property
    def ignore(self) -> int:
        """The label of pixels that do not count: 255, or 65,535 in wider label maps.

        Examples:
            >>> words.label_dtype.__name__, words.ignore
            ('uint8', 255)
        """
        return IGNORE if self.label_dtype is np.uint8 else WIDE_IGNORE

    @property
    def background_rule(self) -> str:
        """What is background, in a few words.

        Examples:
            >>> words.background_rule, words.with_background(0.5).background_rule
            ('none', 'below 0.5')
        """
        if self.threshold is not None:
            return f"below {self.threshold:g}"
        if not self.has_background:
            return "none"
        count = len(self.prompts[0])
        return f"{count} words" if count > 1 else f"the word {self.prompts[0][0]!r}"

    def __len__(self) -> int:
        return len(self.names)


@cache  # colours of many classes take a while to choose
def _builtin(name: str) -> Vocabulary:
    source = f"the built-in vocabulary {name}"
    return Vocabulary._of_file(parse_toml_classes(builtin_text(name), source), source)


def _is_description(values: Mapping[str, Any]) -> bool:
    """Return whether values have the keys and the types that `Vocabulary.to_dict` gives."""
    if values.keys() - {"confidence"} != {"names", "prompts", "colors", "threshold"}:
        return False
    prompts, colors = values["prompts"], values["colors"]
    return (
        _all_of(values["names"], str)
        and _all_of(prompts, list)
        and all(_all_of(words, str) for words in prompts)
        and _all_of(colors, list)
        and all(_all_of(color, int) and len(color) == 3 for color in colors)
        and type(values["threshold"]) in (type(None), int, float)
        and _all_of(values.get("confidence", []), float)
    )


def _all_of(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _listed(values: object, what: str = "names") -> Iterable[Any]:
    """Refuse what is no list of names: of one string, the letters would become the classes."""
    if isinstance(values, str) and what == "names":
        raise VocabularyError(
            f"expected a list of names, got one string: write [{brief(values)}], or one string a "
            "name"
        )
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise VocabularyError(f"expected a list of {what}, got {brief(values)}")
    return values


def _background_rule(rule: Background) -> tuple[float | None, tuple[str, ...]]:
    """Return (threshold, words), one of which is empty."""
    if isinstance(rule, int | float):
        return _threshold(rule), ()
    if not isinstance(rule, str) and not isinstance(rule, Iterable):
        raise VocabularyError(f"a background is a list of words or a threshold, got {brief(rule)}")
    words = tuple(dict.fromkeys(map(fold, _listed(rule))))
    if not words:
        raise VocabularyError("the background has no words: give some, or a threshold")
    return None, words


def _confidence(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise VocabularyError(f"expected a confidence, a score in [0, 1], got {brief(value)}")
    return float(value)


def _threshold(value: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -1 < value < 1:  # NaN is not between them
        raise VocabularyError(
            "expected a background threshold: a probability between 0 and 1 (with the method "
            f"published a similarity between -1 and 1), got {brief(value)}"
        )
    return float(value)
