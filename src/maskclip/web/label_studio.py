"""What Label Studio calls: its protocol for machine learning backends.

Whoever labels there sees our labels as predictions, one brush region a class. What is looked for,
and how, is read from the labelling configuration of each request: nothing is kept of a project.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from maskclip.core.class_lists import fold
from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import class_colors
from maskclip.core.segmentation import Segmentation, class_totals
from maskclip.core.text import printable
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.label_studio import brush_region
from maskclip.web import answers
from maskclip.web.asking import Asker
from maskclip.web.engine import BusyError
from maskclip.web.errors import invalid_line
from maskclip.web.guard import visitor_of
from maskclip.web.label_config import OPTION, Brush, read_brushes
from maskclip.web.models import Offer
from maskclip.web.reading import SlowError
from maskclip.web.settings import Choice, Settings, read_settings
from maskclip.web.task_files import TaskFiles

MOST_TASKS = 10_000
"""Of one request."""

_AHEAD = 2  # tasks of a request that are worked on at once, so that others have their turn
_RETRY = 0.5  # seconds until a busy engine is tried again

_log = logging.getLogger(__name__)


class Setup(BaseModel):
    """A project that is connected."""

    labels: str = Field(alias="schema", description="The labelling configuration, XML.")


class Task(BaseModel):
    """A task: what it is called, and its values."""

    id: int | str | None = None
    data: dict[str, Any]


class Tasks(BaseModel):
    """Tasks of a project, to be labelled."""

    label_config: str = Field(description="The labelling configuration, XML.")
    tasks: list[Task] = Field(max_length=MOST_TASKS)


class _Plan(NamedTuple):
    """What is looked for: the brushes, what each chooses, and the name of all this."""

    brushes: Sequence[tuple[Brush, Choice]]
    version: str


def add_label_studio(app: FastAPI, asker: Asker, files: TaskFiles) -> None:
    """Add the routes of the protocol."""
    backend = _Backend(asker, files)
    for method, path, answer in (
        ("GET", "/health", backend.health),
        ("POST", "/setup", backend.setup),
        ("POST", "/predict", backend.predict),
    ):
        app.add_api_route(path, answer, methods=[method], tags=["Label Studio"])


class _Backend:
    """What answers, and what it asks."""

    def __init__(self, asker: Asker, files: TaskFiles) -> None:
        self.asker, self.files = asker, files

    async def health(self) -> dict[str, str]:
        """Say that the backend runs."""
        return {"status": "UP", "model_class": "maskclip"}

    async def setup(self, given: Setup) -> dict[str, str]:
        """Check a labelling configuration; the version changes with words, model and options."""
        return {"model_version": (await asyncio.to_thread(self._planned, given.labels)).version}

    async def predict(self, request: Request, given: Tasks) -> Response:
        """Label the images of tasks: JSON whose `results` has a prediction a task, in their order.

        A task that cannot be labelled has `error` instead of a prediction. The answer is sent as it
        grows, so that nobody waits in vain for the last of many tasks.
        """
        plan = await asyncio.to_thread(self._planned, given.label_config)
        results = self._results(given.tasks, plan, visitor_of(request.scope))
        return StreamingResponse(results, media_type="application/json")

    def _planned(self, config: str) -> _Plan:
        """Return what a labelling configuration wants; the log has why there is nothing.

        Label Studio does not show its users what a refusal says.
        """
        try:
            self.files.check()
            brushes = [(brush, self._choice(brush)) for brush in read_brushes(config)]
        except MaskCLIPError as error:
            _warn("Label Studio's project is refused", error)
            raise
        first = brushes[0][1]
        known = hashlib.sha256(repr(brushes).encode()).hexdigest()[:8]
        return _Plan(brushes, f"maskclip {first.model} {first.method} {known}")

    def _choice(self, brush: Brush) -> Choice:
        own = {"words", "vocabulary"}.intersection(brush.options)
        if own:
            raise MaskCLIPError(f"{OPTION}{own.pop()}: the words are those of the labels")
        try:
            settings = Settings.model_validate(brush.options)
        except ValidationError as error:
            raise MaskCLIPError(invalid_line(error.errors(), prefix=OPTION)) from None
        models = self.asker.engine.models
        classes = _looked_for(brush, models.find(settings.model))
        return read_settings(settings, models, classes=classes)

    async def _results(
        self, tasks: Sequence[Task], plan: _Plan, visitor: str
    ) -> AsyncIterator[bytes]:
        yield b'{"model_version":' + answers.json_bytes(plan.version) + b',"results":['
        running: list[asyncio.Task[bytes]] = []
        try:
            for number, _ in enumerate(tasks):
                for task in tasks[number + len(running) : number + _AHEAD]:
                    running.append(asyncio.create_task(self._result(task, plan, visitor)))
                result = await running.pop(0)
                yield result if number == 0 else b"," + result
        finally:
            for each in running:  # nobody reads on
                each.cancel()
        yield b"]}"

    async def _result(self, task: Task, plan: _Plan, visitor: str) -> bytes:
        """Return the prediction for a task, or why there is none, as JSON."""
        try:
            async with asyncio.timeout(self.asker.limits.timeout):
                return await self._prediction(task, plan, visitor)
        except MaskCLIPError as error:
            line = answers.public_line(error)
        except (SlowError, TimeoutError):
            line = "this took too long"
        except Exception:
            _log.exception("a task of Label Studio")
            line = "an error of the service; its log has more"
        _warn(f"Label Studio's task {printable(str(task.id))[:40]}", line)
        return answers.json_bytes({"error": printable(line)})

    async def _prediction(self, task: Task, plan: _Plan, visitor: str) -> bytes:
        found = await asyncio.gather(
            *(self._answer(brush, choice, task, visitor) for brush, choice in plan.brushes)
        )
        brushes = [brush for brush, _ in plan.brushes]
        return await asyncio.to_thread(_prediction, brushes, found, plan.version)

    async def _answer(self, brush: Brush, choice: Choice, task: Task, visitor: str) -> Segmentation:
        seconds = self.asker.limits.timeout
        address = brush.image_of(task.data)
        data = await asyncio.to_thread(self.files.read, address, seconds=seconds)
        while True:
            try:
                return (await self.asker.ask_file(data, choice, visitor)).found
            except BusyError:  # nobody else waits for this task: it can wait for its turn
                await asyncio.sleep(_RETRY)


def _looked_for(brush: Brush, offered: Offer) -> Vocabulary | None:
    """Return the classes to look for: the labels; of a student, its own and labels that are new.

    None for a student's own alone. All of its own are looked for, whichever of them are labels: a
    pixel of another class is none of a label.
    """
    own = offered.own
    if own is None:
        return brush.vocabulary
    known = {name.casefold() for name in own.names}
    words = {name: (name, *words) for name, words in brush.labels.items()}
    new = {
        name: brush.labels[name]
        for name, those in words.items()
        if known.isdisjoint(fold(word).casefold() for word in those)
    }
    if not new or not offered.takes_words:
        return None
    others = Vocabulary.parse(new)
    names = (*own.names, *others.names)
    colors = tuple(class_colors(names))
    return Vocabulary(names, (*own.prompts, *others.prompts), colors, own.threshold)


def _warn(what: str, error: object) -> None:
    _log.warning("%s: %s", what, printable(str(error)))


def _prediction(brushes: Sequence[Brush], found: Sequence[Segmentation], version: str) -> bytes:
    """Return the regions of all brushes, and the mean score of their pixels, as JSON."""
    result: list[dict[str, Any]] = []
    total, count = 0.0, 0
    for brush, segmentation in zip(brushes, found, strict=True):
        pixels, sums = class_totals(segmentation.labels, segmentation.scores)
        for label, name in _labels(brush, segmentation).items():
            if label >= len(pixels) or not pixels[label]:
                continue
            result.append(
                brush_region(
                    segmentation.labels == label,
                    name,
                    id=f"{brush.from_name}-{label}",
                    from_name=brush.from_name,
                    to_name=brush.to_name,
                    score=round(float(sums[label] / pixels[label]), 4),
                )
            )
            total, count = total + float(sums[label]), count + int(pixels[label])
    prediction: dict[str, Any] = {"model_version": version}
    if count:
        prediction["score"] = round(total / count, 4)
    return answers.json_bytes({**prediction, "result": result})


def _labels(brush: Brush, found: Segmentation) -> dict[int, str]:
    """Return the classes that are labels, and what results call them.

    A student's own classes are labels where they are called like one, or like one of its words.

    Raises:
        MaskCLIPError: none is.
    """
    exact = {fold(name): name for name in brush.labels}
    known = {fold(word).casefold(): name for name, words in brush.labels.items() for word in words}
    known |= {name.casefold(): label for name, label in exact.items()}
    same = {
        label: exact.get(name) or known[name.casefold()]
        for label, name in enumerate(found.vocabulary.names)
        if name.casefold() in known
    }
    if not same:
        raise MaskCLIPError("no class of the model is a label of the labelling configuration")
    return same
