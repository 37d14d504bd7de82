"""`yolo`: a polygon for each region, as YOLO's segmentation networks are trained on.

A polygon goes through the centres of a region's outermost pixels, and is filled with its outline
(as `cv2.fillPoly` does), so that it gives exactly the region's pixels.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path, write_text
from maskclip.core.text import counted, yaml_quoted
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import (
    DEFAULT_FORMAT_OPTIONS,
    Format,
    FormatOptions,
    Labeled,
    PhotoFile,
    is_one_line,
    ordered,
    present,
    renamed,
    some_foreground,
)
from maskclip.data.polygons import Points, polygons

_WITHIN = 0.25  # of a pixel; readers that round and readers that cut off then find the same pixel


class Yolo(Format):
    """A `.txt` a photo, whose lines are a class id and the points of a polygon, and `data.yaml`.

    A point is x / W and y / H. A polygon of fewer than three corners repeats them. Background and
    ignored pixels have no polygon; a photo without polygons has an empty file.

    `data.yaml` names the lists `train.txt` and `val.txt` of photos, which are expected as
    `images/NAME` with their own suffixes: `FormatOptions.link` puts links there. Ultralytics looks
    for the labels of a photo where the last `/images/` of its path is `/labels/`, so that those of
    `images/train/images/a.jpg` lie in `images/train/labels/`.
    """

    may_be_empty = True  # of photos without regions

    def __init__(
        self, vocabulary: Vocabulary, out: Path, options: FormatOptions = DEFAULT_FORMAT_OPTIONS
    ) -> None:
        super().__init__(vocabulary, out, options)
        self._classes = some_foreground(vocabulary, "yolo")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the file of polygons."""
        folder, _, rest = f"/images/{name}".rpartition("/images/")
        return (self.out / f"{folder}/labels/{rest}.txt".lstrip("/"),)

    def write(self, item: Labeled) -> None:
        """Write the polygons."""
        item.check_paths()
        if not is_one_line(item.name) or "./" in item.name:
            raise MaskCLIPError(
                f"the format yolo cannot hold a photo called {item.name!r}: rename it without line "
                "breaks, and its folders without '.' at their ends"
            )
        (path,) = self.files(item.name)
        self._check_inside(path.parent)
        labels = self.class_ids(item)
        height, width = labels.shape
        lines = [
            f"{label} {_normalized(polygon, width, height)}\n"
            for label in present(labels, self._classes)
            for polygon in polygons(labels == label)
        ]
        write_text("".join(lines), path)

    def finish(self, photos: Iterable[PhotoFile]) -> list[str]:
        """Write the lists of photos and the names of the classes; link the photos if wanted."""
        found = ordered(photos)
        kept = _validation(found, self.options)
        train = [photo for photo in found if photo not in kept] or found
        for file, part in (("train.txt", train), ("val.txt", sorted(kept) or found)):
            write_text("".join(f"./{_place(photo)}\n" for photo in part), self.out / file)
        quoted = map(yaml_quoted, self.vocabulary.names)
        lines = ["train: train.txt", "val: val.txt", "names:"]
        lines += [f"  {label}: {name}" for label, name in enumerate(quoted)]
        write_text("\n".join(lines) + "\n", self.out / "data.yaml")
        return self._link(found) if self.options.link else self._how_to_link(found)

    def _how_to_link(self, photos: Sequence[PhotoFile]) -> list[str]:
        if not photos or (self.out / _place(photos[0])).exists():
            how = self._train(photos)
        else:
            how = [
                f"yolo: put the photos, or links to them, into {self.out / 'images'} under the "
                f"same names (`link` does it), then train with {self.out / 'data.yaml'}"
            ]
        why = "Ultralytics finds labels by the names of photos without suffix"
        return how + renamed(photos, why, "rename one of the two, or give `link`")

    def _link(self, photos: Sequence[PhotoFile]) -> list[str]:
        """Put links to the photos where they are looked for; copies where links are impossible."""
        done = Counter(self._put(Path(p.path), self.out / _place(p)) for p in photos)
        notes = []
        if done["copied"]:
            notes.append(
                f"yolo: links cannot be made here: {self.out / 'images'} has copies of the photos"
            )
        if done["gone"]:
            notes.append(
                "yolo: "
                + counted(
                    done["gone"],
                    "photo is not where it was labelled any more: it has no link, and Ultralytics "
                    "passes over it",
                    "photos are not where they were labelled any more: they have no link, and "
                    "Ultralytics passes over them",
                )
            )
        if done["other"]:
            notes.append(
                f"yolo: {self.out / 'images'} has "
                + counted(
                    done["other"],
                    "file that is not the photo that was labelled: move it",
                    "files that are not the photos that were labelled: move them",
                )
                + " away and run the same command again"
            )
        return notes + self._train(photos)

    def _train(self, photos: Sequence[PhotoFile]) -> list[str]:
        return [f"yolo: train with {self.out / 'data.yaml'}"] if photos else []

    def _put(self, photo: Path, place: Path) -> str:
        """Link a photo; return "linked", "copied", "gone", or "other": another file is there."""
        if place.exists() and photo.exists() and place.samefile(photo):
            return "linked"
        self._check_inside(place.parent)
        if place.is_symlink():  # to where the photo was
            place.unlink()
        elif place.exists():
            return "copied" if _same(photo, place) else "other"
        if not photo.exists():
            return "gone"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.symlink_to(photo)
        except (OSError, NotImplementedError):
            with atomic_path(place) as temporary:
                shutil.copy2(photo, temporary)
            return "copied"
        return "linked"

    def _check_inside(self, folder: Path) -> None:
        """Refuse to write through a link that leads out of the folder, perhaps to the photos."""
        if not folder.resolve().is_relative_to(self.out.resolve()):
            raise MaskCLIPError(
                f"{self.out / 'images'} leads out of {self.out}, and files are to be written below "
                "it: remove the link, and give `link`, which links each photo"
            )


def _place(photo: PhotoFile) -> str:
    """Return where a photo is expected, in the folder of the format."""
    return f"images/{photo.name}{photo.suffix}"


def _validation(photos: Sequence[PhotoFile], options: FormatOptions) -> set[PhotoFile]:
    """Return the photos kept for validation.

    Each is chosen by its name, so that more photos move none of the others: but at least one, and
    not all, of several.
    """

    def draw(photo: PhotoFile) -> float:
        digest = hashlib.sha256(f"{options.seed} {photo.name}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    if not options.validate or len(photos) < 2:
        return set()
    by_draw = sorted(photos, key=draw)
    chosen = sum(draw(photo) < options.validate for photo in by_draw)
    return set(by_draw[: min(max(1, chosen), len(by_draw) - 1)])


def _same(photo: Path, copy: Path) -> bool:
    """Return whether a file is a copy of the photo as it is now."""
    if not photo.exists():
        return True
    one, other = photo.stat(), copy.stat()
    return one.st_size == other.st_size and abs(one.st_mtime - other.st_mtime) < 2  # FAT's clock


def _normalized(points: Points, width: int, height: int) -> str:
    if len(points) < 3:
        points = np.resize(points, (3, 2))
    within = (points + _WITHIN) / (width, height)
    return " ".join(f"{value:.6f}" for value in within.ravel().tolist())
