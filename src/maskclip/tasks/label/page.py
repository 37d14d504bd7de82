"""The report of a labelling as a page: no scripts, nothing from elsewhere but thumbnails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.label.manifest import Outcome
from maskclip.tasks.label.statistics import Doubt, Summary
from maskclip.tasks.label.thumbnails import thumbnail_path

_MOST = 60  # thumbnails of one section
_MOST_LINES = 200  # failures that are listed
_CLASSES = 4  # named below a thumbnail

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Labels by maskclip</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; color: #202124; margin: 2rem auto;
         max-width: 72rem; padding: 0 1rem; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
  p.note, figcaption { color: #5f6368; } code { font-size: .9em; }
  dl { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1rem 0; }
  dt { color: #5f6368; font-size: .85rem; } dd { margin: 0; font-size: 1.35rem; }
  table { border-collapse: collapse; width: 100%; }
  th { text-align: left; font-weight: 600; border-bottom: 1px solid #dadce0; }
  th, td { padding: .25rem .8rem .25rem 0; } .n { text-align: right; white-space: nowrap; }
  .chip { display: inline-block; width: .8em; height: .8em; border: 1px solid #0003;
          border-radius: 2px; margin-right: .5em; }
  .bar { background: #e8eaed; height: .6rem; min-width: 8rem; }
  .bar i { display: block; height: 100%; }
  .wall { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
  figure { margin: 0; overflow-wrap: anywhere; } figcaption { font-size: .82rem; }
  figure img { width: 100%; height: 11rem; object-fit: contain; object-position: left;
               background: #f1f3f4; }
  figcaption b { color: #202124; font-weight: 600; }
</style>
"""


def page(
    summary: Summary,
    doubts: Sequence[Doubt],
    failures: Sequence[Outcome],
    samples: Sequence[Outcome],
    vocabulary: Vocabulary,
    settings: dict[str, Any],
) -> str:
    """Return the page, whose thumbnails are found beside it.

    Args:
        summary: the figures.
        doubts: the first of them are shown.
        failures: photos that have no labels.
        samples: photos to look at.
        vocabulary: the classes.
        settings: of the labelling.
    """
    names = vocabulary.names
    sections = {
        f"Failed ({len(failures):,})": _failure_list(failures) if failures else "",
        f"Worth a look ({len(doubts):,})": _doubt_wall(doubts, names) if doubts else "",
        f"{len(samples)} of {summary.done:,} photos": _wall(
            (outcome, _named(outcome, names)) for outcome in samples
        )
        if samples
        else "",
        "Classes": _class_table(summary, vocabulary),
    }
    shown = {title: text for title, text in sections.items() if text}
    links = (f'<a href="#{number}">{title}</a>' for number, title in enumerate(shown))
    return "\n".join(
        [
            _HEAD,
            "<h1>Labels by maskclip</h1>",
            f'<p class="note">{escape(_settings_line(settings, len(names)))}</p>',
            _figures(summary),
            f'<p>{" · ".join(links)} · <a href="report.json">report.json</a>, with every photo</p>',
            *(
                f'<h2 id="{number}">{title}</h2>\n{text}'
                for number, (title, text) in enumerate(shown.items())
            ),
            "</html>\n",
        ]
    )


def _settings_line(settings: dict[str, Any], classes: int) -> str:
    cleaning = settings["cleaning"]
    said = [settings["model"], f"{classes} classes", f"formats {', '.join(settings['formats'])}"]
    if cleaning["confidence"] or cleaning["by_class"]:
        own = (f"{name} {value:g}" for name, value in cleaning["by_class"].items())
        said.append("; ".join([f"dropped under score {cleaning['confidence']:g}", *own]))
    if cleaning["min_region"] > 1:
        said.append(f"dropped regions under {cleaning['min_region']:,} pixels")
    return ", ".join(said)


def _figures(summary: Summary) -> str:
    shown = {
        "photos labelled": f"{summary.done:,}",
        "failed": f"{summary.failed:,}",
        "pixels with a label": f"{summary.coverage:.1%}",
        "mean score": f"{summary.score:.2f}",
        "worth a look": f"{summary.doubts:,}",
    }
    items = (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in shown.items())
    return f"<dl>{''.join(items)}</dl>"


def _class_table(summary: Summary, vocabulary: Vocabulary) -> str:
    rows = [
        '<tr><th>class<th class="n">photos<th class="n">of all pixels<th>'
        '<th class="n">dropped<th class="n">mean score'
    ]
    order = sorted(zip(summary.classes, vocabulary.colors, strict=True), key=_by_coverage)
    largest = max((figures.coverage for figures in summary.classes), default=0) or 1
    for figures, color in order:
        shade = f"rgb{tuple(color)}"
        dropped = 1 - figures.kept / figures.pixels if figures.pixels else 0
        score = f"{figures.score:.2f}" if figures.pixels else ""
        rows.append(
            f'<tr><td><span class="chip" style="background:{shade}"></span>{escape(figures.name)}'
            f'<td class="n">{figures.photos:,}<td class="n">{figures.coverage:.2%}'
            f'<td><div class="bar"><i style="width:{100 * figures.coverage / largest:.1f}%;'
            f'background:{shade}"></i></div>'
            f'<td class="n">{dropped:.1%}<td class="n">{score}'
        )
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _by_coverage(row: tuple[Any, Any]) -> tuple[float, int]:
    return -row[0].coverage, -row[0].pixels


def _doubt_wall(doubts: Sequence[Doubt], names: Sequence[str]) -> str:
    photos: dict[int, tuple[Outcome, list[str]]] = {}
    for doubt in doubts:
        _, lines = photos.setdefault(doubt.outcome.task.number, (doubt.outcome, []))
        lines.append(f"<b>{escape(names[doubt.label])}</b>: {escape(doubt.reason)}")
    shown = ((outcome, "<br>".join(lines)) for outcome, lines in islice(photos.values(), _MOST))
    return (
        '<p class="note">A class that is less sure or larger in a photo than in most others, '
        f"or of which most was dropped.</p>{_wall(shown)}{_rest(len(photos) - _MOST)}"
    )


def _failure_list(failures: Sequence[Outcome]) -> str:
    lines = (f"<li>{escape(outcome.error or '')}</li>" for outcome in failures[:_MOST_LINES])
    return f"<ul>{''.join(lines)}</ul>{_rest(len(failures) - _MOST_LINES)}"


def _wall(pictures: Iterable[tuple[Outcome, str]]) -> str:
    """Return thumbnails, each with the photo's place and a caption of HTML."""
    figures = []
    for outcome, caption in pictures:
        source = quote(thumbnail_path(Path(), outcome.task.name).as_posix())
        place = escape(outcome.task.place)
        figures.append(
            f'<figure><img src="{source}" alt="{place}" loading="lazy">'
            f"<figcaption>{place}<br>{caption}</figcaption></figure>"
        )
    return f'<div class="wall">{"".join(figures)}</div>'


def _named(outcome: Outcome, names: Sequence[str]) -> str:
    size = outcome.width * outcome.height
    shown = sorted(outcome.classes, key=lambda found: -found.kept)[:_CLASSES]
    return ", ".join(f"{escape(names[f.label])} {f.kept / size:.0%}" for f in shown if f.kept)


def _rest(count: int) -> str:
    return f'<p class="note">and {count:,} more, in report.json</p>' if count > 0 else ""
