"""Labels that people made or corrected, in the files of the tools they used -> class ids.

Masks in a folder (ours among them), labels of ours that were corrected in review, CVAT's masks and
XML, Label Studio's JSON, COCO's JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import read_json
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations.archive import unpacked
from maskclip.data.annotations.base import MAX_BYTES, AnnotationError, Annotations
from maskclip.data.annotations.coco import CocoInstances, CocoPanoptic, is_coco, is_panoptic
from maskclip.data.annotations.corrected import CorrectedLabels
from maskclip.data.annotations.cvat import LABEL_MAP, CvatImages, CvatMasks
from maskclip.data.annotations.label_studio import LabelStudioTasks, is_tasks
from maskclip.data.annotations.mask_folder import MaskFolder
from maskclip.data.corrections import Corrections

__all__ = ["AnnotationError", "Annotations", "MaskFolder", "open_annotations"]

_OURS = ("png", "cvat", "label-studio", "coco")  # folders that `label` makes, the fullest first


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
