"""What the page of a review calls: the photos of a labelling, and what people do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Response
from pydantic import Field

from maskclip.core.errors import MaskCLIPError
from maskclip.core.regions import region_at
from maskclip.tasks.label.finished import LabeledPhoto
from maskclip.tasks.label.review import Edit, OtherLabelsError, Review, UnknownPhotoError
from maskclip.web import answers
from maskclip.web.errors import Values
from maskclip.web.settings import Whole

T = TypeVar("T")


class Change(Values):
    """An action on a photo."""

    name: str = Field(description="The photo.", max_length=4096)
    action: Literal["accept", "reject", "open", "reset", "relabel", "ignore", "merge"]
    row: Whole = Field(0, description="Of a pixel of the region, in the photo's own pixels.")
    column: Whole = 0
    label: Whole | None = Field(None, description="The class that a region gets.")
    whole: bool = Field(False, description="All regions of that class in the photo.")
    edit: Whole | None = Field(
        None,
        description="The `edit` of the photo that was looked at: 409 if it is another by now. "
        "Whatever it is, if this is left out.",
    )


def add_review(app: FastAPI, review: Review) -> None:
    """Add the routes of a review."""
    _add_reading(app, review)
    _add_changing(app, review)


def _add_reading(app: FastAPI, review: Review) -> None:
    @app.get("/v1/review", tags=["review"])
    def photos() -> dict[str, Any]:
        """List the classes, and the photos: those most worth a look first."""
        words = review.vocabulary
        colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in words.colors]
        return {
            "title": review.finished.out.resolve().name,
            "classes": [
                {"id": label, "name": name, "color": color}
                for label, (name, color) in enumerate(zip(words.names, colors, strict=True))
            ],
            "ignore": words.ignore,
            "photos": [review.describe(photo) for photo in review.finished.photos],
            **_history(review),
        }

    @app.get("/v1/review/image", tags=["review"])
    def image(name: str) -> Response:
        """Return a photo as it is shown, JPEG."""
        with _public(review):
            data = answers.jpeg(review.image(name))
        kept = {"Cache-Control": "private, max-age=600"}  # the next ones are fetched ahead
        return Response(data, headers=kept, media_type="image/jpeg")

    @app.get("/v1/review/labels", tags=["review"])
    def labels(name: str) -> Response:
        """Return a photo's class ids as it is shown: 8-bit grey, or R + 256 G of many classes."""
        with _public(review):
            found = answers.index_image(review.shown_labels(name))
        return Response(answers.png(found), media_type="image/png")

    @app.get("/v1/review/region", tags=["review"])
    def region(name: str, row: int, column: int) -> dict[str, Any]:
        """Describe the region of one class at a pixel of a photo."""
        with _public(review):
            found = review.labels(name)
            mask = region_at(found, row, column)
        rows, columns = np.nonzero(mask)
        return {
            "id": int(found[row, column]),
            "pixels": int(mask.sum()),
            "box": [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)],
        }


def _add_changing(app: FastAPI, review: Review) -> None:
    def answered(photo: LabeledPhoto | None) -> dict[str, Any]:
        described = None if photo is None else review.describe(photo)
        return {"photo": described, **_history(review)}

    @app.post("/v1/review/change", tags=["review"])
    def change(given: Change) -> dict[str, Any]:
        """Do something to a photo; it is saved when this is answered."""
        edit, known = Edit(**given.model_dump(exclude={"name", "edit"})), given.model_fields_set

        def seen(step: int | None) -> bool:
            return "edit" not in known or step == given.edit

        return answered(_saved(review, lambda: review.change(given.name, edit, seen=seen)))

    @app.post("/v1/review/undo", tags=["review"])
    def undo() -> dict[str, Any]:
        """Undo the last action, and say of which photo it was."""
        return answered(_saved(review, review.undo))

    @app.post("/v1/review/redo", tags=["review"])
    def redo() -> dict[str, Any]:
        """Do again what was undone last."""
        return answered(_saved(review, review.redo))


def _history(review: Review) -> dict[str, Any]:
    return {"can_undo": review.journal.can_undo, "can_redo": review.journal.can_redo}


def _saved(review: Review, do: Callable[[], T]) -> T:
    try:
        with _public(review):
            return do()
    except OSError:
        raise HTTPException(507, "not saved: the folder of the labels cannot be written") from None


@contextmanager
def _public(review: Review) -> Iterator[None]:
    """Let errors tell no path of this machine."""
    try:
        yield
    except UnknownPhotoError as error:
        raise HTTPException(404, str(error)) from None
    except OtherLabelsError as error:
        raise HTTPException(409, str(error)) from None
    except MaskCLIPError as error:
        line = str(error).replace(f"{review.finished.out}/", "")
        for photo in review.finished.photos:
            line = line.replace(str(photo.outcome.task.path), photo.outcome.task.relative_path)
        raise HTTPException(422, line) from None
