"""Answers as they are sent: JSON, label images, scores and heat maps as PNG, COCO's run lengths."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from starlette.responses import Response

from maskclip.core.draw import Labels, class_pixels, overlay_with_legend
from maskclip.core.errors import without_commands
from maskclip.core.segmentation import Segmentation, class_totals, score_image
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import Labeled, PhotoFile, find_format
from maskclip.web.reading import Answer

_FAST = 1  # of PNG's compression: most of the size for a fraction of the time


class Png(Response):
    """A response of PNG."""

    media_type = "image/png"


class Jpeg(Response):
    """A response of JPEG."""

    media_type = "image/jpeg"


def summary(answer: Answer, model: str) -> dict[str, Any]:
    """Describe an answer: size, model, method, notes and the legend.

    Args:
        answer: of the engine.
        model: by the name that requests use.
    """
    height, width = answer.found.labels.shape
    return {
        "width": width,
        "height": height,
        "model": model,
        "method": answer.method,
        "why": answer.why,
        "network_ran": not answer.kept,
        "notes": list(answer.notes),
        "classes": legend(answer.found),
    }


def legend(found: Segmentation) -> list[dict[str, Any]]:
    """Describe every class of the vocabulary, in the order of ids, with its share of the pixels."""
    words = found.vocabulary
    pixels = dict(class_pixels(found.labels, len(words)))
    _, sums = class_totals(found.labels, found.scores)
    return [
        {
            "id": label,
            "name": name,
            "words": list(words.prompts[label]),
            "color": "#{:02x}{:02x}{:02x}".format(*words.colors[label]),
            "coverage": pixels.get(label, 0) / found.labels.size,
            "mean_score": float(sums[label] / pixels[label]) if label in pixels else None,
        }
        for label, name in enumerate(words.names)
    ]


def png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=_FAST)
    return file.getvalue()


def jpeg(image: Image.Image) -> bytes:
    """Return an image as JPEG, to look at."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=92)
    return file.getvalue()


def text_of(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def index_image(labels: Labels) -> Image.Image:
    """Return class ids (H, W) as 8-bit grey, or, beyond 255 classes, as R + 256 G of RGB."""
    if labels.dtype == np.uint8:
        return Image.fromarray(labels)
    wide = np.zeros((*labels.shape, 3), np.uint8)
    wide[..., 0], wide[..., 1] = labels & 255, labels >> 8
    return Image.fromarray(wide)


def heat_image(values: npt.NDArray[np.float32]) -> tuple[Image.Image, float, float]:
    """Return a class's map (H, W) as 8-bit grey, and which values are black and white.

    These are 0 and 1 of probabilities; other values are stretched between their least and greatest.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 + 1e-4:
        low, high = 0.0, 1.0
    spread = (high - low) or 1.0
    return score_image(((values - low) / spread).astype(np.float32)), low, high


def overlay_image(found: Segmentation, *, opacity: float, hidden: Sequence[int]) -> Image.Image:
    """Return the photo with class colours over it and a legend, without some classes.

    Args:
        found: labels, with their photo.
        opacity: of the colours, from 0 to 1.
        hidden: ids of classes whose pixels show the photo, and that the legend leaves out.
    """
    assert found.image is not None
    nothing = found.labels.dtype.type(np.iinfo(found.labels.dtype).max)  # no class has this id
    labels = np.where(np.isin(found.labels, hidden), nothing, found.labels)
    words = found.vocabulary
    return overlay_with_legend(found.image, labels, words.names, words.colors, opacity=opacity)


def run_lengths(labels: Labels, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return a mask of each class that appears: `{"id", "rle"}`, compressed as COCO does."""
    from pycocotools import mask as coco_mask

    found = []
    for label, _ in sorted(class_pixels(labels, len(vocabulary))):
        mask = np.asfortranarray((labels == label).astype(np.uint8))
        rle = coco_mask.encode(mask)
        size = [int(side) for side in rle["size"]]
        found.append({"id": label, "rle": {"size": size, "counts": rle["counts"].decode("ascii")}})
    return found


def coco_json(found: Segmentation, name: str) -> bytes:
    """Return COCO's `instances.json` of one photo: each connected region of a class.

    Args:
        found: the labels.
        name: of the photo's file.
    """
    with TemporaryDirectory(prefix="maskclip-") as folder:
        written = find_format("coco")(found.vocabulary, Path(folder))
        item = Labeled(name="photo", image=name, labels=found.labels, scores=found.scores)
        written.write(item)
        written.finish([PhotoFile("photo", name, name)])
        return (Path(folder) / "instances.json").read_bytes()


def json_bytes(values: Any) -> bytes:
    """Return JSON in UTF-8."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def public_line(error: Exception) -> str:
    """Return what an error says to people who cannot change how the service was started."""
    return without_commands(str(error)).replace(" (`max_pixels` raises it)", "")
