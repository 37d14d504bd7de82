"""What a measurement leaves behind: `result.json`, charts, and images to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import write_json
from maskclip.tasks.evaluation.charts import iou_chart
from maskclip.tasks.evaluation.confusion_chart import confusion_chart
from maskclip.tasks.evaluation.contact_sheet import contact_sheet
from maskclip.tasks.evaluation.evaluate import Report, headline, settings


def write_report(report: Report, result: dict[str, Any], out: Path) -> list[Path]:
    """Write the figures and the pictures of a measurement into a folder; return their paths.

    Args:
        report: the measurement.
        result: what `result.json` shall hold: `Report.to_dict`, and what else belongs there.
        out: the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    vocabulary = report.samples.vocabulary
    title = f"{headline(report.metadata)}\n{settings(report.metadata)}"
    paths = [out / name for name in ("confusion.png", "iou.png", "images.png", "result.json")]
    confusion, bars, sheet, figures = paths
    figures.unlink(missing_ok=True)  # written last: where it is, the rest is of the same run
    confusion_chart(report.scores.confusion, vocabulary.names, confusion, title=title)
    iou_chart(report.scores.iou, vocabulary.names, bars, title=title, colors=vocabulary.colors)
    contact_sheet(
        report.best,
        report.worst,
        sheet,
        names=vocabulary.names,
        colors=vocabulary.colors,
        ignore=vocabulary.ignore,
        title=title,
    )
    write_json(result, figures)
    return paths


def earlier_result(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result that an earlier run left in a file, None if there is none.

    Args:
        path: the file.
        wanted: of `tasks.evaluate.describe`: what the result must be of.

    Raises:
        MaskCLIPError: it is of another measurement; says what differs.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        result = None
    if not isinstance(result, dict):
        raise MaskCLIPError(f"{path}: no result of an evaluation: move it away")
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
    for key, value in wanted.items():
        if result.get(key) != value:
            raise MaskCLIPError(
                f"{path} was made with {key} {result.get(key)!r}, not {value!r}: choose another "
                "folder, or delete the results there"
            )
    return result
