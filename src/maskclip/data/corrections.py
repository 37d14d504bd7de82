"""What people made of a labelling: photos accepted, rejected or corrected, and every step undone.

`corrections/`, in the folder of a labelling, has `journal.jsonl`, a line for each action, and
`labels/`, the labels after each edit, in files that are never written again: NAME.STEP.png, and
NAME.0.png of the labels before the first one. An action is done when its line is on the disk, so
a process that is killed loses none that was answered; what the photos' labels are is what the
journal says, read from its beginning.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import InUseError, atomic_path, lock, make_durable, remove_unfinished
from maskclip.core.text import brief, counted
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import Labeled
from maskclip.data.formats.per_photo import Palette
from maskclip.data.journal import Journal
from maskclip.data.masks import LabelRule, MaskError, SizeError, load_labels

FOLDER = "corrections"
LABELS = "png"
"""The format, and its folder, of the labels that are corrected."""

OPEN, ACCEPTED, REJECTED = "open", "accepted", "rejected"
STATES = (OPEN, ACCEPTED, REJECTED)

_JOURNAL, _EDITED, _LOCK = "journal.jsonl", "labels", ".lock"
_UNDO, _REDO = "undo", "redo"
_WHAT = "the journal of corrections"
_MOST_BYTES = 256 << 20  # of a million actions


class CorrectionError(MaskCLIPError):
    """Corrections that cannot be read, or do not fit; the message says why, in one line."""


@dataclass(frozen=True)
class Correction:
    """What people made of a photo.

    Attributes:
        state: one of `STATES`.
        edit: the step of the edit that its labels are of; None while they are the model's.
    """

    state: str = OPEN
    edit: int | None = None

    @property
    def reviewed(self) -> bool:
        """Whether its labels count as true: it was accepted, or edited and not rejected."""
        return self.state == ACCEPTED or (self.state == OPEN and self.edit is not None)


UNTOUCHED = Correction()


@dataclass(frozen=True)
class _Action:
    photo: str
    before: Correction
    after: Correction


@dataclass
class _History:
    """What a journal says: the classes, what photos are now, what may be undone and done again."""

    classes: tuple[str, ...] = ()
    step: int = 0
    photos: dict[str, Correction] = field(default_factory=dict)
    done: list[_Action] = field(default_factory=list)
    undone: list[_Action] = field(default_factory=list)

    def follow(self, line: Mapping[str, Any]) -> None:
        """Take an entry in.

        Raises:
            ValueError, KeyError, TypeError: it is none, or does not follow from those before.
        """
        if not self.classes:
            self.classes = _classes(line)
            return
        if line["step"] != self.step + 1:
            raise ValueError(f"step {self.step + 1} is expected, got {brief(line['step'])}")
        self.step += 1
        if line["action"] == _UNDO:
            self.undone.append(self.done.pop())
            self._set(self.undone[-1].photo, self.undone[-1].before)
        elif line["action"] == _REDO:
            self.done.append(self.undone.pop())
            self._set(self.done[-1].photo, self.done[-1].after)
        else:
            photo, after = _correction(line, self.step)
            self.done.append(_Action(photo, self.photos.get(photo, UNTOUCHED), after))
            self.undone.clear()
            self._set(photo, after)

    def _set(self, photo: str, correction: Correction) -> None:
        self.photos[photo] = correction
        if correction == UNTOUCHED:
            del self.photos[photo]


def _classes(line: Mapping[str, Any]) -> tuple[str, ...]:
    names = line["classes"]
    if not isinstance(names, list) or not names or not all(type(n) is str for n in names):
        raise ValueError(f"a list of classes is expected, got {brief(names)}")
    return tuple(names)


def _correction(line: Mapping[str, Any], step: int) -> tuple[str, Correction]:
    photo, state, edit = line["photo"], line["state"], line["edit"]
    parts = PurePosixPath(photo).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in photo:
        raise ValueError(f"a photo is called {brief(photo)}")
    if state not in STATES or not (edit is None or (type(edit) is int and 0 < edit <= step)):
        raise ValueError(f"a photo is {brief(state)} with the labels of step {brief(edit)}")
    return photo, Correction(state, edit)


class Corrections:
    """The corrections of a labelling as they are on the disk now; none where there is no journal.

    Args:
        out: the folder of the labelling.

    Raises:
        MaskCLIPError: the journal is damaged, or lacks actions whose labels are there.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / FOLDER
        self._journal = Journal(self.folder / _JOURNAL, _WHAT, limit=_MOST_BYTES)
        self._history = _History()
        labels = _last_step(out)  # before the journal, to which another process may be adding
        self._journal.read(self._history.follow)
        step = self._history.step
        # Labels are written before their line: a process that was killed leaves those of one step.
        if labels > step + 1 or (self._journal.exists and not step):
            there = f", labels up to that of step {labels:,}" if labels else ""
            got = counted(step, "action", "actions")
            raise self._journal.refusal(
                f"expected {_WHAT} with every action that was answered, got {got}{there}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that were corrected; () before the first action."""
        return self._history.classes

    @property
    def photos(self) -> Mapping[str, Correction]:
        """What people made of photos, by their names; of those that they touched."""
        return self._history.photos

    def of(self, name: str) -> Correction:
        """Return what people made of a photo."""
        return self.photos.get(name, UNTOUCHED)

    def labels_file(self, name: str) -> Path:
        """Return the file of a photo's labels: the corrected ones, or the model's."""
        edit = self.of(name).edit
        if edit is not None:
            return self._edited(name, edit)
        # `label` writes corrected labels to where the model's were.
        original = self._edited(name, 0)
        return original if original.exists() else self.out / LABELS / f"{name}.png"

    def read_labels(
        self, name: str, vocabulary: Vocabulary, size: tuple[int, int] | None = None
    ) -> Labels:
        """Return a photo's labels (H, W), in the vocabulary's type.

        Raises:
            MaskCLIPError: they are missing, damaged or not of the (width, height) `size`.
        """
        path = self.labels_file(name)
        try:
            ids = load_labels(path, LabelRule.of(vocabulary), size=size)
        except SizeError:
            raise
        except MaskError as error:
            what = "the file, or remove it: `maskclip label` writes it anew"
            if self.of(name).edit is not None:
                what = "it, or give the photo the model's labels back in a review"
            raise MaskError(f"{error}; restore {what}") from None
        if vocabulary.label_dtype is np.uint8:
            return ids.astype(np.uint8)
        return ids.astype(np.uint16)

    @staticmethod
    def are_in(out: Path) -> bool:
        """Return whether a folder is that of a labelling that was corrected."""
        return (out / FOLDER / _JOURNAL).is_file() or _last_step(out) > 1

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse corrections of other classes.

        Raises:
            CorrectionError: the classes or their order differ.
        """
        if self.classes and self.classes != vocabulary.names:
            raise CorrectionError(
                f"{self.folder}: its corrections are of {_listed(self.classes)}, the labels of "
                f"{_listed(vocabulary.names)}: move {FOLDER} away, or choose another `out`"
            )

    def count(self, wanted: Callable[[Correction], bool]) -> int:
        """Return how many photos have a correction that is wanted."""
        return sum(map(wanted, self.photos.values()))

    def line(self) -> str:
        """Return what people made of the photos, in a line; "" before the first action."""
        accepted = self.count(lambda c: c.state == ACCEPTED)
        edited = self.count(lambda c: c.edit is not None and c.state != REJECTED)
        rejected = self.count(lambda c: c.state == REJECTED)
        counts = {"accepted": accepted, "with corrected labels": edited, "rejected": rejected}
        parts = [f"{count:,} {what}" for what, count in counts.items() if count]
        total = len(self.photos)
        return f"{counted(total, 'photo', 'photos')} reviewed: {', '.join(parts)}" if parts else ""

    def files(self) -> Iterator[Path]:
        """Yield the journal and the corrected labels that it speaks of, where there are some."""
        if self.classes:
            yield self.folder / _JOURNAL
        for name, correction in self.photos.items():
            if correction.edit is not None:
                yield self.labels_file(name)

    def _edited(self, name: str, step: int) -> Path:
        return self.folder / _EDITED / f"{name}.{step}.png"


class CorrectionJournal(Corrections):
    """The corrections of a labelling, to be added to; by one process at a time, from any thread.

    Every method that changes something returns when the change would survive a power cut.

    Args:
        out: the folder of the labelling.
        vocabulary: its classes.

    Raises:
        CorrectionError: another process corrects the same labels, those are of other classes, or
            the folder cannot be written.
        MaskCLIPError: as `Corrections`. Methods that change something raise it when the journal is
            not the file any more that was read; nothing is written then.
    """

    def __init__(self, out: Path, vocabulary: Vocabulary) -> None:
        self._closing = ExitStack()
        try:
            (out / FOLDER).mkdir(parents=True, exist_ok=True)
            self._closing.enter_context(lock(out / FOLDER / _LOCK))
        except OSError as error:
            raise CorrectionError(
                f"{out / FOLDER} cannot be written ({error.strerror or error}), and each action is "
                "saved there: copy the labels to where they can be corrected"
            ) from None
        except InUseError:
            raise CorrectionError(
                f"{out / FOLDER} is in use: another process corrects these labels"
            ) from None
        super().__init__(out)
        self.check(vocabulary)
        self.vocabulary = vocabulary
        remove_unfinished(self.folder)
        self._writer = Palette(vocabulary, self.folder / _EDITED)
        self._turn = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def can_undo(self) -> bool:
        """Whether there is an action to be undone."""
        return bool(self._history.done)

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone action to be done again."""
        return bool(self._history.undone)

    def mark(self, name: str, state: str) -> Correction:
        """Accept or reject a photo, or open it again; its labels stay.

        Raises:
            CorrectionError: an unknown state.
            OSError: it cannot be written.
        """
        if state not in STATES:
            raise CorrectionError(f"a photo is {', '.join(STATES)}, got {brief(state)}")
        with self._turn:
            return self._act(name, state, replace(self.of(name), state=state))

    def edit(self, name: str, labels: Labels, *, action: str = "relabel") -> Correction:
        """Give a photo corrected labels (H, W); one that was rejected is open again.

        Raises:
            ValueError: the labels have other classes.
            OSError: they cannot be written.
        """
        with self._turn:
            self._journal.check()
            before, step = self.of(name), self._history.step + 1
            original = self._edited(name, 0)
            written = [] if original.exists() else [original]
            if written:
                with atomic_path(original) as temporary:
                    shutil.copyfile(self.labels_file(name), temporary)
            item = Labeled(f"{name}.{step}", name, labels)
            self._writer.write(item)
            make_durable([*written, *self._writer.files(item.name)])
            state = OPEN if before.state == REJECTED else before.state
            return self._act(name, action, Correction(state, step))

    def reset(self, name: str) -> Correction:
        """Give a photo the model's labels back, and open it again."""
        with self._turn:
            return self._act(name, "reset", UNTOUCHED)

    def undo(self) -> str | None:
        """Undo the last action, of whatever day; return its photo's name, or None if none is left.

        Raises:
            OSError: it cannot be written.
        """
        return self._go(_UNDO, self._history.done)

    def redo(self) -> str | None:
        """Do again what was undone last, unless something else was done since; as `undo`."""
        return self._go(_REDO, self._history.undone)

    def _go(self, action: str, actions: list[_Action]) -> str | None:
        with self._turn:
            if not actions:
                return None
            photo = actions[-1].photo
            self._append({"step": self._history.step + 1, "action": action})
            return photo

    def _act(self, name: str, action: str, after: Correction) -> Correction:
        step = self._history.step + 1
        entry = {"step": step, "photo": name, "action": action}
        self._append({**entry, "state": after.state, "edit": after.edit})
        return after

    def _append(self, entry: dict[str, Any]) -> None:
        """Write an entry to the disk, after the head if it is the first; then take it in."""
        entries = [entry]
        if not self.classes:
            entries.insert(0, {"classes": list(self.vocabulary.names)})
        self._journal.append(entries)
        for each in entries:
            self._history.follow(each)


def _last_step(out: Path) -> int:
    """Return the last step that corrected labels are of; 0 where there are none."""
    names = (name for *_, files in os.walk(out / FOLDER / _EDITED) for name in files)
    steps = (name.removesuffix(".png").rpartition(".")[2] for name in names)
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _listed(names: tuple[str, ...]) -> str:
    return brief(list(names))
