"""What lists of classes are made of: a name, a line, a colour, a table of TOML; built-in sets.

Gives plain strings, numbers and tuples; what makes them a vocabulary is decided in
`maskclip.core.vocabulary`.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import Color, distinct_colors, voc_colors
from maskclip.core.text import brief, hidden_character, parse_toml

WHAT = "a file of classes"
TOML_KEYS = ("classes", "description", "colors", "palette", "background", "confidence")

_ITEM = re.compile(r"""\bitem\s*:?\s*\{((?:"[^"\n]*"|'[^'\n]*'|[^{}"'])*)\}""")
_FIELD = re.compile(r"""\b(\w+)\s*:\s*(?:"([^"\n]*)"|'([^'\n]*)'|(\d+))""")
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)


class VocabularyError(MaskCLIPError):
    """Classes that cannot be used; the message says which and why, in one line."""


_LONGEST_NAME = 1000  # characters; a CLIP reads some 300 at most


@dataclass(frozen=True)
class ClassFile:
    """What a file of classes says.

    Attributes:
        classes: (name, what is put into prompts) in the order of their labels.
        colors: one a class, or None where the file has none.
        background: the rule of a TOML file, unchecked.
        confidence: the score that each class of a TOML file needs, unchecked.
    """

    classes: tuple[tuple[str, tuple[str, ...]], ...]
    colors: tuple[Color, ...] | None = None
    background: Any = None
    confidence: Any = None


def fold(name: object) -> str:
    """Return `name` with white space stripped at its ends and folded to single spaces within.

    What looks alike is one name: letters and their accents are composed (Unicode's NFC).

    Raises:
        VocabularyError: it is no string, is empty, is longer than any words are, or has a character
            that is not seen, that turns the direction of writing, or that is none
            (`maskclip.core.text.printable`).
    """
    if not isinstance(name, str):
        raise VocabularyError(f"expected a class name in quotes, got {brief(name)}")
    folded = unicodedata.normalize("NFC", " ".join(name.split()))
    if len(folded) > _LONGEST_NAME:
        raise VocabularyError(
            f"the class name {brief(folded)} has {len(folded):,} characters: expected at most "
            f"{_LONGEST_NAME:,}"
        )
    if not folded:
        raise VocabularyError("an empty class name: every class needs a word")
    hidden = hidden_character(folded)
    if hidden is not None:
        raise VocabularyError(
            f"the class name {brief(folded)} has a character that cannot be shown, {hidden}: "
            "write it anew"
        )
    return folded


def parse_line(line: str) -> tuple[str, tuple[str, ...]]:
    """Split `dog` or `person=man,woman,child` into a name and what is put into prompts.

    Raises:
        VocabularyError: an empty name or synonym; quotes the line.
    """
    name, equals, words = fold(line).partition("=")
    if not equals:
        return fold(name), (fold(name),)
    try:
        return fold(name), tuple(dict.fromkeys(fold(word) for word in words.split(",")))
    except VocabularyError:
        raise VocabularyError(
            f"a name is missing in {brief(line.strip())}: write it as 'person=man,woman,child'"
        ) from None


def split_words(text: str) -> list[str]:
    """Return the lines of `parse_line` in classes that were typed as one text.

    Commas separate classes. A class with synonyms, whose words have commas between them too, ends
    at a semicolon, at a new line or where the next such class begins: `dog, person=man,woman; car`
    is dog, person (man and woman) and car.
    """
    lines: list[str] = []
    for part in re.split(r"[;\n]", text):
        with_synonyms = False
        for word in map(str.strip, part.split(",")):
            if not word:
                continue
            if with_synonyms and "=" not in word:
                lines[-1] += word if lines[-1].endswith("=") else f",{word}"
            else:
                lines.append(word)
                with_synonyms = "=" in word
    return lines


def read_background(text: str | None) -> float | list[str] | None:
    """Read what is background: `none`, a threshold, or words between commas.

    Raises:
        VocabularyError: a threshold in another notation, or words and a threshold.
    """
    if text is None or text.strip().lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        words = [word.strip() for word in text.split(",")]
    words = [word for word in words if word] or words
    numbers = [_is_number(word) for word in words]
    if all(numbers):
        raise VocabularyError(f"`background={text}`: write a threshold with a point, such as 0.5")
    if any(numbers):
        raise VocabularyError(
            f"`background={text}`: give words, or a threshold such as 0.5, not both"
        )
    return words


def _is_number(word: str) -> bool:
    """Return whether a word is plainly a number, in whatever notation: `5`, `50%`, `1/2`."""
    return any(map(str.isnumeric, word)) and not any(map(str.isalpha, word))


def synonyms(name: object, words: object) -> tuple[str, tuple[str, ...]]:
    """Return a name and what is put into prompts, of an entry of a dictionary.

    Raises:
        VocabularyError: `words` is neither a string nor a list of some, or one of them is no name.
    """
    listed = [words] if isinstance(words, str) else words
    if not isinstance(listed, list | tuple) or not listed:
        raise VocabularyError(
            f"expected a list of words for the class {brief(name)}, got {brief(words)}"
        )
    return fold(name), tuple(dict.fromkeys(map(fold, listed)))


def parse_color(value: object) -> Color:
    """Read "#rrggbb" or three whole numbers in 0..255.

    Raises:
        VocabularyError: it is something else.
    """
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value[1:])
        return red, green, blue
    if isinstance(value, list | tuple) and len(value) == 3:
        red, green, blue = value
        if all(hasattr(part, "__index__") and 0 <= part <= 255 for part in value):
            return int(red), int(green), int(blue)
    raise VocabularyError(
        f"expected a colour as '#rrggbb' or three whole numbers in 0..255, got {brief(value)}"
    )


