"""Words -> the classes of ImageNet that show them: a table of everyday words, then its own names.

The table is `words.toml`, whose head says how it is made. A word that is not in it may be one of
ImageNet's 1,000 class names as open_clip lists them ("golden retriever"); all else is unknown.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.text import brief

_TABLE = "words.toml"
_PLURALS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("s", ""), ("es", ""))
_MOST_NAMED = 8  # unknown words in one message
_MISSPELT = 0.8  # likeness of spellings of one word: a letter or two differ
_SHORT = 4  # letters of words that one other letter makes another word
_BACKGROUND = """
air background bush ceiling city cloud dirt earth field floor foliage forest grass ground hill ice
land landscape lawn leaf meadow mud nature ocean park path pavement river road rock room sand
scenery sea sidewalk sky snow soil stone street sun tree wall water wood woods
"""
"""What lies around things. ImageNet has none of it, and words spelt alike are other things."""


class UnknownWordError(MaskCLIPError):
    """Words for which ImageNet has no class; one line names them and the nearest known words."""


def ids(word: str) -> tuple[int, ...]:
    """Return the ImageNet classes that show what `word` means, sorted, each in 0..999.

    Case, spaces, hyphens, underscores, accents and usual plurals do not matter: "TV-Monitors" is
    "tv monitor".

    Raises:
        UnknownWordError: neither the table nor ImageNet has it.
    """
    return ids_of([word])[0]


def ids_of(words: Iterable[str], *, threshold: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return the `ids` of each word.

    Args:
        words: what is looked for.
        threshold: whether a threshold of the background may be advised instead of words for it:
            whoever labels can give one, whoever trains cannot.

    Raises:
        UnknownWordError: some are unknown; one line names them all.
    """
    words = tuple(words)
    found = [_find(word) for word in words]
    unknown = dict.fromkeys(word for word, classes in zip(words, found, strict=True) if not classes)
    if unknown:
        raise UnknownWordError(_refusal(list(unknown), threshold=threshold))
    return tuple(classes for classes in found if classes)


def known() -> tuple[str, ...]:
    """Return the words of the table, without their synonyms, in its order."""
    return tuple(names[0] for names in _table())


def _find(word: str) -> tuple[int, ...] | None:
    forms = list(_forms(word))
    for index in (_curated, _class_names):  # the second takes a file more, and is rarely needed
        for form in forms:
            if form in index():
                return index()[form]
    return None


def _refusal(unknown: list[str], *, threshold: bool) -> str:
    near = dict.fromkeys([*_spellings(), *_imagenet()])
    around = [word for word in unknown if not {*_BACKGROUND.split()}.isdisjoint(_forms(word))]
    named = [
        brief(word)
        if word in around or len(word) <= _SHORT
        else brief(word) + did_you_mean(word.lower(), near, likeness=_MISSPELT)
        for word in unknown[:_MOST_NAMED]
    ]
    more = f" and {len(unknown) - len(named)} more" if len(unknown) > len(named) else ""
    remedy = ""
    if around:
        instead = " and give a threshold: `background=0.5`" if threshold else ""
        remedy = (
            f"; for what lies around things, such as {_plain(around[0])}, leave words out{instead}"
        )
    return (
        "no class of ImageNet, which is all that the model photo knows, shows "
        f"{', '.join(named)}{more}{remedy}; `maskclip vocabularies photo` lists words that it knows"
    )


def _forms(word: str) -> Iterator[str]:
    """Yield how `word` may stand in an index: as it is, then as the singular it may be of."""
    plain = _plain(word)
    yield plain
    for plural, singular in _PLURALS:
        if plain.endswith(plural):
            yield plain.removesuffix(plural) + singular


def _plain(word: str) -> str:
    """Return the letters and digits of `word`, small and without accents; gray is grey."""
    letters = unicodedata.normalize("NFKD", word).casefold()
    return "".join(filter(str.isalnum, letters)).replace("gray", "grey")


@cache
def _table() -> Mapping[tuple[str, ...], str]:
    """Return the table as it is written: names, the first of which is the word, and its ids."""
    text = (resources.files(__package__) / _TABLE).read_text(encoding="utf-8")
    rooms = tomllib.loads(text).values()
    return {
        tuple(name.strip() for name in names.split(",")): classes
        for room in rooms
        for names, classes in room.items()
    }


@cache
def _spellings() -> tuple[str, ...]:
    return tuple(name for names in _table() for name in names)


@cache
def _curated() -> Mapping[str, tuple[int, ...]]:
    written = {_plain(name): classes for names, classes in _table().items() for name in names}
    return {form: tuple(sorted(set(_expand(form, written)))) for form in written}


def _expand(form: str, written: Mapping[str, str]) -> Iterator[int]:
    """Yield the ids of a word: "7", "7-24" or another word of the table, between commas."""
    for part in written[form].split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal():
            yield from range(int(first), int(last or first) + 1)
        else:
            yield from _expand(_plain(part), written)


@cache
def _class_names() -> Mapping[str, tuple[int, ...]]:
    """Return ImageNet's names and the classes of each: two names belong to two classes."""
    found: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(_imagenet()):
        form = _plain(name)
        found[form] = (*found.get(form, ()), index)
    return found


@cache
def _imagenet() -> tuple[str, ...]:
    """Return open_clip's names of the 1,000 classes, of their file alone.

    It imports nothing; all of open_clip takes seconds.
    """
    package = find_spec("open_clip")
    folder = Path(str(package.origin)).parent if package else Path()
    return tuple(run_path(str(folder / "zero_shot_metadata.py"))["IMAGENET_CLASSNAMES"])
