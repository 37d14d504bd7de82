"""`label-studio`: tasks with brush regions as predictions, to be corrected in Label Studio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from maskclip.core.files import atomic_path, write_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import (
    Format,
    Labeled,
    compact_json,
    missing,
    ordered,
    present,
    read_lines,
    some_foreground,
    write_items,
)

MAX_BYTES = 100 << 20  # of a file of tasks; Label Studio's own limit is 250 MiB by default

_RUN_BITS = (3, 4, 8, 16)  # a run's length is written in the smallest width that holds it


class LabelStudio(Format):
    """`tasks-00001.json` and following, to be imported, and the project's `label_config.xml`.

    Each class that appears in a photo is one brush region; background and ignored pixels have
    none. The score of a prediction is the mean of its regions' pixels, where scores are known.

    Photos are referred to as local files that Label Studio serves: its document root has to be the
    folder that relative paths are relative to, or `/` for absolute paths. `.parts/` keeps the task
    of each photo, so that the files of tasks can be written again.
    """

    def __init__(self, vocabulary: Vocabulary, out: Path) -> None:
        super().__init__(vocabulary, out)
        self._classes = some_foreground(vocabulary, "label-studio")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the photo's task."""
        return (self.out / ".parts" / f"{name}.json",)

    def write(self, item: Labeled) -> None:
        """Write the task, on one line."""
        item.check_paths()
        labels = self.class_ids(item)
        classes = present(labels, self._classes)
        prediction: dict[str, Any] = {"model_version": "maskclip"}
        if item.scores is not None and classes:
            covered = np.isin(labels, classes)
            prediction["score"] = round(float(item.scores[covered].mean(dtype=np.float64)), 4)
        prediction["result"] = [self._region(labels == label, label) for label in classes]
        url = f"/data/local-files/?d={quote(item.image.lstrip('/'))}"
        task = {"data": {"image": url}, "predictions": [prediction]}
        write_text(f"{compact_json(task)}\n", *self.files(item.name))

    def _region(self, mask: npt.NDArray[np.bool_], label: int) -> dict[str, Any]:
        height, width = mask.shape
        return {
            "id": f"class-{label}",
            "type": "brushlabels",
            "from_name": "labels",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": brush_rle(mask),
                "brushlabels": [self.vocabulary.names[label]],
            },
        }

    def finish(self, names: Iterable[str]) -> None:
        """Write the tasks, into several files if there are many, and the configuration."""
        tasks = [path for name in ordered(names) for path in self.files(name)]
        written = set()
        for number, group in enumerate(_groups(tasks), 1):
            target = self.out / f"tasks-{number:05d}.json"
            written.add(target)
            with (
                atomic_path(target) as temporary,
                temporary.open("w", encoding="utf-8", newline="\n") as file,
            ):
                write_items((line for path in group for line in read_lines(path)), file)
                file.write("\n")
        for old in set(self.out.glob("tasks-*.json")) - written:  # of a set that was larger
            old.unlink()
        write_text(self._config(), self.out / "label_config.xml")

    def _config(self) -> str:
        labels = "".join(
            f"    <Label value={quoteattr(self.vocabulary.names[i])} "
            f'background="#{bytes(self.vocabulary.colors[i]).hex()}"/>\n'
            for i in self._classes
        )
        return (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="labels" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
        )


def _groups(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield runs of files that are together no larger than `MAX_BYTES`; at least one run."""
    group: list[Path] = []
    total = 0
    for path in paths:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise missing(path) from None
        if group and total + size > MAX_BYTES:
            yield group
            group, total = [], 0
        group.append(path)
        total += size
    yield group


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