def read_color(value: object) -> Color:
    """Read a colour as tools write it: as `parse_color`, or "r,g,b".

    Raises:
        VocabularyError: it is something else.
    """
    if isinstance(value, str) and value.count(",") == 2:
        parts = value.strip("[]() ").split(",")
        if all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts):
            value = [int(part) for part in parts]
    return parse_color(value)


def label_map(text: str) -> list[dict[str, str]] | None:
    """Return the items of a label map of TensorFlow: `item { id: 1 name: "dog" }`, or None."""
    text = _COMMENT.sub("", text)
    if _ITEM.sub("", text).strip():
        return None
    found = [
        {key: one or other or number for key, one, other, number in _FIELD.findall(item)}
        for item in _ITEM.findall(text)
    ]
    return [
        {**item, "name": item["display_name"]} if item.get("display_name") else item
        for item in found
    ]


def _read_table(text: str, source: str) -> dict[str, Any]:
    """Parse TOML from `source` and check its keys, and that `classes` is a list.

    Raises:
        VocabularyError: not TOML, an unknown key, no list `classes`, or both ways to give colours.
    """
    try:
        table = parse_toml(text, source, WHAT)
    except MaskCLIPError as error:
        raise VocabularyError(str(error)) from None
    unknown = [key for key in table if key not in TOML_KEYS]
    if unknown:
        raise VocabularyError(
            f"{source}: unknown key {brief(unknown[0])}: the keys are {', '.join(TOML_KEYS)}"
        )
    for key, kind, example in (
        ("classes", list, 'classes = ["dog", "grass"]'),
        ("colors", list, 'colours = ["#ff0000", "#00ff00"]'),
        ("description", str, 'description = "what I look for"'),
        ("confidence", dict, "confidence = { dog = 0.6 }"),
    ):
        if not isinstance(table.get(key, kind()), kind):
            raise VocabularyError(
                f"{source}: {key} should look like {example}, got {brief(table[key])}"
            )
    if "classes" not in table:
        raise VocabularyError(
            f'{source}: the list of classes is missing: classes = ["dog", "grass"]'
        )
    if "colors" in table and "palette" in table:
        raise VocabularyError(f"{source}: both colours and palette are given: keep one of them")
    return table


