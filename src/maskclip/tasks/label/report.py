"""The report of a labelling: statistics of each photo as JSON, and a page to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from maskclip.core.files import atomic_path, write_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.per_photo import Thumbnails
from maskclip.tasks.label import THUMBNAILS, Outcome
from maskclip.tasks.label.statistics import (
    Outcomes,
    ReviewFlag,
    Summary,
    find_review_flags,
    summarize,
)

_SAMPLES = 24  # photos that are shown without a special reason
_MOST_FLAGGED = 60  # photos to be reviewed that are shown
_MOST_ERRORS = 200  # failures that are listed
_CLASSES = 4  # named below a sample

Line = dict[str, str]
"""A line below a picture: a class `name`, or "", and `text`."""


def write_report(
    outcomes: Outcomes, vocabulary: Vocabulary, settings: dict[str, Any], out: Path
) -> None:
    """Write `report.json`, with each photo, and `report.html`, with what should be reviewed.

    Args:
        outcomes: what became of the photos.
        vocabulary: the classes.
        settings: of the labelling, plain values.
        out: the folder.

    Raises:
        OSError: a file cannot be written.
    """
    summary = summarize(outcomes, vocabulary)
    flags = [flag for outcome in outcomes() for flag in find_review_flags(outcome, summary.classes)]
    summary.review = len(flags)
    _write_json(outcomes, summary, flags, settings, out / "report.json")
    step = max(1, summary.done // _SAMPLES)
    good = (outcome for outcome in outcomes() if outcome.error is None)
    samples = [outcome for index, outcome in enumerate(good) if index % step == 0][:_SAMPLES]
    errors = [outcome.error for outcome in outcomes() if outcome.error is not None]
    page = {
        "settings": _settings_line(settings, len(vocabulary)),
        "totals": _totals(summary),
        **_flagged_photos(flags, vocabulary.names),
        "samples": [_picture(o, [_largest_classes(o, vocabulary.names)]) for o in samples],
        "classes": _class_rows(summary, vocabulary),
        "errors": errors[:_MOST_ERRORS],
        "more_errors": len(errors) - _MOST_ERRORS,
    }
    sections = {
        "failed": f"Failed ({len(errors):,})" if errors else "",
        "review": f"Worth a look ({len(flags):,})" if flags else "",
        "samples": f"{len(samples)} of {summary.done:,} photos" if samples else "",
        "classes": "Classes",
    }
    titles = {section: title for section, title in sections.items() if title}
    write_text(_template().render(page, titles=titles), out / "report.html")


def _template() -> Any:
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    text = files("maskclip.tasks.label").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _settings_line(settings: dict[str, Any], classes: int) -> str:
    cleaning, method = settings["cleaning"], settings["method"]
    parts = [settings["model"], f"{classes} classes", f"formats {', '.join(settings['formats'])}"]
    if method != "clean":
        name = method if isinstance(method, str) else method["name"]
        parts.insert(1, f"method {name}")
    if cleaning["confidence"] or cleaning["by_class"]:
        own = (f"{name} {value:g}" for name, value in cleaning["by_class"].items())
        parts.append("; ".join([f"dropped under score {cleaning['confidence']:g}", *own]))
    if cleaning["min_region"] > 1:
        parts.append(f"dropped regions under {cleaning['min_region']:,} pixels")
    return ", ".join(parts)


def _totals(summary: Summary) -> dict[str, str]:
    return {
        "photos labelled": f"{summary.done:,}",
        "failed": f"{summary.failed:,}",
        "pixels with a label": f"{summary.coverage:.1%}",
        "mean score": f"{summary.score:.2f}",
        "worth a look": f"{summary.review:,}",
    }


def _class_rows(summary: Summary, vocabulary: Vocabulary) -> list[dict[str, str]]:
    """Return the rows of the table of classes, those of most pixels first."""
    pairs = zip(summary.classes, vocabulary.colors, strict=True)
    largest = max((total.coverage for total in summary.classes), default=0) or 1
    return [
        {
            "name": total.name,
            "color": f"rgb{tuple(color)}",
            "photos": f"{total.photos:,}",
            "coverage": f"{total.coverage:.2%}",
            "width": f"{100 * total.coverage / largest:.1f}%",
            "dropped": f"{1 - total.kept / total.pixels if total.pixels else 0:.1%}",
            "score": f"{total.score:.2f}" if total.pixels else "",
        }
        for total, color in sorted(pairs, key=lambda pair: (-pair[0].coverage, -pair[0].pixels))
    ]


def _flagged_photos(flags: Sequence[ReviewFlag], names: Sequence[str]) -> dict[str, Any]:
    photos: dict[int, tuple[Outcome, list[Line]]] = {}
    for flag in flags:
        _, lines = photos.setdefault(flag.outcome.task.number, (flag.outcome, []))
        lines.append({"name": names[flag.label], "text": flag.reason})
    shown = [_picture(*photo) for photo in islice(photos.values(), _MOST_FLAGGED)]
    return {"flagged": shown, "more_flagged": len(photos) - _MOST_FLAGGED}


def _picture(outcome: Outcome, lines: list[Line]) -> dict[str, Any]:
    source = quote(f"{THUMBNAILS}/{outcome.task.name}{Thumbnails.ending}")
    return {"source": source, "path": outcome.task.relative_path, "lines": lines}


def _largest_classes(outcome: Outcome, names: Sequence[str]) -> Line:
    size = outcome.width * outcome.height
    largest = sorted(outcome.classes, key=lambda stats: -stats.kept)[:_CLASSES]
    text = ", ".join(f"{names[s.label]} {s.kept / size:.0%}" for s in largest if s.kept)
    return {"name": "", "text": text}


def _write_json(
    outcomes: Outcomes,
    summary: Summary,
    flags: list[ReviewFlag],
    settings: dict[str, Any],
    path: Path,
) -> None:
    """Write the statistics of all photos together and, a line each, of the photos."""
    review: dict[int, list[dict[str, str]]] = {}
    for flag in flags:
        name = summary.classes[flag.label].name
        entry = {"class": name, "reason": flag.reason}
        review.setdefault(flag.outcome.task.number, []).append(entry)
    head = {"settings": settings, "summary": {**asdict(summary), "coverage": summary.coverage}}
    names = [total.name for total in summary.classes]
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(text.removesuffix("\n}") + ',\n  "photos": [')
        for index, outcome in enumerate(outcomes()):
            line = _photo(outcome, names, review.get(outcome.task.number, []))
            file.write(("," if index else "") + "\n    ")
            json.dump(line, file, ensure_ascii=False, allow_nan=False)
        file.write("\n  ]\n}\n")


def _photo(outcome: Outcome, names: list[str], review: list[dict[str, str]]) -> dict[str, Any]:
    photo = {"photo": outcome.task.relative_path, "name": outcome.task.name}
    if outcome.error is not None:
        return {**photo, "error": outcome.error}
    size = outcome.width * outcome.height
    return {
        **photo,
        "width": outcome.width,
        "height": outcome.height,
        "coverage": round(sum(stats.kept for stats in outcome.classes) / size, 4),
        "score": round(sum(s.score * s.pixels for s in outcome.classes) / size, 4),
        "classes": {
            names[stats.label]: {
                "coverage": round(stats.kept / size, 4),
                "dropped": round((stats.pixels - stats.kept) / size, 4),
                "score": round(stats.score, 4),
            }
            for stats in outcome.classes
        },
        "review": review,
    }
