"""Files of classes, as people and other tools write them, read as what they are or refused.

Lines, TOML, JSON, YOLO's data.yaml, tables (CSV, tabs, `1: dog`), CVAT's labelmap.txt and
TensorFlow's label maps (.pbtxt).
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskclip.core.class_lists import (
    WHAT,
    ClassFile,
    VocabularyError,
    label_map,
    parse_line,
    parse_toml_classes,
    read_color,
    synonyms,
)
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.text import MissingFileError, brief, parse_json, parse_yaml, read_text

_MAX_BYTES = 8 << 20  # of 65,535 classes with their synonyms there are fewer
_NAMES = ("name", "names", "class", "classes", "class_name", "label", "labels", "category")
_IDS = ("id", "idx", "index", "class_id", "label_id", "category_id", "number", "value", "key")
_COLORS = ("color", "colour", "rgb", "hex", "color_rgb")
_RGB = (("r", "g", "b"), ("red", "green", "blue"))
_NO_LABEL = ("unlabeled", "unlabelled", "void", "ignore", "ignored")  # what others number so

_WRAPPED = re.compile(r"_.*_")  # so others write what is no class: __ignore__, _background_
_QUOTED = re.compile(r"""'([^'\n]*)'|"([^"\n]*)\"""")
_NUMBERED = re.compile(r"(\d+)\s*[:.)]\s*(\D.*)")
_Lines = Sequence[tuple[int, str]]  # with their numbers
_WRITE = "write a class a line, such as dog or person=man,woman"


@dataclass(frozen=True)
class _Entry:
    """A class as a file has it: a line as people write one, or a name and its words."""

    line: str
    where: str = ""
    number: int | None = None
    color: Any = None
    words: Any = None


def read_classes(path: Path) -> ClassFile:
    """Read a file of classes.

    Warns (MaskCLIPWarning) where the file's numbers are not the labels that its classes get.

    Raises:
        MissingFileError: there is no such file.
        VocabularyError: it cannot be read as classes; names the file and, in text, the line.
    """
    try:
        text = read_text(path, WHAT, limit=_MAX_BYTES)
        if path.suffix.lower() == ".toml" or re.match(r"classes\s*=\s*\[", text):
            return parse_toml_classes(text, str(path))
        entries = _entries(text, path)
    except MissingFileError:
        raise
    except MaskCLIPError as error:
        raise VocabularyError(str(error)) from None
    try:
        return _class_file(entries, str(path))
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from None


def _entries(text: str, path: Path) -> Sequence[_Entry]:
    """Return the classes of a text, by its suffix or by what it looks like."""
    suffix, begins = path.suffix.lower(), text.lstrip()[:1]
    items = label_map(text)
    if items:
        return _of_values(items, path)
    if suffix == ".json" or begins in ("{", "["):
        try:
            return _of_values(parse_json(text, str(path), WHAT), path)
        except MaskCLIPError:
            quoted = _quoted_list(text)  # as Python writes it: ['dog', 'cat']
            if quoted is None or not re.fullmatch(r"\[[^\[\]]*\]", text.strip()):
                raise
            return quoted
    if suffix in (".yaml", ".yml") or re.search(r"^names\s*:", text, re.MULTILINE):
        return _of_values(parse_yaml(text, str(path), WHAT), path)
    if begins == "<":
        raise VocabularyError(f"{path} looks like XML: {_WRITE}")
    is_csv = suffix in (".csv", ".tsv")
    try:
        return (None if is_csv else _quoted_list(text)) or _of_lines(text, is_csv=is_csv)
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from None


def _quoted_list(text: str) -> list[_Entry] | None:
    """Return the names of a text that is nothing but names in quotes, in brackets or not."""
    if set(_QUOTED.sub("", text)) - set("[](),; \t\r\n"):
        return None
    found = [one or other for one, other in _QUOTED.findall(text)]
    return [_Entry(name) for name in found] or None


def _of_values(values: Any, path: Path) -> list[_Entry]:
    """Return the classes in values of JSON or YAML: a list, or a dictionary of numbers or names."""
    if isinstance(values, dict):
        for key in ("names", "classes", "categories", "labels", "id2label"):
            if isinstance(values.get(key), dict | list):
                if "confidence" in values:
                    raise VocabularyError(
                        f"{path}: confidence: only a TOML file of classes may have one, under "
                        "[confidence]; write the classes as TOML, or leave it out"
                    )
                return _of_values(values[key], path)
        items = list(values.items())
        if items and all(_whole(key) is not None and isinstance(v, str) for key, v in items):
            return [_Entry(name, number=_whole(key)) for key, name in items]
        if items and all(_whole(value) is not None for _, value in items):
            return [_Entry(str(name), number=_whole(value)) for name, value in items]
        if items and all(isinstance(value, list) for _, value in items):
            return [_Entry(name, words=words) for name, words in items]
    elif isinstance(values, list):
        if all(isinstance(value, str) for value in values):
            return [_Entry(name) for name in values]
        if all(isinstance(value, dict) and "name" in value for value in values):
            return [
                _Entry(v["name"], number=_whole(v.get("id")), color=v.get("color")) for v in values
            ]
    raise VocabularyError(
        f'{path}: expected a list of names, ["dog", "cat"], or numbers and names, '
        f'{{"0": "dog", "1": "cat"}}, got {brief(values)}'
    )


