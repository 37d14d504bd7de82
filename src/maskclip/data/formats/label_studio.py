"""`label-studio`: tasks with brush regions as predictions, to be corrected in Label Studio."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from maskclip.core.files import atomic_path, write_text
from maskclip.core.text import xml_quoted
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import (
    DEFAULT_FORMAT_OPTIONS,
    Format,
    FormatOptions,
    Labeled,
    PhotoFile,
    compact_json,
    missing,
    ordered,
    present,
    read_lines,
    some_foreground,
    write_items,
)

MAX_BYTES = 100 << 20  # of a file of tasks; Label Studio's own limit is 250 MiB by default

FROM_NAME, TO_NAME = "labels", "image"
"""Of the tags in `label_config.xml` that regions belong to."""

_RUN_BITS = (3, 4, 8, 16)  # a run's length is written in the smallest width that holds it


class LabelStudio(Format):
    """`tasks-00001.json` and following, to be imported, and the project's `label_config.xml`.

    Each class that appears in a photo is one brush region; background and ignored pixels have
    none. The score of a prediction is the mean of its regions' pixels, where scores are known.

    Photos are referred to as local files that Label Studio serves, of the folder that holds them
    all: `?d=photos/x.jpg`, where the document root is the folder above `photos`, because a local
    storage must lie below it. With a `url_prefix` they are URLs. `.parts/` keeps the prediction of
    each photo, so that the files of tasks can be written again.
    """

    wants_scores = True

    def __init__(
        self, vocabulary: Vocabulary, out: Path, options: FormatOptions = DEFAULT_FORMAT_OPTIONS
    ) -> None:
        super().__init__(vocabulary, out, options)
        self._classes = some_foreground(vocabulary, "label-studio")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the photo's prediction."""
        return (self.out / ".parts" / f"{name}.prediction.json",)

    def write(self, item: Labeled) -> None:
        """Write the prediction, on one line."""
        item.check_paths()
        labels = self.class_ids(item)
        classes = present(labels, self._classes)
        prediction: dict[str, Any] = {"model_version": "maskclip"}
        if item.scores is not None and classes:
            covered = np.isin(labels, classes)
            prediction["score"] = round(float(item.scores[covered].mean(dtype=np.float64)), 4)
        prediction["result"] = [
            brush_region(labels == label, self.vocabulary.names[label], id=f"class-{label}")
            for label in classes
        ]
        write_text(f"{compact_json(prediction)}\n", *self.files(item.name))

    def finish(self, photos: Iterable[PhotoFile]) -> list[str]:
        """Write the tasks, into several files if there are many, and the configuration."""
        found = ordered(photos)
        place = _Place.of(found)
        written = set()
        for number, group in enumerate(self._groups(found), 1):
            target = self.out / f"tasks-{number:05d}.json"
            written.add(target)
            with (
                atomic_path(target) as temporary,
                temporary.open("w", encoding="utf-8", newline="\n") as file,
            ):
                write_items((self._task(photo, place) for photo in group), file)
                file.write("\n")
        for old in set(self.out.glob("tasks-*.json")) - written:  # of a set that was larger
            old.unlink()
        write_text(self._config(), self.out / "label_config.xml")
        if not found:
            return []
        how = place.how_to_serve() if self.options.url_prefix is None else "label-studio:"
        return [
            f"{how} paste {self.out / 'label_config.xml'} into the labelling setup of the project "
            "(Code), then import tasks-*.json"
        ]

    def _task(self, photo: PhotoFile, place: _Place) -> str:
        (path,) = self.files(photo.name)
        (prediction,) = read_lines(path)
        url = place.url(photo, self.options.url_prefix)
        return f'{{"data":{compact_json({"image": url})},"predictions":[{prediction}]}}'

    def _groups(self, photos: Iterable[PhotoFile]) -> Iterator[list[PhotoFile]]:
        """Yield runs of photos whose files are no larger than `MAX_BYTES`; at least one run."""
        group: list[PhotoFile] = []
        total = 0
        for photo in photos:
            (path,) = self.files(photo.name)
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise missing(path) from None
            if group and total + size > MAX_BYTES:
                yield group
                group, total = [], 0
            group.append(photo)
            total += size
        yield group

    def _config(self) -> str:
        labels = "".join(
            f"    <Label value={xml_quoted(self.vocabulary.names[i])} "
            f'background="#{bytes(self.vocabulary.colors[i]).hex()}"/>\n'
            for i in self._classes
        )
        return (
            f'<View>\n  <Image name="{TO_NAME}" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}">\n{labels}'
            "  </BrushLabels>\n</View>\n"
        )


