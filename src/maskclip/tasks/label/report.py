"""What a labelling leaves beside its labels: figures of every photo, and a page to look at."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskclip.core.files import atomic_path, write_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.label.manifest import Outcome
from maskclip.tasks.label.page import page
from maskclip.tasks.label.statistics import Doubt, Outcomes, Summary, find_doubts, summarize

_SAMPLES = 24  # photos shown for no reason but to be looked at


def write_report(
    outcomes: Outcomes, vocabulary: Vocabulary, settings: dict[str, Any], out: Path
) -> None:
    """Write `report.json`, with every photo, and `report.html`, with what is worth a look.

    Args:
        outcomes: what became of the photos.
        vocabulary: the classes.
        settings: of the labelling, plain values.
        out: the folder.

    Raises:
        OSError: a file cannot be written.
    """
    summary = summarize(outcomes, vocabulary)
    doubts = [doubt for outcome in outcomes() for doubt in find_doubts(outcome, summary.classes)]
    summary.doubts = len(doubts)
    _write_json(outcomes, summary, doubts, settings, out / "report.json")
    step = max(1, summary.done // _SAMPLES)
    good = (outcome for outcome in outcomes() if outcome.error is None)
    samples = [outcome for index, outcome in enumerate(good) if index % step == 0][:_SAMPLES]
    failures = [outcome for outcome in outcomes() if outcome.error is not None]
    text = page(summary, doubts, failures, samples, vocabulary, settings)
    write_text(text, out / "report.html")


def _write_json(
    outcomes: Outcomes,
    summary: Summary,
    doubts: list[Doubt],
    settings: dict[str, Any],
    path: Path,
) -> None:
    """Write the figures of the run and, a line each, of the photos."""
    reasons: dict[int, list[dict[str, str]]] = {}
    for doubt in doubts:
        name = summary.classes[doubt.label].name
        reasons.setdefault(doubt.outcome.task.number, []).append(
            {"class": name, "reason": doubt.reason}
        )
    head = {"settings": settings, "summary": {**asdict(summary), "coverage": summary.coverage}}
    names = [figures.name for figures in summary.classes]
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(text.removesuffix("\n}") + ',\n  "photos": [')
        for index, outcome in enumerate(outcomes()):
            line = _photo(outcome, names, reasons.get(outcome.task.number, []))
            file.write(("," if index else "") + "\n    ")
            json.dump(line, file, ensure_ascii=False, allow_nan=False)
        file.write("\n  ]\n}\n")


def _photo(outcome: Outcome, names: list[str], doubts: list[dict[str, str]]) -> dict[str, Any]:
    said = {"photo": outcome.task.place, "name": outcome.task.name}
    if outcome.error is not None:
        return {**said, "error": outcome.error}
    size = outcome.width * outcome.height
    return {
        **said,
        "width": outcome.width,
        "height": outcome.height,
        "coverage": round(sum(found.kept for found in outcome.classes) / size, 4),
        "score": round(sum(f.score * f.pixels for f in outcome.classes) / size, 4),
        "classes": {
            names[found.label]: {
                "coverage": round(found.kept / size, 4),
                "dropped": round((found.pixels - found.kept) / size, 4),
                "score": round(found.score, 4),
            }
            for found in outcome.classes
        },
        "doubts": doubts,
    }
