"""Label Studio's exports: JSON and JSON-MIN, with brush regions and polygons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from maskclip.core.text import brief, read_json
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations.base import (
    MAX_BYTES,
    AnnotationError,
    PhotoNames,
    class_ids,
    mapping,
    sequence,
    text,
    whole,
)
from maskclip.data.annotations.shapes import (
    DrawnAnnotations,
    DrawnPhoto,
    brush,
    percent_points,
    polygons,
)
from maskclip.data.kinds import image_suffixes
from maskclip.data.masks import Ids

_LABELS = ("brushlabels", "polygonlabels", "labels")  # the names of a region's classes
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(.+)$")  # Label Studio puts this before the names of uploads


def is_tasks(value: object) -> bool:
    """Return whether the content of a JSON file looks like Label Studio's, in full or minimal."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return any(key in value[0] for key in ("data", "annotation_id", "annotator"))


class _Region(NamedTuple):
    """A region of one class: bytes of a brush layer, or points in percent."""

    label: int
    shape: bytes | list[Any]


_Task = DrawnPhoto[_Region]


class LabelStudioTasks(DrawnAnnotations[_Region]):
    """Brush regions and polygons of tasks; the rest is left out.

    Of several annotations of a task the last counts that was not cancelled. Predictions count in
    tasks that know no annotations at all, as `label` writes them. A task without a region is not
    labelled; nor is what no region covers.
    """

    title = "Label Studio's annotations"

    def __init__(
        self, place: Path, files: Sequence[Path], photos: Sequence[str], vocabulary: Vocabulary
    ) -> None:
        super().__init__(place, vocabulary)
        self._files = files
        self._left_out: Counter[str] = Counter()
        names = PhotoNames(photos)
        found: dict[str, _Task] = {}
        missing, several = [], []
        for file in files:
            for task, more in self._tasks(file):
                name = _photo_of(task.name, names)
                if name is None:
                    missing.append(task.name)
                elif name in found:
                    raise AnnotationError(f"{file}: {task.name} is labelled in two tasks")
                else:
                    found[name] = task
                    several += [name] * more
        self.photos = {photo: found[photo] for photo in photos if photo in found}
        self.note_unknown(missing)
        self.note_photos(
            "photo has several annotations, of which the last counts",
            "photos have several annotations, of which the last counts",
            several,
        )
        self.note_left_out(self._left_out)

    def _tasks(self, file: Path) -> Iterator[tuple[_Task, bool]]:
        """Yield the labelled tasks of a file, and whether they have several annotations."""
        tasks = sequence(
            read_json(file, "Label Studio's export", limit=MAX_BYTES), "a list of tasks", file
        )
        for number, value in enumerate(tasks, 1):
            task = mapping(value, f"a task (task {number})", file)
            results = list(_results(task, file))
            if results:
                read = self._read_task(_image_of(task, file), results[-1], file)
                if read is not None:
                    yield read, len(results) > 1

    def _read_task(self, name: str, result: Sequence[Any], file: Path) -> _Task | None:
        regions, sizes = [], set()
        for value in result:
            region = mapping(value, f"a region of {name}", file)
            fields = region.get("value")
            if not isinstance(fields, dict):
                continue  # relations between regions have none
            shape = _shape(fields, name, file)
            if shape is None:
                kind = region.get("type")
                if isinstance(kind, str) and ("x" in fields or kind.startswith("bitmask")):
                    self._left_out[kind] += 1
                continue
            label = self._label(fields, name, file)
            if label is None:
                continue
            if region.get("image_rotation") not in (None, 0, 0.0):
                raise AnnotationError(
                    f"{file}: {name} was turned in Label Studio: turn the photo, and label it anew"
                )
            sizes.add(
                (
                    whole(region.get("original_width"), f"the width of {name}", file),
                    whole(region.get("original_height"), f"the height of {name}", file),
                )
            )
            regions.append(_Region(label, shape))
        if not regions:
            return None
        if len(sizes) > 1:
            raise AnnotationError(f"{file}: the regions of {name} are for photos of two sizes")
        return _Task(name, sizes.pop(), tuple(regions))

    def _label(self, fields: Mapping[str, Any], name: str, file: Path) -> int | None:
        """Return the class of a region; None, counted, if it has none."""
        labels = next((fields[key] for key in _LABELS if fields.get(key)), None)
        if labels is None:
            self._left_out["regions without a label"] += 1
            return None
        listed = sequence(labels, f"the labels of a region of {name}", file)
        if len(listed) > 1:
            raise AnnotationError(f"{file}: a region of {name} has {len(listed)} labels")
        known = text(listed[0], f"the label of a region of {name}", file)
        return class_ids([known], self.vocabulary, file)[known]

    def paint(self, ids: Ids, region: _Region, size: tuple[int, int]) -> None:
        """Give the pixels of a brush layer or polygon its class."""
        if isinstance(region.shape, bytes):
            mask = brush(region.shape, size)
        else:
            mask = polygons([percent_points(region.shape, size)], size)
        ids[mask] = region.label

    def files(self) -> Iterable[Path]:
        """Return the files of tasks."""
        return self._files


def _results(task: Mapping[str, Any], file: Path) -> Iterator[Sequence[Any]]:
    """Yield the regions of each annotation of a task, the oldest first."""
    if "data" not in task:  # JSON-MIN: lists of regions beside the image, without their types
        values = [
            {**value, "value": value, "type": ""}
            for listed in task.values()
            if isinstance(listed, list)
            for value in listed
            if isinstance(value, dict)
        ]
        if values:
            yield values
        return
    annotated = next((key for key in ("annotations", "completions") if key in task), "predictions")
    listed = [
        mapping(each, "an annotation", file)
        for each in sequence(task.get(annotated) or [], f"the {annotated} of a task", file)
    ]
    done = [each for each in listed if not each.get("was_cancelled")]
    for each in sorted(done, key=lambda each: str(each.get("updated_at") or "")):
        yield sequence(each.get("result") or [], "the result of an annotation", file)


def _image_of(task: Mapping[str, Any], file: Path) -> str:
    """Return the address of a task's image: `image`, or the only value that looks like one."""
    data = mapping(task.get("data", task), "the data of a task", file)
    if isinstance(data.get("image"), str):
        return str(data["image"])
    found = [
        value
        for value in data.values()
        if isinstance(value, str) and _path_in(value).lower().endswith(tuple(image_suffixes()))
    ]
    if len(found) != 1:
        raise AnnotationError(f"{file}: a task names {len(found)} images, expected one as `image`")
    return found[0]


def _path_in(address: str) -> str:
    """Return the path of an image in its address: a local file's, a URL's, or the address."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    local = parse_qs(parts.query).get("d") if parts.path.endswith("/local-files/") else None
    return local[0] if local else unquote(parts.path) if parts.scheme or "%" in address else address


def _photo_of(address: str, names: PhotoNames) -> str | None:
    path = _path_in(address)
    uploaded = _UPLOADED.match(path.rpartition("/")[2])  # without the folder that it was in
    found = names.find(path)
    return names.find(uploaded[1]) if found is None and uploaded else found


def _shape(fields: Mapping[str, Any], name: str, file: Path) -> bytes | list[Any] | None:
    """Return what a region covers; None for kinds that do not say pixels."""
    if "rle" in fields:
        values = sequence(fields["rle"], f"the brush layer of {name}", file)
        try:
            return bytes(values)
        except (TypeError, ValueError):
            raise AnnotationError(
                f"{file}: the brush layer of {name} is damaged: expected bytes, got {brief(values)}"
            ) from None
    points = fields.get("points")
    return points if isinstance(points, list) else None