@dataclass(frozen=True)
class _Place:
    """Where the photos of a set lie on the disk.

    Attributes:
        folder: that holds them all, through which users named them; None on several drives.
        tops: the folder, or those below it if it is the root of the disk.
    """

    folder: Path | None
    tops: tuple[Path, ...]

    @classmethod
    def of(cls, photos: Iterable[PhotoFile]) -> _Place:
        folders = {_named_folder(photo) for photo in photos}
        try:
            folder = Path(os.path.commonpath(folders)) if folders else Path("/")
        except ValueError:
            return cls(None, ())
        if folder.parent != folder:
            return cls(folder, (folder,))
        below = (each.relative_to(folder).parts[:1] for each in folders)
        return cls(folder, tuple(sorted({folder.joinpath(*part) for part in below})))

    @property
    def root(self) -> Path | None:
        """The document root: local storages must be folders below it."""
        return None if self.folder is None else self.folder.parent

    def url(self, photo: PhotoFile, prefix: str | None) -> str:
        """Return the address at which Label Studio finds a photo."""
        base = self.root if prefix is None else self.folder
        path = Path(photo.path).relative_to(base or Path(photo.path).anchor).as_posix()
        if prefix is None:
            return f"/data/local-files/?d={quote(os.fsencode(path))}"
        as_it_is = not prefix.startswith(("http", "/"))  # keys of objects in a cloud storage
        return f"{prefix.rstrip('/')}/{path if as_it_is else quote(os.fsencode(path))}"

    def how_to_serve(self) -> str:
        """Return how Label Studio is made to serve the photos."""
        if self.root is None:
            return (
                "label-studio: the photos lie on several drives, and Label Studio serves one: "
                "label those of each drive into a folder of their own, or give `url_prefix`;"
            )
        return (
            "label-studio: start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(str(self.root))}, add a local "
            f"storage for {' and for '.join(map(str, self.tops))} to the project,"
        )


def _named_folder(photo: PhotoFile) -> Path:
    """Return the folder that was named, in which a photo was found, or else that of the photo."""
    path = Path(photo.path)
    depth = photo.image.count("/")
    folder = path.parents[depth] if depth < len(path.parents) else path.parent
    return path.parent if folder == folder.parent else folder


def brush_region(
    mask: npt.NDArray[np.bool_],
    name: str,
    *,
    id: str,
    from_name: str = FROM_NAME,
    to_name: str = TO_NAME,
    score: float | None = None,
) -> dict[str, Any]:
    """Return a mask (H, W) as a region of a prediction.

    Args:
        mask: which pixels it has.
        name: of its label in the labelling configuration.
        id: which tells the regions of a prediction apart.
        from_name, to_name: the names of the BrushLabels tag and of its image.
        score: how sure it is, 0 to 1; None leaves it out.
    """
    height, width = mask.shape
    region: dict[str, Any] = {
        "id": id,
        "type": "brushlabels",
        "from_name": from_name,
        "to_name": to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush_rle(mask), "brushlabels": [name]},
    }
    return region if score is None else {**region, "score": score}


def brush_rle(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return a mask (H, W) as Label Studio stores the four channels of a brush layer, in bytes.

    The header has the number of values (4 H W, by rows) in 32 bits, the width of a value less one
    in 5 bits, and in 4 bits each the four widths of run lengths, less one. A run is a one bit, the
    index of its width in 2 bits, its length less one in that width, and its value, 0 or 255, in 8.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = 4 * np.diff(starts, append=flat.size)
    lengths, values = _split(lengths, 255 * flat[starts].astype(np.int64), 1 << _RUN_BITS[-1])
    which = np.searchsorted([1 << bits for bits in _RUN_BITS], lengths)
    bits = np.array(_RUN_BITS)[which]
    runs = ((4 | which) << bits | (lengths - 1)) << 8 | values
    header = [4 * flat.size, 8 - 1, *(size - 1 for size in _RUN_BITS)]
    words = np.concatenate([header, runs]).astype(">u4")
    widths = np.concatenate([[32, 5, 4, 4, 4, 4], 1 + 2 + bits + 8])
    table = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1)  # a word a row, 32 bits
    packed: list[int] = np.packbits(table[np.arange(32) >= 32 - widths[:, None]]).tolist()
    return packed


def _split(
    lengths: npt.NDArray[np.int64], values: npt.NDArray[np.int64], longest: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut runs into pieces that are no longer than `longest`."""
    pieces = -(-lengths // longest)
    cut = np.full(pieces.sum(), longest)
    cut[np.cumsum(pieces) - 1] = lengths - longest * (pieces - 1)
    return cut, np.repeat(values, pieces)
