"""Classes as they are typed: `-c`, `--classes`, `--vocabulary`, `--background`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip.core.errors import MaskCLIPError

if TYPE_CHECKING:
    from maskclip.core.vocabulary import Vocabulary

_CLASS_FILES = (".txt", ".toml", ".json", ".yaml", ".yml", ".csv", ".tsv", ".pbtxt")


def read_vocabulary(names: Sequence[str], file: Path | None, builtin: str | None) -> Vocabulary:
    """Return the vocabulary of `-c`, `--classes` or `--vocabulary`, of which one must be given.

    Raises:
        MaskCLIPError: none or several are given, or the classes cannot be used.
    """
    from maskclip.cli.console import warning_line
    from maskclip.core.vocabulary import Vocabulary, builtin_names

    given = [bool(names), file is not None, builtin is not None]
    if sum(given) != 1:
        what = "no classes" if not any(given) else "several sources of classes"
        raise MaskCLIPError(
            f"{what}: give -c NAME (repeat it for more), --classes FILE, or --vocabulary NAME "
            "(see `maskclip vocabularies`)"
        )
    if file is not None:
        if not file.exists() and str(file) in builtin_names():
            raise MaskCLIPError(f"{file}: no such file; the built-in set is --vocabulary {file}")
        return Vocabulary.from_file(file)
    if builtin is not None:
        if Path(builtin).is_file() and builtin not in builtin_names():
            raise MaskCLIPError(f"{builtin} is a file: give it as --classes {builtin}")
        return Vocabulary.builtin(builtin)
    for name in names:
        if Path(name).suffix in _CLASS_FILES and Path(name).is_file():
            raise MaskCLIPError(f"{name} is a file: give it as --classes {name}")
        if "," in name and "=" not in name:
            warning_line(f"{name!r} is one class; for several, repeat -c: -c dog -c cat")
    return Vocabulary.parse(names)


def check_photos(arguments: Sequence[str], names: Sequence[str] | None) -> None:
    """Refuse addresses, and words that follow a class, where photos are expected.

    Raises:
        MaskCLIPError: says how it is written.
    """
    for argument in arguments:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", argument):
            raise MaskCLIPError(
                f"{argument} is an address: download it first, and give the file's path"
            )
    if names:
        check_words(arguments, names)


def check_words(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Refuse words that follow a class, as in `-c dog cat`, and are no path.

    Raises:
        MaskCLIPError: says how several classes are written.
    """
    for argument in arguments:
        plain = argument != "-" and not re.search(r"[./\\*?[]", argument)
        if plain and not Path(argument).exists():
            raise MaskCLIPError(
                f"{argument}: no such file or folder; for several classes, repeat -c: "
                f"-c {shlex.quote(names[-1])} -c {shlex.quote(argument)}"
            )


def read_words(
    names: Sequence[str] | None,
    file: Path | None,
    builtin: str | None,
    background: str | None,
    *,
    model: str,
) -> Vocabulary | None:
    """Return the classes that a model looks for, its background included.

    None is a student's own classes, which need not be given.

    Raises:
        MaskCLIPError: as `read_vocabulary`, or the background cannot be used.
    """
    from maskclip.core.class_lists import read_background
    from maskclip.tasks.without_clip import names_student

    rule, student = read_background(background), names_student(model)
    if student and not names and file is None and builtin is None:
        if rule is not None:
            raise MaskCLIPError(
                f"--background goes with classes, and {model} takes its own: give those that it is "
                "to look for, too"
            )
        return None
    return read_vocabulary(names or [], file, builtin).with_background(rule)
