"""`label-studio`: tasks whose predictions are brush strokes, to be corrected in Label Studio."""

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
    gone,
    ordered,
    present,
    read_lines,
    some_foreground,
    write_items,
)

MAX_BYTES = 100 << 20  # of a file of tasks; Label Studio takes 250 MiB unless told otherwise

_RUN_BITS = (3, 4, 8, 16)  # a run is written with the smallest of these that holds its length


class LabelStudio(Format):
    """`tasks-00001.json` and so on, to be imported, and `label_config.xml` for the project.

    Each class that appears in a photo is one brush region; background and ignored pixels have
    none. The score of a prediction is the mean of its regions' pixels, where scores are known.

    Photos are named as files that Label Studio serves from its own disk: for relative paths its
    document root is the folder that they are relative to, for absolute ones it is `/`. `.parts/`
    keeps the task of each photo, so that a set can be finished again.
    """

    def __init__(self, vocabulary: Vocabulary, out: Path) -> None:
        super().__init__(vocabulary, out)
        self._classes = some_foreground(vocabulary, "label-studio")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the photo's task."""
        return (self.out / ".parts" / f"{name}.json",)

    def write(self, item: Labeled) -> None:
        """Write the task, on one line."""
        labels = self.class_ids(item)
        classes = present(labels, self._classes)
        prediction: dict[str, Any] = {"model_version": "maskclip"}
        if item.scores is not None and classes:
            said = np.isin(labels, classes)
            prediction["score"] = round(float(item.scores[said].mean(dtype=np.float64)), 4)
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
        """Write the tasks, as many to a file as it may hold, and the labelling configuration."""
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
        for old in set(self.out.glob("tasks-*.json")) - written:  # when the set was larger
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
            raise gone(path) from None
        if group and total + size > MAX_BYTES:
            yield group
            group, total = [], 0
        group.append(path)
        total += size
    yield group


def brush_rle(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Pack a mask (H, W) as bytes, as Label Studio does with the four channels of a brush layer.

    A header has the number of values (4 H W, by rows) in 32 bits, the bits of a value less one in
    5, and in 4 bits each the four widths of run lengths, less one. Each run is then a one, the
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
