"""Published figures beside measured ones: the table, and a report that can be sent to others."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from maskclip.core.errors import without_commands
from maskclip.core.files import atomic_path, write_json, write_text
from maskclip.core.methods import method_name
from maskclip.core.text import json_escaped
from maskclip.tasks.evaluation.cells import REASON, Content
from maskclip.tasks.evaluation.settings import Evaluation
from maskclip.tasks.evaluation.tables import markdown

_PROGRAM = Path(__file__).parents[4]  # a checkout, or a folder of Python's packages

NUMBERS = ("expected", "measured", "difference", "images", "s an image")
"""The columns of `as_text` that are numbers."""

SPARE = ("images", "s an image", "data set", "model")
"""Those that a narrow terminal goes without, the first of these first."""

_EXPECTED = "Expected is what was published, and for embedded models what this project measured.\n"


class Published(Protocol):
    """A published figure, and the settings that gave it."""

    @property
    def evaluation(self) -> Evaluation:
        """The settings."""

    @property
    def miou(self) -> float:
        """In percent."""

    @property
    def source(self) -> str:
        """Where it is published."""


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """A published row, and what was measured of it.

    Attributes:
        name: of the row.
        dataset, model, method, protocol: its settings, in short.
        published: mIoU in percent.
        source: where that is from.
        content: of the cell: the result, or why there is none.
        random: whether the weights are random, so that nothing can be compared.
    """

    name: str
    dataset: str
    model: str
    method: str
    protocol: str
    published: float
    source: str
    content: Content
    random: bool = False

    @classmethod
    def of(cls, name: str, row: Published, content: Content) -> Reproduced:
        """Return a row beside what was measured of it."""
        evaluation = row.evaluation
        return cls(
            name=name,
            dataset=evaluation.dataset,
            model=evaluation.model.name,
            method=method_name(evaluation.model.method),
            protocol=evaluation.protocol,
            published=row.miou,
            source=row.source,
            content=content,
            random=evaluation.model.weights == "random",
        )

    @property
    def reason(self) -> str | None:
        """Why nothing was measured; None if something was."""
        return self.content.get(REASON)

    @property
    def complete(self) -> bool:
        """Whether all official images were measured, so that the figures can be compared."""
        return self.content.get("images") == self.content.get("official_images") is not None

    @property
    def difference(self) -> float | None:
        """Measured less published mIoU, in percent; None where they cannot be compared."""
        measured: float | None = self.content.get("miou")
        if measured is None or self.random or not self.complete:
            return None
        return measured - self.published

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the table, ready for JSON."""
        short = ("miou", "images", "official_images", "seconds", "memory_mib", REASON)
        row = {key: value for key, value in asdict(self).items() if key != "content"}
        return {
            **row,
            **{key: self.content.get(key) for key in short},
            "difference": self.difference,
        }


