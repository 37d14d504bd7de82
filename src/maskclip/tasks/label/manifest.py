"""What a labelling has done: which photos, under which names, with which settings."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from maskclip.core.errors import MaskCLIPError, differences, list_differences
from maskclip.data.sources import Source, output_names

CHUNK = 16
"""Photos that are labelled and recorded together: all of them are done, or none."""

_AGAIN = "chunk = -1, error = null, facts = null"

_TABLES = """
create table if not exists settings (content text not null);
create table if not exists photos (
    number integer primary key,
    path blob not null unique,  -- as the file system has it: it need not be UTF-8
    stamp text not null,  -- of the photo as it was when it was planned
    place text not null,
    name text not null unique collate nocase,
    chunk integer,  -- null once it is done or has failed
    error text,
    facts text
);
create index if not exists chunks on photos (chunk);
create table if not exists found (
    photo integer not null references photos (number) on delete cascade,
    class integer not null,
    pixels integer not null,
    kept integer not null,
    score real not null,
    primary key (photo, class)
) without rowid;
"""


class LabelError(MaskCLIPError):
    """A labelling that cannot go on, or does not fit what was done before."""


@dataclass(frozen=True)
class Task:
    """A photo to be labelled.

    Attributes:
        number: in the manifest.
        path: of the image.
        place: in the tree it was found in, a relative POSIX path.
        name: of its results, a relative POSIX path without suffix.
    """

    number: int
    path: Path
    place: str
    name: str


Chunk = tuple[Task, ...]


@dataclass(frozen=True)
class Found:
    """A class in a photo.

    Attributes:
        label: the class id.
        pixels: how many pixels it won.
        kept: how many of them keep it.
        score: the mean score of those it won.
    """

    label: int
    pixels: int
    kept: int
    score: float


@dataclass(frozen=True)
class Outcome:
    """What became of a photo: its size and classes, or the error, in one line."""

    task: Task
    width: int = 0
    height: int = 0
    classes: tuple[Found, ...] = field(default=())
    error: str | None = None


@dataclass(frozen=True)
class Counts:
    """How many photos are done, have failed, and are still to be labelled."""

    done: int
    failed: int
    left: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.done + self.failed + self.left


class Manifest:
    """The record of a labelling, in an SQLite file that no second process may open.

    Args:
        path: of the file, or ":memory:".

    Raises:
        LabelError: another labelling has it open, or it is no manifest.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        with self._telling():
            self._database = sqlite3.connect(path, timeout=1, isolation_level=None)
            self._database.execute("pragma locking_mode = exclusive")
            self._database.execute("pragma foreign_keys = on")
            with self._transaction():
                for statement in _TABLES.split(";"):
                    self._database.execute(statement)

    @classmethod
    def copy_of(cls, path: Path) -> Self:
        """Return a manifest in memory with what a file holds; empty where there is none.

        Raises:
            LabelError: another labelling has it open, or it cannot be read.
        """
        copy = cls(":memory:")
        copy.path = path
        if path.exists():
            # Read-only it could not roll back what a killed labelling had begun to write.
            with copy._telling(), closing(sqlite3.connect(path, timeout=1)) as kept:
                kept.execute("begin")
                kept.execute("select 1 from sqlite_master")  # a backup waits for ever for a lock
                kept.backup(copy._database)
        return copy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def check_settings(self, settings: dict[str, Any], *, ignore: Sequence[str] = ()) -> None:
        """Compare settings with those of what was done before, but for the keys of `ignore`.

        Raises:
            LabelError: they differ; the message says in what.
        """
        row = self._one("select content from settings")
        if row is None:
            return
        kept = json.loads(row[0])
        plain = json.loads(json.dumps(settings))
        for key in ignore:
            kept.pop(key, None)
            plain.pop(key, None)
        changes = differences(kept, plain)
        if changes:
            folder = Path(self.path).parent
            raise LabelError(
                f"{folder} holds labels of other settings: {list_differences(changes)}. "
                "Choose another --out"
            )

    def plan(
        self, sources: Sequence[Source], settings: dict[str, Any], *, gone: Iterable[int] = ()
    ) -> None:
        """Note what is to be done: photos that are new, changed, failed before or lack files.

        Those that were not done and are not among the sources any more are forgotten; what is
        done stays. Which photos are labelled together is decided here, once: a network may give
        other last digits in another company.

        Args:
            sources: the photos.
            settings: with which they are labelled.
            gone: numbers of photos whose files must be made again.
        """
        with self._transaction():
            self._database.execute("delete from settings")
            self._database.execute("insert into settings values (?)", (json.dumps(settings),))
            self._database.executemany(
                f"update photos set {_AGAIN} where number = ?", ((number,) for number in gone)
            )
            self._compare(sources)
            self._add(sources)
            self._database.execute(f"update photos set {_AGAIN} where error is not null")
            self._deal()

    def _compare(self, sources: Sequence[Source]) -> None:
        """Do again what has changed, and forget what is not done and not asked for any more."""
        self._database.execute("create temp table wanted (path blob primary key, stamp text)")
        self._database.executemany(
            "insert into wanted values (?, ?)", ((_key(s), _stamp(s.path)) for s in sources)
        )
        changed = "from wanted where wanted.path = photos.path and wanted.stamp <> photos.stamp"
        self._database.execute(
            f"update photos set {_AGAIN} where facts is not null "
            f"and exists (select 1 {changed} and wanted.stamp <> '')"
        )
        self._database.execute(
            f"update photos set stamp = (select stamp {changed}) where exists (select 1 {changed})"
        )
        self._database.execute(
            "delete from photos where facts is null and path not in (select path from wanted)"
        )
        self._database.execute("drop table wanted")

    def _add(self, sources: Sequence[Source]) -> None:
        """Note new photos, under names that no other has."""
        known = dict(self._database.execute("select path, name from photos"))
        new = [source for source in sources if _key(source) not in known]
        places = [_plain(source.place) for source in new]
        names = output_names(places, taken=list(known.values()))
        self._database.executemany(
            "insert into photos (path, stamp, place, name, chunk) values (?, ?, ?, ?, -1)",
            (
                (_key(source), _stamp(source.path), place, name)
                for source, place, name in zip(new, places, names, strict=True)
            ),
        )

    def _deal(self) -> None:
        """Give a chunk to every photo that waits for one."""
        (begun,) = self._one("select coalesce(max(chunk), -1) + 1 from photos")
        waiting = self._database.execute("select number from photos where chunk = -1").fetchall()
        self._database.executemany(
            "update photos set chunk = ? where number = ?",
            ((begun + index // CHUNK, number) for index, (number,) in enumerate(waiting)),
        )

    def chunks(self) -> Iterator[Chunk]:
        """Yield the photos that are to be labelled, those of a chunk together."""
        for (chunk,) in self._all("select distinct chunk from photos where chunk >= 0 order by 1"):
            rows = self._all(
                "select number, path, place, name from photos where chunk = ? order by number",
                chunk,
            )
            yield tuple(_task(*row) for row in rows)

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Note what became of the photos of a chunk, all or none.

        Raises:
            LabelError: it cannot be written, as on a full disk.
        """
        with self._transaction():
            for outcome in outcomes:
                number = outcome.task.number
                facts = json.dumps({"width": outcome.width, "height": outcome.height})
                error = None if outcome.error is None else _plain(outcome.error)
                self._database.execute(
                    "update photos set chunk = null, error = ?, facts = ? where number = ?",
                    (error, facts if error is None else None, number),
                )
                self._database.execute("delete from found where photo = ?", (number,))
                self._database.executemany(
                    "insert into found values (?, ?, ?, ?, ?)",
                    ((number, f.label, f.pixels, f.kept, f.score) for f in outcome.classes),
                )

    def counts(self) -> Counts:
        """Return how far the work is."""
        return Counts(*self._one("select count(facts), count(error), count(chunk) from photos"))

    def outcomes(self) -> Iterator[Outcome]:
        """Yield what became of every photo that is done or has failed, in the order of names."""
        with self._telling():
            photos = self._database.execute(
                "select number, path, place, name, facts, error from photos where chunk is null "
                "order by name"
            )
            for *task, facts, error in photos:
                classes = self._database.execute(
                    "select class, pixels, kept, score from found where photo = ? "
                    "order by pixels desc, class",
                    (task[0],),
                )
                yield Outcome(
                    _task(*task),
                    **json.loads(facts or "{}"),
                    classes=tuple(Found(*row) for row in classes),
                    error=error,
                )

    def _one(self, query: str, *values: Any) -> Any:
        with self._telling():
            return self._database.execute(query, values).fetchone()

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._telling():
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._telling():
            self._database.execute("begin immediate")
            try:
                yield
            except BaseException:
                if self._database.in_transaction:  # SQLite ends it by itself on a full disk
                    self._database.execute("rollback")
                raise
            self._database.execute("commit")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell errors of the database as errors of the labelling."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise LabelError(f"{self.path} is in use: another labelling writes there") from None
            raise LabelError(
                f"{self.path}: the record of what is done cannot be used ({error})"
            ) from error


def _key(source: Source) -> bytes:
    return os.fsencode(source.path.absolute())


def _stamp(path: Path) -> str:
    """Return what changes with a file's content, or nothing where it is missing."""
    try:
        facts = path.stat()
    except OSError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _plain(text: str) -> str:
    """Return a text that may name a path that is not UTF-8, in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _task(number: int, path: bytes, place: str, name: str) -> Task:
    return Task(number, Path(os.fsdecode(path)), place, name)
