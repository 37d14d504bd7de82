"""The record of a labelling: which photos are done, under which names, with which settings."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from maskclip.core.errors import differences, list_differences
from maskclip.core.text import brief
from maskclip.data.corrections import Corrections
from maskclip.data.names import output_names
from maskclip.data.sources import Source
from maskclip.tasks.label import Chunk, ClassStats, LabelingError, Outcome, Task

CHUNK = 16
"""Photos that are labelled and recorded together: all of them are done, or none."""

_AGAIN = "chunk = -1, error = null, metadata = null"

_TABLES = """
create table if not exists settings (content text not null);
create table if not exists photos (
    number integer primary key,
    path blob not null unique,  -- as the file system has it: it need not be UTF-8
    stamp text not null,  -- of the photo as it was when it was planned
    relative_path text not null,
    name text not null unique collate nocase,
    chunk integer,  -- null once it is done or has failed
    error text,
    metadata text  -- width and height, once it is done
);
create index if not exists chunks on photos (chunk);
create table if not exists class_stats (
    photo integer not null references photos (number) on delete cascade,
    class integer not null,
    pixels integer not null,
    kept integer not null,
    score real not null,
    primary key (photo, class)
) without rowid;
"""


@dataclass(frozen=True)
class Counts:
    """How many photos are done, failed, and left to be labelled."""

    done: int
    failed: int
    left: int

    def after(self, photos: int, *, failed: bool) -> Counts:
        """Return the counts once so many photos are done, or have failed."""
        done, broken = (0, photos) if failed else (photos, 0)
        return Counts(self.done + done, self.failed + broken, self.left - photos)

    @property
    def total(self) -> int:
        """The sum."""
        return self.done + self.failed + self.left


class Manifest:
    """The record of a labelling, in an SQLite file that only one process can open.

    Args:
        path: of the file, or ":memory:".

    Raises:
        LabelingError: another labelling has it open, or it is no manifest.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._classes: int | None = None  # of the vocabulary, once it is known
        with self._wrap_errors():
            self._database = sqlite3.connect(path, timeout=1, isolation_level=None)
            self._database.execute("pragma locking_mode = exclusive")
            self._database.execute("pragma foreign_keys = on")
            with self._transaction():
                for statement in _TABLES.split(";"):
                    self._database.execute(statement)
            self._database.execute("pragma synchronous = full")  # a commit waits for the disk
        self._counts = self._counted()

    @classmethod
    def copy_of(cls, path: Path) -> Self:
        """Return a copy in memory of a file's manifest; an empty one if there is no file.

        Raises:
            LabelingError: another labelling has it open, or it cannot be read.
        """
        copy = cls(":memory:")
        copy.path = path
        if path.exists():
            # Opened read-only it could not roll back what a killed labelling had begun to write.
            with copy._wrap_errors(), closing(sqlite3.connect(path, timeout=1)) as saved:
                saved.execute("begin")
                saved.execute("select 1 from sqlite_master")  # backup() would wait forever
                saved.backup(copy._database)
            copy._counts = copy._counted()
        return copy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def settings(self) -> dict[str, Any]:
        """Return the settings of earlier runs; {} if there was none.

        Raises:
            LabelingError: they are damaged.
        """
        row = self._one("select content from settings")
        if row is None:
            return {}
        with self._wrap_content():
            return dict(json.loads(row[0]))

    def check_settings(self, settings: dict[str, Any], *, ignore: Sequence[str] = ()) -> None:
        """Compare settings with those of earlier runs, except for the keys of `ignore`.

        Raises:
            LabelingError: they differ; the message names the differences.
        """
        saved = self.settings()
        if not saved:
            return
        wanted = json.loads(json.dumps(settings))
        for key in ignore:
            saved.pop(key, None)
            wanted.pop(key, None)
        changes = differences(saved, wanted)
        if changes:
            folder = Path(self.path).parent
            raise LabelingError(
                f"{folder} holds labels of other settings: {list_differences(changes)}. "
                "Choose another `out`"
            )

    def plan(
        self,
        sources: Sequence[Source],
        settings: dict[str, Any],
        *,
        missing: Iterable[int] = (),
        beside: Callable[[Source], Path] | None = None,
        corrections: Corrections | None = None,
    ) -> None:
        """Record what is to be done: photos that are new, changed, failed before or lack files.

        Photos that are done stay, even if they are not among the sources any more; others are then
        forgotten. Which photos are labelled together is decided here, once, because the network's
        last digits depend on the batch.

        Args:
            sources: the photos.
            settings: with which they are labelled.
            missing: numbers of photos some of whose files are missing.
            beside: names the file beside each photo of which its labels are made too: a photo has
                changed when that has.
            corrections: of labels: a photo has changed when its labels were corrected.
        """
        vocabulary = settings.get("vocabulary")
        self._classes = None if vocabulary is None else len(vocabulary["names"])
        with self._transaction():
            self._database.execute("delete from settings")
            self._database.execute("insert into settings values (?)", (json.dumps(settings),))
            self._database.executemany(
                f"update photos set {_AGAIN} where number = ?", ((number,) for number in missing)
            )
            stamps = {
                _key(source): _stamp(source.path, *([beside(source)] if beside else []))
                for source in sources
            }
            if corrections is not None:
                self._add_corrections(stamps, corrections)
            self._compare(stamps)
            self._add(sources, stamps)
            self._database.execute(f"update photos set {_AGAIN} where error is not null")
            self._assign_chunks()
        self._counts = self._counted()

    def _add_corrections(self, stamps: dict[bytes, str], corrections: Corrections) -> None:
        """Add to the stamps of photos of which edit their labels are."""
        for name, path in self._all("select name, path from photos"):
            edit = corrections.of(name).edit
            if edit is not None and stamps.get(path):
                stamps[path] += f" edit {edit}"

    def _compare(self, stamps: Mapping[bytes, str]) -> None:
        """Mark photos that have changed, and forget those that are neither done nor wanted."""
        self._database.execute("create temp table wanted (path blob primary key, stamp text)")
        self._database.executemany("insert into wanted values (?, ?)", stamps.items())
        # Of a photo that is missing now nothing is known: it may come back as it was.
        changed = (
            "from wanted where wanted.path = photos.path and wanted.stamp <> photos.stamp "
            "and wanted.stamp <> ''"
        )
        self._database.execute(
            f"update photos set {_AGAIN} where metadata is not null and exists (select 1 {changed})"
        )
        self._database.execute(
            f"update photos set stamp = (select stamp {changed}) where exists (select 1 {changed})"
        )
        self._database.execute(
            "delete from photos where metadata is null and path not in (select path from wanted)"
        )
        self._database.execute("drop table wanted")

    def _add(self, sources: Sequence[Source], stamps: Mapping[bytes, str]) -> None:
        """Add new photos, under unique names."""
        known = dict(self._database.execute("select path, name from photos"))
        new = [source for source in sources if _key(source) not in known]
        paths = [_plain(source.relative_path) for source in new]
        with self._wrap_content():
            names = output_names(paths, taken=list(known.values()))
        self._database.executemany(
            "insert into photos (path, stamp, relative_path, name, chunk) values (?, ?, ?, ?, -1)",
            (
                (_key(source), stamps[_key(source)], path, name)
                for source, path, name in zip(new, paths, names, strict=True)
            ),
        )

    def _assign_chunks(self) -> None:
        """Assign a chunk to each photo that has none."""
        (first,) = self._one("select coalesce(max(chunk), -1) + 1 from photos")
        waiting = self._database.execute("select number from photos where chunk = -1").fetchall()
        self._database.executemany(
            "update photos set chunk = ? where number = ?",
            ((first + index // CHUNK, number) for index, (number,) in enumerate(waiting)),
        )

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of photos that are left to be labelled."""
        for (chunk,) in self._all("select distinct chunk from photos where chunk >= 0 order by 1"):
            rows = self._all(
                "select number, path, relative_path, name from photos where chunk = ? "
                "order by number",
                chunk,
            )
            with self._wrap_content():
                chunk_of_photos = tuple(_task(*row) for row in rows)
            yield chunk_of_photos

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Record the outcomes of a chunk, all or none.

        Their files must be on the disk: a power cut may follow at any moment.

        Raises:
            LabelingError: the file cannot be written, as on a full disk.
        """
        counts = self._counts
        with self._transaction():
            for outcome in outcomes:
                number = outcome.task.number
                metadata = json.dumps({"width": outcome.width, "height": outcome.height})
                error = None if outcome.error is None else _plain(outcome.error)
                changed = self._database.execute(
                    "update photos set chunk = null, error = ?, metadata = ? "
                    "where number = ? and chunk is not null",
                    (error, metadata if error is None else None, number),
                )
                counts = counts.after(changed.rowcount, failed=error is not None)
                self._database.execute("delete from class_stats where photo = ?", (number,))
                self._database.executemany(
                    "insert into class_stats values (?, ?, ?, ?, ?)",
                    ((number, c.label, c.pixels, c.kept, c.score) for c in outcome.classes),
                )
        self._counts = counts

    def counts(self) -> Counts:
        """Return how many photos are done, failed and left."""
        return self._counts

    def _counted(self) -> Counts:
        """Count in the file: once, for after every chunk it would take longer than labelling it."""
        return Counts(*self._one("select count(metadata), count(error), count(chunk) from photos"))

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome of each photo that is done or failed, in the order of names."""
        with self._wrap_errors():
            photos = self._database.execute(
                "select number, path, relative_path, name, metadata, error from photos "
                "where chunk is null order by name"
            )
            for *task, metadata, error in photos:
                classes = self._database.execute(
                    "select class, pixels, kept, score from class_stats where photo = ? "
                    "order by pixels desc, class",
                    (task[0],),
                )
                with self._wrap_content():
                    size = json.loads(metadata or "{}") or {"width": 0, "height": 0}
                    stats = tuple(self._class_stats(*row) for row in classes)
                    width, height = int(size["width"]), int(size["height"])
                    outcome = Outcome(_task(*task), width, height, stats, error)
                yield outcome

    def sizes(self) -> dict[str, int]:
        """Return the bytes that each photo had when it was planned, by the name of its results."""
        rows = self._all("select name, stamp from photos where stamp <> ''")
        with self._wrap_content():
            return {name: int(stamp.split()[0]) for name, stamp in rows}

    def _class_stats(self, label: int, pixels: int, kept: int, score: float) -> ClassStats:
        if self._classes is not None and not 0 <= label < self._classes:
            raise ValueError(f"a class {label} of {self._classes}")
        return ClassStats(label, int(pixels), int(kept), float(score))

    def _one(self, query: str, *values: Any) -> Any:
        with self._wrap_errors():
            return self._database.execute(query, values).fetchone()

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._wrap_errors():
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._wrap_errors():
            self._database.execute("begin immediate")
            try:
                yield
            except BaseException:
                if self._database.in_transaction:  # SQLite ends it by itself on a full disk
                    self._database.execute("rollback")
                raise
            self._database.execute("commit")

    @contextmanager
    def _wrap_content(self) -> Iterator[None]:
        """Raise what comes of content that no labelling has written as `LabelingError`."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise LabelingError(
                f"{self.path}: the record of what is done is damaged ({error}): remove it to label "
                "everything again, or choose another `out`"
            ) from error

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Raise errors of the database as `LabelingError`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise LabelingError(
                    f"{self.path} is in use: another labelling writes there"
                ) from None
            raise LabelingError(
                f"{self.path}: the record of what is done cannot be read or written ({error}). If "
                "the disk has room, it is damaged: remove it to label everything again, or choose "
                "another `out`"
            ) from error


def _key(source: Source) -> bytes:
    return os.fsencode(source.path.absolute())


def _stamp(*paths: Path) -> str:
    """Return size and time of files, which change with their content; "" if one is missing."""
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return ""
    return " ".join(f"{status.st_size} {status.st_mtime_ns}" for status in found)


def _plain(text: str) -> str:
    """Return a text in valid UTF-8, with the bytes of a path that is not UTF-8 escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _task(number: int, path: bytes, relative_path: str, name: str) -> Task:
    """Return a photo of a row.

    Raises:
        TypeError, ValueError: the row holds something else, or a name that leads elsewhere.
    """
    if not isinstance(path, bytes) or not all(isinstance(t, str) for t in (relative_path, name)):
        raise TypeError(f"photo {number} has no path or name")
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"photo {number} is called {brief(name)}")
    return Task(number, Path(os.fsdecode(path)), relative_path, name)
