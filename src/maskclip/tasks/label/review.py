"""A labelling in review: its photos in the order of what is worth a look, and what people do.

Every action is on the disk when its method returns, and can be undone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.regions import label_around, region_at
from maskclip.core.text import brief
from maskclip.data.corrections import ACCEPTED, OPEN, REJECTED, CorrectionJournal
from maskclip.data.images import load_image
from maskclip.tasks.label.finished import LabeledPhoto, open_labels

SHOWN_SIDE = 1600
"""The most px that a side of a picture that is shown has."""

Action = Literal["accept", "reject", "open", "reset", "relabel", "ignore", "merge"]

_STATES = {"accept": ACCEPTED, "reject": REJECTED, "open": OPEN}


class UnknownPhotoError(MaskCLIPError):
    """A photo that the labelling does not have."""


class OtherLabelsError(MaskCLIPError):
    """A photo that has other labels by now than those that were looked at."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to a photo.

    Attributes:
        action: `accept`, `reject`, `open` (neither), `reset` (the model's labels again); or to a
            region: `relabel` it, `ignore` it, or `merge` it into what most of its border touches.
        row, column: a pixel of the region.
        label: the class that a region gets.
        whole: whether all regions of that class in the photo are meant.
    """

    action: Action
    row: int = 0
    column: int = 0
    label: int | None = None
    whole: bool = False


class Review:
    """A finished labelling that people look through, from any thread; one process at a time.

    Args:
        out: the folder of the labelling.

    Raises:
        MaskCLIPError: it is none, another process corrects it, or it cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.finished = open_labels(out)
        self.vocabulary = self.finished.vocabulary
        self.journal = CorrectionJournal(out, self.vocabulary)
        self._turn = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.__exit__()

    def photo(self, name: str) -> LabeledPhoto:
        """Return a photo by the name of its results.

        Raises:
            UnknownPhotoError: there is none.
        """
        found = self.finished.by_name.get(name)
        if found is None:
            raise UnknownPhotoError(f"no photo {brief(name)} in this labelling")
        return found

    def describe(self, photo: LabeledPhoto) -> dict[str, Any]:
        """Describe a photo for JSON: its size, why it is worth a look, and what was made of it."""
        correction, change = self.journal.of(photo.name), photo.change()
        flags = [f"{self.vocabulary.names[label]}: {reason}" for label, reason in photo.reasons]
        return {
            "name": photo.name,
            "photo": photo.outcome.task.relative_path,
            "width": photo.outcome.width,
            "height": photo.outcome.height,
            "reasons": [*([change] if change else []), *flags],
            "doubt": round(photo.doubt, 4),
            "state": correction.state,
            "corrected": correction.edit is not None,
            "edit": correction.edit,
        }

    def image(self, name: str) -> Image.Image:
        """Return a photo, reduced to what is shown.

        Raises:
            MaskCLIPError: it cannot be read any more.
        """
        photo = self.photo(name)
        image = load_image(photo.outcome.task.path)
        if image.size != photo.size:
            raise MaskCLIPError("the photo has another size than when it was labelled")
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BILINEAR)
        return image

    def labels(self, name: str) -> Labels:
        """Return a photo's labels (H, W) at its own size.

        Raises:
            MaskCLIPError: they cannot be read.
        """
        photo = self.photo(name)
        return self.journal.read_labels(name, self.vocabulary, photo.size)

    def shown_labels(self, name: str) -> Labels:
        """Return a photo's labels (h, w) of the picture that is shown.

        Its pixel (row, column) has the label of (row * H // h, column * W // w).
        """
        labels = self.labels(name)
        height, width = labels.shape
        factor = min(1.0, SHOWN_SIDE / max(height, width))
        rows, columns = (
            np.arange(small) * side // small
            for side in (height, width)
            for small in [max(1, round(side * factor))]
        )
        reduced: Labels = labels[np.ix_(rows, columns)]
        return reduced

    def change(
        self, name: str, edit: Edit, *, seen: Callable[[int | None], bool] = lambda _: True
    ) -> LabeledPhoto:
        """Do something to a photo.

        Args:
            name: of the photo.
            edit: what is done.
            seen: whether the labels of an edit, of that step, are those that were looked at.

        Raises:
            OtherLabelsError: others were, for somebody else has corrected the photo.
            MaskCLIPError: there is no such photo, pixel or class.
            OSError: it cannot be written; nothing has changed.
        """
        photo = self.photo(name)
        with self._turn:
            if not seen(self.journal.of(name).edit):
                raise OtherLabelsError(
                    "not done: somebody else has corrected this photo meanwhile; it is shown as it "
                    "is now"
                )
            if edit.action in _STATES:
                self.journal.mark(name, _STATES[edit.action])
            elif edit.action == "reset":
                self.journal.reset(name)
            else:
                labels = self.labels(name)
                changed = _edited(labels, edit, self._target(labels, edit))
                if changed is not None:
                    self.journal.edit(name, changed, action=edit.action)
        return photo

    def undo(self) -> LabeledPhoto | None:
        """Undo the last action; return its photo, None if there is none."""
        return self._known(self.journal.undo())

    def redo(self) -> LabeledPhoto | None:
        """Do again what was undone last; return its photo, None if there is none."""
        return self._known(self.journal.redo())

    def _known(self, name: str | None) -> LabeledPhoto | None:
        return None if name is None else self.finished.by_name.get(name, self.finished.photos[0])

    def _target(self, labels: Labels, edit: Edit) -> int | None:
        """Return the label that a region gets; None of what it merges into.

        Raises:
            MaskCLIPError: there is no such class.
        """
        if edit.action == "ignore":
            return self.vocabulary.ignore
        if edit.action == "merge":
            return None
        label = edit.label
        if label is None or not 0 <= label < len(self.vocabulary):
            raise MaskCLIPError(
                f"`label`: expected a class from 0 to {len(self.vocabulary) - 1}, got {label}"
            )
        return label


def _edited(labels: Labels, edit: Edit, target: int | None) -> Labels | None:
    """Return labels of which a region, or all of its class, has another; None if none changes."""
    region: npt.NDArray[np.bool_] = region_at(labels, edit.row, edit.column)
    if edit.whole:
        region = labels == labels[edit.row, edit.column]
    if target is None:
        target = label_around(labels, region)
    if target is None or target == int(labels[edit.row, edit.column]):
        return None
    changed = labels.copy()
    changed[region] = target
    return changed
