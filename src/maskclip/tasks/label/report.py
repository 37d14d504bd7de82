"""The report of a labelling: statistics of each photo as JSON, and pages to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined

from maskclip.core.draw import percent
from maskclip.core.files import atomic_path, write_text
from maskclip.core.text import json_escaped, printable
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import OPEN, Correction
from maskclip.data.formats import Format
from maskclip.data.formats.per_photo import Thumbnails
from maskclip.tasks.label import THUMBNAILS, Outcome
from maskclip.tasks.label.statistics import (
    Outcomes,
    ReviewFlag,
    Summary,
    find_review_flags,
    summarize,
)

PAGES = "report"
"""The folder of the pages of photos."""

_A_PAGE = 100  # photos
_SAMPLES = 12  # photos that are shown without a special reason
_MOST_FLAGGED = 60  # photos to be reviewed that are shown
_MOST_ERRORS = 200  # failures that are listed
_CLASSES = 6  # named below a photo

Reasons = dict[int, list[dict[str, str]]]
"""Photo -> why it should be reviewed: a `name` of a class, and a `text`."""


def write_report(
    outcomes: Outcomes,
    vocabulary: Vocabulary,
    settings: dict[str, Any],
    out: Path,
    *,
    formats: Sequence[Format] = (),
    left_out: str = "",
    notes: Sequence[str] = (),
    corrections: Mapping[str, Correction] = MappingProxyType({}),
) -> None:
    """Write `report.json`, with each photo, `report.html` and, page by page, all photos.

    Args:
        outcomes: what became of the photos.
        vocabulary: the classes.
        settings: of the labelling, plain values.
        out: the folder.
        formats: whose pictures are linked.
        left_out: a line about files that were not read.
        notes: lines about what comes next, such as how files are imported.
        corrections: what people made of photos, by their names: those are not flagged any more.

    Raises:
        OSError: a file cannot be written.
    """
    summary = summarize(outcomes, vocabulary)
    flags = [
        flag
        for outcome in outcomes()
        if outcome.task.name not in corrections
        for flag in find_review_flags(outcome, summary.classes)
    ]
    reasons: Reasons = {}
    for flag in flags:
        reason = {"name": vocabulary.names[flag.label], "text": flag.reason}
        reasons.setdefault(flag.outcome.task.number, []).append(reason)
    summary.review = len(reasons)
    head = {"settings": settings, "left_out": left_out}
    _write_json(outcomes, summary, reasons, corrections, head, out)
    pictures = _Pictures(vocabulary, out, formats, reasons, corrections)
    environment = _environment()
    page = {
        "settings": _settings_line(settings, len(vocabulary)),
        "legend_entries": pictures.legend(summary, shares=True),
        "totals": _totals(summary, len(corrections)),
        "left_out": left_out,
        "notes": notes,
        "pages": _write_pages(environment, _done(outcomes), summary, pictures),
        "classes": _class_rows(summary, vocabulary),
        **_chosen(outcomes, summary, flags, pictures),
    }
    sections = {
        "failed": f"Failed ({summary.failed:,})" if summary.failed else "",
        "review": f"Worth a look ({summary.review:,})" if flags else "",
        "photos": f"All photos ({summary.done:,})" if summary.done else "",
        "classes": "Classes",
        "notes": "What comes next" if notes else "",
    }
    titles = {section: title for section, title in sections.items() if title}
    text = environment.get_template("report.html").render(page, titles=titles)
    write_text(text, out / "report.html")


def _chosen(
    outcomes: Outcomes, summary: Summary, flags: Sequence[ReviewFlag], pictures: _Pictures
) -> dict[str, Any]:
    """Return the photos that the first page shows: flagged ones, some others, and failures."""
    flagged = {flag.outcome.task.number: flag.outcome for flag in flags}
    step = max(1, summary.done // _SAMPLES)
    samples = islice(_done(outcomes), 0, step * _SAMPLES, step)
    errors = (outcome.error for outcome in outcomes() if outcome.error is not None)
    return {
        "flagged": [pictures.show(o) for o in islice(flagged.values(), _MOST_FLAGGED)],
        "more_flagged": len(flagged) - _MOST_FLAGGED,
        "samples": (shown := [pictures.show(outcome) for outcome in samples]),
        "more_photos": summary.done > len(shown),
        "errors": list(islice(errors, _MOST_ERRORS)),
        "more_errors": summary.failed - _MOST_ERRORS,
    }


def _done(outcomes: Outcomes) -> Iterator[Outcome]:
    return (outcome for outcome in outcomes() if outcome.error is None)


def _environment() -> Environment:
    """Return templates that show strangers' text as text, whatever characters it has."""

    def read(name: str) -> str:
        folder = files("maskclip.tasks.label") / "templates"
        return (folder / name).read_text(encoding="utf-8")

    def shown(value: object) -> object:
        return printable(value) if type(value) is str else value

    return Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def _write_pages(
    environment: Environment, done: Iterator[Outcome], summary: Summary, pictures: _Pictures
) -> list[dict[str, str]]:
    """Write all photos, a page for every hundred; return the address and title of each page."""
    template, pages = environment.get_template("photos.html"), []
    count = -(-summary.done // _A_PAGE)
    entries = pictures.legend(summary, shares=False)
    for number in range(1, count + 1):
        part = list(islice(done, _A_PAGE))
        shown = [pictures.show(outcome, up="../") for outcome in part]
        address = f"{PAGES}/{number:05d}.html"
        text = template.render(pictures=shown, number=number, count=count, legend_entries=entries)
        write_text(text, pictures.out / address)
        last = (number - 1) * _A_PAGE + len(part)
        title = (
            f"photos {last - len(part) + 1:,} to {last:,}" if len(part) > 1 else f"photo {last:,}"
        )
        first = f"from {part[0].task.relative_path}"
        pages.append({"address": address, "title": title, "first": first})
    for old in (pictures.out / PAGES).glob("*.html"):
        if f"{PAGES}/{old.name}" not in {page["address"] for page in pages}:
            old.unlink()
    return pages


@dataclass
class _Pictures:
    """What is shown of photos, with addresses relative to the report."""

    vocabulary: Vocabulary
    out: Path
    formats: Sequence[Format]
    reasons: Reasons
    corrections: Mapping[str, Correction]

    def legend(self, summary: Summary, *, shares: bool) -> list[dict[str, str]]:
        """Return the classes that label pixels, those of most first."""
        labels = [label for label, total in enumerate(summary.classes) if total.kept]
        labels.sort(key=lambda label: (-summary.classes[label].coverage, label))
        parts = [percent(summary.classes[label].coverage) if shares else "" for label in labels]
        return [self._entry(*entry) for entry in zip(labels, parts, strict=True)]

    def show(self, outcome: Outcome, *, up: str = "") -> dict[str, Any]:
        """Return what the templates show of a photo; `up` leads from the page to the report."""
        task, size = outcome.task, outcome.width * outcome.height
        largest = sorted(outcome.classes, key=lambda stats: (-stats.kept, stats.label))
        entries = [self._entry(s.label, percent(s.kept / size)) for s in largest if s.kept]
        rest = len(entries) - _CLASSES
        if rest > 0:
            share = sum(stats.kept for stats in largest[_CLASSES:]) / size
            more = {"name": f"{rest} more", "color": "", "share": percent(share)}
            entries = [*entries[:_CLASSES], more]
        return {
            "source": up + quote(f"{THUMBNAILS}/{task.name}{Thumbnails.ending}"),
            "photo": self._address(task.path, up),
            "path": task.relative_path,
            "shape": f"{2 * outcome.width}/{outcome.height}",
            "links": [
                (written.out.name, self._address(path, up))
                for written in self.formats
                for path in written.files(task.name)[:1]
                if path.suffix == ".png"
            ],
            "classes": entries,
            "reasons": self.reasons.get(task.number, []),
            "correction": _in_words(self.corrections.get(task.name)),
        }

    def _entry(self, label: int, share: str) -> dict[str, str]:
        color = f"rgb{tuple(self.vocabulary.colors[label])}"
        return {"name": self.vocabulary.names[label], "color": color, "share": share}

    def _address(self, path: Path, up: str) -> str:
        try:
            relative = Path(os.path.relpath(path.absolute(), self.out.absolute()))
        except ValueError:  # on another drive
            return path.absolute().as_uri()
        return up + quote(os.fsencode(relative.as_posix()))


def _settings_line(settings: dict[str, Any], classes: int) -> str:
    cleaning, method = settings["cleaning"], settings["method"]
    parts = [settings["model"], f"{classes} classes", f"formats {', '.join(settings['formats'])}"]
    name = method if isinstance(method, str) else method["name"]
    if "auto" in settings:
        parts.insert(1, f"method {name} (auto: {settings['auto']})")
    elif name != "clean":
        parts.insert(1, f"method {name}")
    words = settings.get("vocabulary") or {}
    of_file = dict(zip(words.get("names", ()), words.get("confidence", ()), strict=False))
    by_class = {name: value for name, value in of_file.items() if value} | cleaning["by_class"]
    if cleaning["confidence"] or by_class:
        own = (f"{name} {value:g}" for name, value in by_class.items())
        parts.append("; ".join([f"dropped under score {cleaning['confidence']:g}", *own]))
    if cleaning["min_region"] > 1:
        parts.append(f"dropped regions under {cleaning['min_region']:,} pixels")
    return ", ".join(parts)


def _in_words(correction: Correction | None) -> str:
    """Return what people made of a photo: "" where they have not seen it."""
    if correction is None:
        return ""
    parts = ["labels corrected"] if correction.edit is not None else []
    return ", ".join([*parts, *([correction.state] if correction.state != OPEN else [])])


def _totals(summary: Summary, reviewed: int) -> dict[str, str]:
    return {
        "photos labelled": f"{summary.done:,}",
        "failed": f"{summary.failed:,}",
        "of all pixels labelled": percent(summary.coverage),
        "mean score": f"{summary.score:.2f}",
        "worth a look": f"{summary.review:,}",
        **({"reviewed": f"{reviewed:,}"} if reviewed else {}),
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
            "share": percent(total.coverage),
            "width": f"{100 * total.coverage / largest:.1f}%",
            "dropped": percent(1 - total.kept / total.pixels if total.pixels else 0),
            "score": f"{total.score:.2f}" if total.pixels else "",
        }
        for total, color in sorted(pairs, key=lambda pair: (-pair[0].coverage, -pair[0].pixels))
    ]


def _write_json(
    outcomes: Outcomes,
    summary: Summary,
    reasons: Reasons,
    corrections: Mapping[str, Correction],
    head: dict[str, Any],
    out: Path,
) -> None:
    """Write the statistics of all photos together and, a line each, of the photos."""
    head = {**head, "summary": {**asdict(summary), "coverage": summary.coverage}}
    names = [total.name for total in summary.classes]
    with (
        atomic_path(out / "report.json") as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(json_escaped(text).removesuffix("\n}") + ',\n  "photos": [')
        for index, outcome in enumerate(outcomes()):
            review = [
                {"class": reason["name"], "reason": reason["text"]}
                for reason in reasons.get(outcome.task.number, [])
            ]
            line = _photo(outcome, names, review)
            correction = corrections.get(outcome.task.name)
            if correction is not None:
                corrected = correction.edit is not None
                line["correction"] = {"state": correction.state, "labels_corrected": corrected}
            text = json.dumps(line, ensure_ascii=False, allow_nan=False)
            file.write(("," if index else "") + "\n    " + json_escaped(text))
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
