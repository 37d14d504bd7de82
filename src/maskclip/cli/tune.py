"""`maskclip tune`: better words and thresholds for a labelling, by what people corrected of it."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.cli.console import print_line, print_path, print_table, warning_line, working
from maskclip.core.files import write_text

if TYPE_CHECKING:
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.tasks.tune.job import Tuned

TUNED = "tuned.toml"
_LOW = 0.25  # mIoU: three in four pixels that have or should have a class are wrong
_LISTED = 40  # classes, those that change most


def tune(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="The folder of `maskclip label`, of which ten photos or more were accepted or "
            "corrected.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"The class file to write; default: {TUNED} in the folder."
        ),
    ] = None,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="NAME=WORDS",
            help='Further words to try for a class, "dog=puppy,hound", or for the background, '
            '"background=sky,wall". Repeat it. Default: the classes\' own words, and those of '
            "built-in vocabularies for a background that there is.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME", help="Where the model is now; default: where it was."
        ),
    ] = None,
    weights: opt.Weights = None,
    tokenizer: opt.Tokenizer = None,
    method_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.toml",
            help="The file of your own method, if it made the labels; default: none.",
        ),
    ] = None,
    device: opt.Device = "auto",
) -> None:
    """Propose words, a background and thresholds for a labelling, by what people corrected of it.

    Tries each class's synonyms alone, without one, and with those of --try; words or thresholds of
    the background; and the score that each class needs. What helps on photos that the choice did
    not see is taken. Writes a class file for `label` and `segment`, with the figures in it.

    **Examples**

    `maskclip tune labels`

    `maskclip tune labels --try "dog=puppy,hound" --try "background=sky,wall,road"`

    `maskclip label photos/ --classes labels/tuned.toml --out better`
    """
    from maskclip.tasks.tune.job import tune_labels

    with working(f"opening {labels}") as tell:
        found = tune_labels(
            labels,
            tries=tries or [],
            model=model,
            weights=weights,
            method_file=method_file,
            tokenizer=tokenizer,
            device=device,
            on_progress=_Left(tell),
        )
    for line in found.left_out:
        warning_line(line)
    _show(found)
    proposal = found.proposal
    if proposal.after.miou < _LOW:
        warning_line(
            f"mIoU is below {100 * _LOW:.0f} %, and words and thresholds do not mend that: try "
            "another model or method (`maskclip compare` measures them), or learn from what was "
            f"corrected: `maskclip train --images PHOTOS --labels {shlex.quote(str(labels))} "
            "--out RUN`"
        )
    if not any(taken for _, taken in proposal.stages.values()):
        print_line("nothing that was tried helps on photos that it was not chosen by: no file")
        return
    path = out or labels / TUNED
    write_text(proposal.vocabulary.to_toml(_figures(found)), path)
    print_path(path)
    print_line(f"next: {_next_command(found, path)}")


def _next_command(found: Tuned, classes: Path) -> str:
    """Return the command that labels other photos by what was found, as these were labelled."""
    from dataclasses import asdict

    from maskclip.core.config import ModelConfig
    from maskclip.core.method import CLEAN

    model, plain = found.model, ModelConfig()
    how = model.method if isinstance(model.method, str) else model.method.name
    options = {name: value for name, value in asdict(found.options).items() if name != "long_side"}
    chosen = {
        "classes": classes,
        "model": model.name,
        "weights": model.weights,
        "tokenizer": model.tokenizer,
        "language": model.language,
        "method": None if how == CLEAN.name else how,
        "proxy": model.proxy,
        "templates": None if model.templates == plain.templates else model.templates,
        **options,
        "refine": "+".join(found.options.refine) or None,
        "pamr_dilations": ",".join(map(str, found.options.pamr_dilations or ())) or None,
        "min_region": found.min_region or None,
    }
    words = ["maskclip", "label", "PHOTOS"]
    for name, value in chosen.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return f"`{shlex.join([*words, '--out', 'DIR'])}`"


class _Left:
    """Says how far each kind of work is, and how long it takes at most."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._what, self._began = tell, "", 0.0

    def __call__(self, what: str, count: int, most: int) -> None:
        if what != self._what:  # whose first is not timed
            self._what, self._began = what, time.monotonic()
        line = f"{what}: {count:,} of at most {most:,}"
        if count > 1:
            each = (time.monotonic() - self._began) / (count - 1)
            line += f", at most {timedelta(seconds=round(each * (most - count)))} left"
        self._tell(line)


def _figures(found: Tuned) -> str:
    """Return the figure before and after, in a line."""
    proposal = found.proposal
    return (
        f"mIoU {100 * proposal.before.miou:.1f} before, {100 * proposal.after.miou:.1f} after, "
        f"cross-validated over {proposal.photos} corrected photos"
    )


def _show(found: Tuned) -> None:
    """Print what each stage gives, what changes, and the figures of classes."""
    proposal = found.proposal
    for stage, (figure, taken) in proposal.stages.items():
        what = "taken" if taken else "left out"
        print_line(f"{stage}: mIoU {100 * figure:.1f} on photos not chosen by, {what}")
    names = found.vocabulary.names
    pairs = zip(names, proposal.before.ious.tolist(), proposal.after.ious.tolist(), strict=True)
    known = [(name, one, other) for name, one, other in pairs if not math.isnan(one)]
    known.sort(key=lambda row: -abs(row[2] - row[1]))
    new = _rules(proposal.vocabulary)
    rows = [
        (name, f"{100 * one:.1f}", f"{100 * other:.1f}", *new.get(name, ("", "")))
        for name, one, other in known[:_LISTED]
    ]
    print_table(
        "class",
        "before",
        "after",
        "score",
        "words",
        rows=rows,
        right=("before", "after", "score"),
    )
    if len(known) > _LISTED:
        print_line(f"and {len(known) - _LISTED:,} more")
    print_line(_figures(found), style="bold")


def _rules(vocabulary: Vocabulary) -> dict[str, tuple[str, str]]:
    """Return the least score and the words of each class, as they are shown."""
    confidence = vocabulary.confidence or (0.0,) * len(vocabulary)
    found = {}
    for name, needed, words in zip(vocabulary.names, confidence, vocabulary.prompts, strict=True):
        shown = ", ".join(words) if words else f"below {vocabulary.threshold:g}"
        found[name] = (f"{needed:g}" if needed else "", shown)
    return found