def _table_colors(table: Mapping[str, Any]) -> list[Color] | None:
    """Return the colours of a table that `parse_toml_classes` read; None leaves the choice open.

    Raises:
        VocabularyError: a colour that is none, or an unknown palette.
    """
    if "colors" in table:
        return [parse_color(color) for color in table["colors"]]
    match table.get("palette"):
        case "voc":
            return list(voc_colors(len(table["classes"]) + 1)[1:])  # black is the background's
        case "distinct":
            return list(distinct_colors(len(table["classes"])))
        case None:
            return None
        case other:
            raise VocabularyError(f"unknown palette {brief(other)}: there are 'voc' and 'distinct'")


def parse_toml_classes(text: str, source: str) -> ClassFile:
    """Return what a TOML text says; `source` is named in messages.

    Raises:
        VocabularyError: it has another form, or a class or colour that is none.
    """
    table = _read_table(text, source)
    try:
        classes = tuple(map(parse_line, table["classes"]))
        colors = _table_colors(table)
    except VocabularyError as error:
        raise VocabularyError(f"{source}: {error}") from None
    return ClassFile(
        classes,
        None if colors is None else tuple(colors),
        table.get("background"),
        table.get("confidence"),
    )


def table_text(
    classes: Sequence[tuple[str, Sequence[str]]],
    colors: Sequence[Color],
    *,
    background: float | Sequence[str] | None = None,
    confidence: Mapping[str, float] = MappingProxyType({}),
    description: str = "",
) -> str:
    """Return the TOML of which `parse_toml_classes` and `parse_line` read the same again.

    Args:
        classes: names and what is put into prompts.
        colors: one a class.
        background: words, or a threshold.
        confidence: the scores that classes need.
        description: a line about them.

    Raises:
        VocabularyError: a name or a word cannot be written in a line.
    """
    lines = [f"description = {_quoted(description)}"] if description else []
    lines += _list("classes", [_line(name, words) for name, words in classes])
    lines += _list("colors", ["#{:02x}{:02x}{:02x}".format(*color) for color in colors])
    if isinstance(background, float):
        lines.append(f"background = {background!r}")
    elif background is not None:
        lines += _list("background", list(background))
    if confidence:
        needed = (f"{_quoted(name)} = {value!r}" for name, value in confidence.items())
        lines += ["", "[confidence]", *needed]
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, words: Sequence[str]) -> str:
    line = name if tuple(words) == (name,) else f"{name}={','.join(words)}"
    if parse_line(line) != (name, tuple(words)):
        raise VocabularyError(
            f"the class {brief(name)} cannot be written in a line: its name has = in it, or its "
            "words have commas"
        )
    return line


def _list(key: str, values: Sequence[str]) -> list[str]:
    return [f"{key} = [", *(f"    {_quoted(value)}," for value in values), "]"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def builtin_names() -> tuple[str, ...]:
    """Return the names of the class sets that come with the package, sorted."""
    files = (resources.files("maskclip.core") / "vocabularies").iterdir()
    return tuple(sorted(Path(f.name).stem for f in files if f.name.endswith(".toml")))


def builtin_text(name: str) -> str:
    """Return the TOML text of the class set called `name`.

    Raises:
        VocabularyError: there is no such set; names the nearest ones and all of them.
    """
    known = builtin_names()
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise VocabularyError(
            f"no built-in vocabulary {brief(name)}{hint} There are: {', '.join(known)}"
        )
    folder = resources.files("maskclip.core") / "vocabularies"
    return (folder / f"{name}.toml").read_text(encoding="utf-8")


def describe(name: str) -> str:
    """Return one line about the built-in class set `name`.

    Raises:
        VocabularyError: there is no such set; names the nearest ones and all of them.
    """
    return str(_read_table(builtin_text(name), name).get("description", ""))