def as_text(rows: Sequence[Reproduced]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the lines of the rows that were measured."""
    lines = [
        [
            row.name,
            row.dataset,
            row.model,
            row.method,
            f"{row.published:.1f}",
            "" if row.content["miou"] is None else f"{row.content['miou']:.1f}",
            "" if row.difference is None else f"{row.difference:+.1f}",
            _images(row),
            "" if row.content["seconds"] is None else f"{row.content['seconds']:.3g}",
        ]
        for row in rows
        if row.reason is None
    ]
    return ["row", "data set", "model", "method", *NUMBERS], lines


def _images(row: Reproduced) -> str:
    images, official = row.content["images"], row.content["official_images"]
    return f"{images:,}" if row.complete else f"{images:,} of {official:,}"


def left_out(rows: Sequence[Reproduced]) -> dict[str, list[str]]:
    """Return why rows were left out, and which."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.reason is not None:
            found.setdefault(row.reason, []).append(row.name)
    return found


def write_table(rows: Sequence[Reproduced], out: Path) -> list[Path]:
    """Write the table as reproduce.md and reproduce.json; return the paths.

    Raises:
        OSError: the folder cannot be written.
    """
    text, table = out / "reproduce.md", out / "reproduce.json"
    write_text(_as_markdown(rows), text)
    write_json(_as_json(rows), table)
    return [text, table]


def pack(
    rows: Sequence[Reproduced], path: Path, *, data: Path | None, weights: Sequence[Path] = ()
) -> None:
    """Pack the table and every result into one archive, without paths of this machine.

    A result holds its settings, the libraries' versions and the machine; no photos.

    Args:
        rows: of the table.
        path: of the archive.
        data: the folder of the data sets, which is called DATA; that of downloaded weights is
            called HUB, the home folder ~, and the folder of the program PYTHON.
        weights: files that were given, whose folders are called WEIGHTS.

    Raises:
        OSError: the file cannot be written.
    """
    places = _places(data, weights)
    named = [Reproduced(**{**vars(row), "content": _without(row.content, places)}) for row in rows]
    files = {"reproduce.md": _as_markdown(named), "reproduce.json": _in_lines(_as_json(named))}
    for row in named:
        if row.reason is None:
            files[f"rows/{row.name}.json"] = _in_lines(row.content)
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, content in files.items():
            archive.writestr(name, content)


def _places(data: Path | None, weights: Sequence[Path]) -> dict[re.Pattern[str], str]:
    """Return what finds each folder that may be private in a text, and what it is called.

    As it was typed, absolute and without links; the longest first, for one may hold another.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    given = [folder for file in weights for folder in (file.parent, file.resolve().parent)]
    folders = [(folder, "WEIGHTS") for folder in given]
    folders += [] if data is None else [(data, "DATA")]
    folders += [(Path(HF_HUB_CACHE), "HUB"), (Path.home(), "~")]
    folders += [(_PROGRAM, "PYTHON"), (Path.cwd(), ".")]
    called: dict[Path, str] = {}
    for folder, name in folders:
        for form in (folder, folder.absolute(), folder.resolve()):
            # A root, or a single letter, is found in much that is no path.
            if form != Path(form.anchor) and len(str(form)) > 1 and form.name != "..":
                called.setdefault(form, name)
    longest = sorted(called, key=lambda place: -len(str(place)))
    return {_finding(place): called[place] for place in longest}


def _finding(place: Path) -> re.Pattern[str]:
    """Return what finds a folder in a text, however its parts are separated.

    A relative one only before another part: alone it may be a word.
    """
    between = r"(?:[\\/]+(?:\.[\\/]+)*)"
    path = between.join(map(re.escape, re.split(r"[\\/]", str(place))))
    if place.is_absolute():
        return re.compile(rf"(?<![\w.~-]){path}")
    return re.compile(rf"(?<![\w.~/\\-])(?:\.[\\/]+)*{path}(?=[\\/])")


def _without(value: Any, places: Mapping[re.Pattern[str], str]) -> Any:
    """Return a tree of plain values in which folders have other names."""
    if isinstance(value, dict):
        return {key: _without(one, places) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without(one, places) for one in value]
    if isinstance(value, str):
        value = without_commands(value)
        for place, name in places.items():
            value = place.sub(name, value)
    return value


def _in_lines(values: Any) -> str:
    return f"{json_escaped(json.dumps(values, indent=2, ensure_ascii=False))}\n"


def _as_markdown(rows: Sequence[Reproduced]) -> str:
    columns, lines = as_text(rows)
    parts = ["# Measured beside expected mIoU, in %\n", _EXPECTED, markdown(columns, lines)]
    missing = left_out(rows)
    if missing:
        table = [(", ".join(names), reason) for reason, names in missing.items()]
        parts.append(markdown(["left out", "why"], table))
    return "\n".join(parts)


def _as_json(rows: Sequence[Reproduced]) -> dict[str, Any]:
    measured = [row.content for row in rows if row.reason is None]
    machines = {json.dumps(content["machine"]): content["machine"] for content in measured}
    versions = {json.dumps(content["versions"]): content["versions"] for content in measured}
    return {
        "machines": list(machines.values()),
        "versions": list(versions.values()),
        "rows": [row.to_dict() for row in rows],
    }
