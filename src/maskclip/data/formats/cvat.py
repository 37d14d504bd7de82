"""`cvat`: CVAT's "Segmentation mask 1.1", which is Pascal VOC's layout with a map of labels."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from maskclip.core.draw import palette_image
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path, write_text
from maskclip.core.palettes import BLACK, Color, distinct_colors, voc_colors
from maskclip.core.vocabulary import BACKGROUND, Vocabulary
from maskclip.data.formats.base import (
    DEFAULT_FORMAT_OPTIONS,
    Format,
    FormatOptions,
    Labeled,
    PhotoFile,
    compact_json,
    is_one_line,
    missing,
    ordered,
    renamed,
    some_foreground,
)

_MAX_CLASSES = 255  # the importer reads ids and objects as bytes, of which 0 is the background
_FOLDERS = ("SegmentationClass", "SegmentationObject")


class Cvat(Format):
    """`annotations.zip`, ready to be imported, the files in it, and `labels.json` for the task.

    `labels.json` has the labels with their colours, for the "Raw" view of CVAT's label constructor.

    The masks are palette images. A pixel's index is that of its label's line in `labelmap.txt`, and
    its colour is the one given there, so that readers of indices and of colours agree. Background
    and ignored pixels are CVAT's background: index 0, black. A class that is black or has the
    colour of another gets a new colour. Each class that appears is one object, because CLIP does
    not tell instances apart.

    CVAT finds the photo of a mask by its path without suffix.
    """

    def __init__(
        self, vocabulary: Vocabulary, out: Path, options: FormatOptions = DEFAULT_FORMAT_OPTIONS
    ) -> None:
        super().__init__(vocabulary, out, options)
        self._classes = some_foreground(vocabulary, "cvat")
        if len(self._classes) > _MAX_CLASSES:
            raise MaskCLIPError(
                f"the format cvat holds at most {_MAX_CLASSES} classes besides the background, got "
                f"{len(self._classes)}: give fewer, or choose another format"
            )
        self._names = [vocabulary.names[label] for label in self._classes]
        for name in self._names:
            if ":" in name or name.startswith("#"):
                raise MaskCLIPError(
                    f"the format cvat cannot hold a class called {name!r}: rename it without ':', "
                    "and without '#' at its beginning"
                )
        self._colors = (
            BLACK,
            *_distinct([vocabulary.colors[label] for label in self._classes]),
        )
        self._index = np.zeros(1 + np.iinfo(vocabulary.label_dtype).max, np.uint8)
        self._index[list(self._classes)] = np.arange(1, 1 + len(self._classes))

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the mask of classes and the mask of objects."""
        return tuple(self.out / folder / f"{name}.png" for folder in _FOLDERS)

    def write(self, item: Labeled) -> None:
        """Write the two masks."""
        item.check_paths()
        name = item.name
        if name != name.strip() or name.startswith("#") or not is_one_line(name):
            raise MaskCLIPError(
                f"the format cvat cannot hold a photo called {name!r}: rename it without line "
                "breaks, without spaces at its ends, and without '#' at its beginning"
            )
        indices = self._index[self.class_ids(item)]
        for path, colors in zip(self.files(name), (self._colors, voc_colors(256)), strict=True):
            with atomic_path(path) as temporary:
                palette_image(indices, colors).save(temporary)

    def finish(self, photos: Iterable[PhotoFile]) -> list[str]:
        """Write the lists of labels and photos, the archive, and the labels of the task."""
        found = ordered(photos)
        texts = {
            "labelmap.txt": _label_map((BACKGROUND, *self._names), self._colors),
            "ImageSets/Segmentation/default.txt": "".join(f"{photo.name}\n" for photo in found),
        }
        for file, text in texts.items():
            write_text(text, self.out / file)
        masks = (path for photo in found for path in self.files(photo.name))
        with (
            atomic_path(self.out / "annotations.zip") as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            for path in (*(self.out / file for file in texts), *masks):
                _add(archive, path.relative_to(self.out).as_posix(), path)
        labels = self.out / "labels.json"
        write_text(_constructor(self._names, self._colors[1:]), labels)
        return [
            f"cvat: paste {labels} into the label constructor (Raw) of a new task, add the photos, "
            f'then upload {self.out / "annotations.zip"} as Segmentation mask 1.1, with "Convert '
            'masks to polygons" off: polygons lose holes and thin parts',
            *renamed(
                found, "CVAT finds photos by their names without suffix", "rename one of the two"
            ),
        ]


def _label_map(names: Sequence[str], colors: Sequence[Color]) -> str:
    lines = ["# label:color_rgb:parts:actions"]
    for name, (red, green, blue) in zip(names, colors, strict=True):
        lines.append(f"{name}:{red},{green},{blue}::")
    return "\n".join(lines) + "\n"


def _constructor(names: Sequence[str], colors: Sequence[Color]) -> str:
    """Return the labels as CVAT's label constructor takes them, one a line."""
    items = (
        compact_json({"name": name, "color": f"#{bytes(color).hex()}", "attributes": []})
        for name, color in zip(names, colors, strict=True)
    )
    return "[\n" + ",\n".join(items) + "\n]\n"


def _distinct(colors: Sequence[Color]) -> list[Color]:
    """Replace black, and each repetition of a colour, by a colour that no class has."""
    taken = {BLACK, *colors}
    fresh = (c for c in distinct_colors(2 * len(colors) + 1) if c not in taken)
    used, result = {BLACK}, []
    for color in colors:
        result.append(next(fresh) if color in used else color)
        used.add(result[-1])
    return result


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Add a file uncompressed (PNGs are compressed already), without its time and owner."""
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    try:
        archive.writestr(entry, path.read_bytes())
    except FileNotFoundError:
        raise missing(path) from None