def _whole(value: object) -> int | None:
    """Return a class id, or None of what is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if type(value) is int and 0 <= value < 10**9 else None


def _of_lines(text: str, *, is_csv: bool) -> list[_Entry]:
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(lines) > 1 and all(line.endswith(",") for _, line in lines[:-1]):
        lines = [(number, line.removesuffix(",").rstrip()) for number, line in lines]
    if lines and all(re.match(r"[-*]\s", line) for _, line in lines):  # as in Markdown and YAML
        lines = [(number, line[1:].strip()) for number, line in lines]
    found = _of_table(lines, is_csv=is_csv) or _numbered(lines)
    if found is not None:
        return found
    for number, line in lines:
        _check_plain(number, line, alone=len(lines) == 1)
    return [_Entry(line, f"line {number}: ") for number, line in lines]


def _numbered(lines: _Lines) -> list[_Entry] | None:
    """Return classes of lines such as `1. dog`, `1) dog` and `1 dog`; None if they are none."""
    matches = [re.fullmatch(r"(\d{1,9})[.)]?\s+(\D.*)", line) for _, line in lines]
    found = [
        _Entry(match[2], f"line {number}: ", number=int(match[1]))
        for match, (number, _) in zip(matches, lines, strict=True)
        if match
    ]
    start = found[0].number if found else None
    if start not in (0, 1) or len(found) < max(2, len(lines)):
        return None
    counted = all(entry.number == start + i for i, entry in enumerate(found))
    return found if counted else None


def _check_plain(number: int, line: str, *, alone: bool) -> None:
    """Refuse a line that is no class, and warn of one that may be several."""
    looks = None
    if _NUMBERED.fullmatch(line):
        looks = "numbered"
    elif _QUOTED.fullmatch(line.rstrip(",")):
        looks = "quoted"
    elif set("\t{}") & set(line) or not set(line) - set("[](),"):
        looks = "like a table or a list of a program"
    elif "," in line and "=" not in line and alone:
        looks = "like several classes"
    if looks is not None:
        others = "" if alone else ", and the file is not all so"
        raise VocabularyError(f"line {number}: {brief(line)} looks {looks}{others}: {_WRITE}")
    if "," in line and "=" not in line:
        first = line.partition(",")[0].strip()
        warnings.warn(
            f"line {number} of the classes: {brief(line)} is one class; for synonyms, write "
            f"{brief(f'{first}={line}')}",
            MaskCLIPWarning,
            stacklevel=2,
        )


def _of_table(lines: _Lines, *, is_csv: bool) -> list[_Entry] | None:
    """Return the classes of a table, or None of lines that are none."""
    for delimiter in "\t;:," if not is_csv else "\t;,":
        if lines and all(delimiter in line for _, line in lines):
            rows = [_cells(number, line, delimiter) for number, line in lines]
            if delimiter == ":":
                rows, lines = _without_unlabeled(rows, lines)
            found = _of_rows(lines, rows, certain=is_csv or delimiter in "\t;")
            if found is not None:
                return found
    if is_csv and lines:  # one column
        start = lines[0][1].strip("\"'").casefold() in _NAMES
        return [_Entry(line.strip('"'), f"line {number}: ") for number, line in lines[start:]]
    return None


def _without_unlabeled(rows: list[list[str]], lines: _Lines) -> tuple[list[list[str]], _Lines]:
    """Leave the black `background` of CVAT's labelmap.txt out: what nobody labelled has its colour.

    Warns (MaskCLIPWarning) where there is one.
    """
    kept = [  # of rows with a name, a colour, parts and actions
        place
        for place, row in enumerate(rows)
        if len(row) != 4 or (row[0].casefold(), row[1].replace(" ", "")) != ("background", "0,0,0")
    ]
    if len(kept) in (0, len(rows)):
        return rows, lines
    warnings.warn(
        "'background' left out: in a labelmap.txt, black is what has no label (list it in a text "
        "file of classes, one a line, if it is a class)",
        MaskCLIPWarning,
        stacklevel=2,
    )
    return [rows[place] for place in kept], [lines[place] for place in kept]


def _cells(number: int, line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
    except (csv.Error, StopIteration) as error:
        raise VocabularyError(f"line {number}: not a row of a table ({error})") from None


def _of_rows(lines: _Lines, rows: Sequence[Sequence[str]], *, certain: bool) -> list[_Entry] | None:
    """Return the classes of rows; None where these need not be rows, unless that is `certain`."""
    header = [cell.casefold().replace(" ", "_") for cell in rows[0]]
    named = next((i for i, cell in enumerate(header) if cell in _NAMES), None)
    body = list(zip((number for number, _ in lines), rows, strict=True))
    if named is not None:
        body = body[1:]
    else:
        header = _guessed_header([row for _, row in body])
        named = header.index("name") if header.count("name") == 1 else None
    odd = next((number for number, row in body if len(row) != len(header)), None)
    if named is None or odd is not None or not body:
        if not certain:
            return None
        number = odd or lines[0][0]
        line = dict(lines)[number]
        raise VocabularyError(
            f"line {number}: {brief(line)} looks like a row of a table, but which column has the "
            f"names is not clear: {_WRITE}"
        )
    number_at = next((i for i, cell in enumerate(header) if cell in _IDS), None)
    return [
        _Entry(
            _with_synonyms(row[named]),
            f"line {number}: ",
            None if number_at is None else _whole(row[number_at]),
            _color_in(row, header),
        )
        for number, row in body
    ]


def _guessed_header(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return what the columns are, of rows without a header; "name" may be there several times."""
    width = max(map(len, rows))
    columns = [[row[i] if i < len(row) else "" for row in rows] for i in range(width)]
    kinds = [_kind(column) for column in columns]
    if kinds[-3:] == ["id"] * 3 and all(int(c) < 256 for column in columns[-3:] for c in column):
        kinds[-3:] = ["r", "g", "b"]  # as in name, red, green, blue
    return kinds


