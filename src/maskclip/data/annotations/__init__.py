"""Labels that people made or corrected, in the files of the tools they used -> class ids.

Masks in a folder (ours among them), labels of ours that were corrected in review, CVAT's masks and
XML, Label Studio's JSON, COCO's JSON.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import read_json
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations.base import MAX_BYTES, AnnotationError, Annotations
from maskclip.data.annotations.coco import CocoInstances, CocoPanoptic, is_coco, is_panoptic
from maskclip.data.annotations.cvat import LABEL_MAP, CvatImages, CvatMasks
from maskclip.data.annotations.label_studio import LabelStudioTasks, is_tasks
from maskclip.data.annotations.mask_folder import CorrectedLabels, MaskFolder
from maskclip.data.corrections import Corrections
from maskclip.data.masks import MASK_SUFFIXES

__all__ = ["AnnotationError", "Annotations", "MaskFolder", "open_annotations"]

_OURS = ("png", "cvat", "label-studio", "coco")  # folders that `label` makes, the fullest first
_SUFFIXES = (*MASK_SUFFIXES, ".txt", ".xml", ".json")  # photos in the archive are left in it
_MOST_FILES = 1_000_000
_MOST_BYTES = 4 << 30  # of all files
_MOST_RATIO = 1040  # of unpacked to packed bytes: deflate can do no better
_CHUNK = 1 << 20
_FLAG_ENCRYPTED = 1


def open_annotations(
    place: Path, photos: Sequence[str], vocabulary: Vocabulary
) -> Annotations[Any]:
    """Find the labels of photos in a folder or file, whichever of the tools wrote it.

    Args:
        place: a folder of masks; the folder of a labelling that was corrected; or the export of a
            tool: its ZIP archive, or what was in it, or one JSON or XML file.
        photos: relative paths of photos, POSIX.
        vocabulary: the classes; those of the labels must have the same names.

    Raises:
        MaskCLIPError: it is not there, damaged, or has other classes; the message says what.
    """
    if place.is_file():
        return _of_file(place, photos, vocabulary)
    if not place.is_dir():
        raise AnnotationError(f"no folder of labels: {place}")
    if Corrections.are_in(place):
        return CorrectedLabels(place, photos, vocabulary)
    if (place / LABEL_MAP).is_file():
        return CvatMasks(place, photos, vocabulary)
    if (place / "annotations.xml").is_file():
        return CvatImages(place / "annotations.xml", photos, vocabulary)
    listed = sorted(place.glob("*.json")) or sorted((place / "annotations").glob("*.json"))
    files = [file for file in listed if file.name[0] != "."]
    if files:
        found = _of_json(place, files, photos, vocabulary)
        if found is not None:
            return found
    ours = [name for name in _OURS if (place / name).is_dir()]
    if ours and not any(file.suffix.lower() == ".png" for file in place.iterdir()):
        raise AnnotationError(f"{place}: holds the formats of `label`: name {place / ours[0]}")
    return MaskFolder(place, photos, vocabulary)


def _of_file(place: Path, photos: Sequence[str], vocabulary: Vocabulary) -> Annotations[Any]:
    match place.suffix.lower():
        case ".xml":
            return CvatImages(place, photos, vocabulary)
        case ".json":
            found = _of_json(place, [place], photos, vocabulary)
            if found is not None:
                return found
        case ".zip":
            return _of_archive(place, photos, vocabulary)
    raise AnnotationError(
        f"{place}: expected a folder of masks, an export of CVAT (folder, ZIP or XML), or the JSON "
        "of Label Studio or COCO"
    )


def _of_archive(place: Path, photos: Sequence[str], vocabulary: Vocabulary) -> Annotations[Any]:
    folder = unpacked(place)
    try:
        found = open_annotations(folder, photos, vocabulary)
    except MaskCLIPError as error:
        raise AnnotationError(str(error).replace(str(folder), str(place))) from None
    found.place = place  # for messages
    found.notes = [note.replace(str(folder), str(place)) for note in found.notes]
    return found


def _of_json(
    place: Path, files: Sequence[Path], photos: Sequence[str], vocabulary: Vocabulary
) -> Annotations[Any] | None:
    """Return the labels in JSON files; None if none of them has labels."""
    coco, tasks = {}, []
    for file in files:
        content = read_json(file, "labels of COCO or Label Studio", limit=MAX_BYTES)
        if is_coco(content):
            coco[file] = content
        elif is_tasks(content):
            tasks.append(file)
    if coco and tasks:
        raise AnnotationError(
            f"{place}: {next(iter(coco)).name} is COCO's, {tasks[0].name} Label Studio's: name one"
        )
    if tasks:
        return LabelStudioTasks(place, tasks, photos, vocabulary)
    panoptic = {file: content for file, content in coco.items() if is_panoptic(content)}
    if panoptic:  # which can say more than instances of the same photos
        return CocoPanoptic(place, panoptic, photos, vocabulary)
    return CocoInstances(place, coco, photos, vocabulary) if coco else None


def unpacked(path: Path) -> Path:
    """Unpack the labels of an archive into a temporary folder, which this process removes.

    Names and sizes are checked before anything is written.

    Raises:
        AnnotationError: it is damaged or encrypted, too large, or a name leads out of the folder.
    """
    parent = Path(tempfile.mkdtemp(prefix="maskclip-labels-"))
    atexit.register(_remove, parent, os.getpid())
    folder = parent / "labels"
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            for entry, name in _checked(path, archive):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise AnnotationError(f"{path}: not a ZIP archive that can be read ({error})") from None
    except (OSError, ValueError) as error:  # AnnotationError is a ValueError, too
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(f"{path}: cannot be unpacked ({error})") from None
    inside = list(folder.iterdir())
    while len(inside) == 1 and inside[0].is_dir():  # the archive of a folder
        folder = inside[0]
        inside = list(folder.iterdir())
    return folder


def _checked(path: Path, archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the files of labels in an archive, with their names below the folder."""
    entries = archive.infolist()
    if len(entries) > _MOST_FILES:
        raise AnnotationError(f"{path}: {len(entries):,} files, over the limit of {_MOST_FILES:,}")
    found: dict[str, tuple[zipfile.ZipInfo, PurePosixPath]] = {}
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir() or name.suffix.lower() not in _SUFFIXES:
            continue
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise AnnotationError(f"{path}: the name {entry.filename!r} leads out of the archive")
        if entry.flag_bits & _FLAG_ENCRYPTED:
            raise AnnotationError(f"{path}: encrypted: unpack it, and name its folder")
        size = entry.file_size
        if size > min(MAX_BYTES, _MOST_RATIO * max(entry.compress_size, 1)):
            raise AnnotationError(f"{path}: {entry.filename} has {size:,} bytes: too large")
        if name.as_posix().casefold() in found:
            raise AnnotationError(f"{path}: {entry.filename} is there twice")
        found[name.as_posix().casefold()] = (entry, name)
    total = sum(entry.file_size for entry, _ in found.values())
    if total > _MOST_BYTES:
        raise AnnotationError(f"{path}: {total:,} bytes of labels, over {_MOST_BYTES:,}")
    return list(found.values())


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not where a fork of it ends
        shutil.rmtree(folder, ignore_errors=True)
