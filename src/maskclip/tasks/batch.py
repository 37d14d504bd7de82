"""The main job on many files: results written as they come, failures told apart, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maskclip.core.config import DEFAULT_OPTIONS, Options
from maskclip.core.errors import MaskCLIPError, read_choices
from maskclip.core.files import atomic_path, write_json
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.images import MAX_PIXELS, load_image
from maskclip.data.sources import output_stems
from maskclip.tasks.photo_segmenter import PhotoSegmenter

KINDS = {
    "overlay": "_overlay.png",
    "labels": "_labels.png",
    "scores": "_scores.png",
    "json": ".json",
}
"""What can be saved of an image, and how its file's name ends."""


@dataclass(frozen=True)
class FileResult:
    """What became of one file.

    Attributes:
        source: the image.
        written: the files made of it.
        summary: `Segmentation.to_dict()`; empty when it failed.
        error: why it failed, in one line; None when it did not.
    """

    source: Path
    written: tuple[Path, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_kinds(text: str) -> tuple[str, ...]:
    """Read a list such as `overlay,labels`.

    Raises:
        MaskCLIPError: a kind is unknown, or there is none.
    """
    return read_choices(text, KINDS, to="save")


def segment_files(
    segmenter: PhotoSegmenter,
    paths: Sequence[Path],
    vocabulary: Vocabulary,
    *,
    out: Path,
    kinds: Sequence[str] = ("overlay", "labels"),
    options: Options = DEFAULT_OPTIONS,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[FileResult]:
    """Segment files one by one and write what is wanted of each into a folder.

    A file that cannot be read or written gives a result with its error; the others go on.

    Args:
        segmenter: the model.
        paths: images.
        vocabulary: the classes.
        out: the folder of the results; names are those of the images, told apart where needed.
        kinds: of `KINDS`.
        options: how images are cut and maps refined.
        max_pixels: larger images are refused.
    """
    for path, stem in zip(paths, output_stems(paths), strict=True):
        try:
            photo = load_image(path, max_pixels=max_pixels)
            found = segmenter.segment(photo, vocabulary, **asdict(options))
            written = tuple(_write(found, kind, out / f"{stem}{KINDS[kind]}") for kind in kinds)
        except MaskCLIPError as error:
            yield FileResult(path, error=str(error))
        except OSError as error:
            yield FileResult(path, error=f"{path}: {error}")
        else:
            yield FileResult(path, written, found.to_dict())


def _write(found: Segmentation, kind: str, path: Path) -> Path:
    match kind:
        case "labels":
            found.save_png(path)
        case "scores":
            found.save_scores(path)
        case "json":
            write_json(found.to_dict(), path)
        case _:
            with atomic_path(path) as temporary:
                found.overlay().save(temporary)
    return path