def _kind(column: Sequence[str]) -> str:
    if all(_whole(cell) is not None for cell in column):
        return "id"
    if not any(column):
        return ""
    try:
        for cell in column:
            read_color(cell)
    except VocabularyError:
        return "name" if not all(re.fullmatch(r"[-+.\d]+", cell) for cell in column) else ""
    return "color"


def _color_in(row: Sequence[str], header: Sequence[str]) -> Any:
    for names in _RGB:
        if all(name in header for name in names):
            return [_whole(row[header.index(name)]) for name in names]
    at = next((i for i, cell in enumerate(header) if cell in _COLORS), None)
    return None if at is None else row[at]


def _with_synonyms(cell: str) -> str:
    """Return the line of a table's name: `dog, domestic dog` are a class and its synonyms."""
    if "," not in cell or "=" in cell:
        return cell
    return f"{cell.partition(',')[0]}={cell.strip(', ')}"


def _class_file(entries: Sequence[_Entry], source: str) -> ClassFile:
    entries = _in_order(entries, source)
    classes: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
    for entry in entries:
        if entry.where and re.search(r"\s#", entry.line):
            raise VocabularyError(
                f"{entry.where}{brief(entry.line)} looks like a name and a comment: put comments "
                "on lines of their own"
            )
        try:
            if entry.words is None:
                name, prompts = parse_line(entry.line)
            else:
                name, prompts = synonyms(entry.line, entry.words)
        except VocabularyError as error:
            raise VocabularyError(f"{entry.where}{error}") from None
        if name in classes:
            before = f"on {places[name].strip(': ')}" if places[name] else "there"
            raise VocabularyError(f"{entry.where}class {brief(name)} is already {before}")
        classes[name], places[name] = prompts, entry.where
    colors = None
    if entries and all(entry.color is not None for entry in entries):
        colors = tuple(read_color(entry.color) for entry in entries)
    return ClassFile(tuple(classes.items()), colors)


def _in_order(entries: Sequence[_Entry], source: str) -> list[_Entry]:
    """Sort classes by their numbers, if all have some, and warn where these are not the labels.

    What is no class is left out: names in underscores, and of numbered ones what others call so.
    """
    numbers = [entry.number for entry in entries if entry.number is not None]
    numbered = len(numbers) == len(entries)
    if numbered and len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise VocabularyError(f"two classes have the number {twice}")
    ordered = sorted(entries, key=lambda entry: entry.number or 0) if numbered else list(entries)
    kept = [entry for entry in ordered if not _is_no_class(entry.line, numbered=numbered)]
    left_out = [brief(e.line) for e in ordered if _is_no_class(e.line, numbered=numbered)]
    notes = [f"{', '.join(left_out)} left out, which is no class"] if left_out else []
    first = (kept or ordered or [_Entry("")])[0]
    name = brief(str(first.line).partition("=")[0])
    if numbered and [entry.number for entry in kept] != list(range(len(kept))):
        notes.append(
            "the file's numbers are not those of the labels: "
            f"{name}, there {first.number}, is 0, and so on"
        )
    elif left_out and kept and not numbered:
        notes.append(f"{name} is 0, and so on")
    if notes:
        warnings.warn(f"{source}: {'; '.join(notes)}", MaskCLIPWarning, stacklevel=2)
    return kept


def _is_no_class(name: object, *, numbered: bool) -> bool:
    if not isinstance(name, str):
        return False  # which is refused later
    return bool(_WRAPPED.fullmatch(name)) or (numbered and name.casefold() in _NO_LABEL)
