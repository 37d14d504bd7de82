"""The labelling of whole folders: photos in, files of other tools out, unattended and resumable.

The output folder gets one folder a format, `report.html` and `report.json`, `thumbnails/`, and
`manifest.sqlite`, from which a labelling that was stopped, or killed, goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskclip.core.files import check_writable, remove_unfinished
from maskclip.data.formats import Format, open_formats
from maskclip.data.sources import Source
from maskclip.tasks.label.manifest import Chunk, Counts, LabelError, Manifest, Outcome
from maskclip.tasks.label.report import write_report
from maskclip.tasks.label.thumbnails import thumbnail_path
from maskclip.tasks.label.worker import Job, Labeler

MANIFEST = "manifest.sqlite"

Crew = Callable[[Job, Iterable[Chunk]], Generator[list[Outcome], None, None]]
"""Labels chunks, somewhere; yields what became of each chunk, as they are done."""

Watcher = Callable[[Sequence[Outcome], Counts], None]
"""Sees what became of some photos, and how far the work is with them."""

_SHOWN = 3  # names of a plan


@dataclass(frozen=True)
class Plan:
    """What a labelling would do.

    Attributes:
        counts: of photos; those that failed before are left, for they are tried again.
        first: of the photos that are left, where the first few results would go.
    """

    counts: Counts
    first: tuple[Path, ...]


def plan_labels(job: Job, sources: Sequence[Source]) -> Plan:
    """Return what `label_photos` would do; nothing is written, and no model is loaded.

    Raises:
        MaskCLIPError: it would be refused, as far as can be told without the model.
    """
    _check_apart(sources, job.out)
    manifest = Manifest.copy_of(job.out / MANIFEST)
    settings = _settings(job, weights="")
    of_the_model = ["weights", *(["vocabulary"] if job.vocabulary is None else [])]
    if job.precision == "auto":
        of_the_model.append("precision")
    manifest.check_settings(settings, ignore=of_the_model)
    formats = []
    if job.vocabulary is not None:
        job.cleaning.thresholds(job.vocabulary)  # refuses a class that there is not
        formats = open_formats(job.formats, job.vocabulary, job.out)
    manifest.plan(sources, settings, gone=_gone(manifest, formats, job.out))
    chunk = next(manifest.chunks(), ())
    first = [path for task in chunk for f in formats[:1] for path in f.files(task.name)]
    return Plan(manifest.counts(), tuple(first[:_SHOWN]))


def label_photos(
    job: Job,
    sources: Sequence[Source],
    *,
    device: str = "auto",
    crew: Crew | None = None,
    watch: Watcher | None = None,
) -> Counts:
    """Label photos that are not labelled yet, and write the files and the report of all.

    What is done is recorded chunk by chunk. Stopped at any moment and called again, it leaves the
    files that it would have left at once. A photo that cannot be read is a failure, which the next
    call tries again; the others go on.

    Args:
        job: what is done; `vocabulary` may be None for a student that carries its own.
        sources: the photos.
        device: of the model, as `load` takes it.
        crew: who does the work; None is this process.
        watch: sees the work.

    Returns:
        How many photos are done and have failed, those of earlier calls among them.

    Raises:
        MaskCLIPError: the model or the settings cannot be used, another labelling is at work in
            the folder, or a file cannot be written.
    """
    _check_apart(sources, job.out)
    check_writable(job.out)
    with Manifest(job.out / MANIFEST) as manifest:
        labeler = Labeler(job, device)
        job, fingerprint = labeler.job, labeler.fingerprint
        settings = _settings(job, weights=fingerprint)
        manifest.check_settings(settings)
        remove_unfinished(job.out)
        manifest.plan(sources, settings, gone=_gone(manifest, labeler.formats, job.out))
        formats = labeler.formats
        if crew is None:
            results = labeler.label(manifest.chunks())
        else:
            del labeler  # its memory is the workers'
            results = crew(job, manifest.chunks())
        with closing(results):
            for outcomes in results:
                manifest.record(outcomes)
                if watch is not None:
                    watch(outcomes, manifest.counts())
        for written in formats:
            written.finish(o.task.name for o in manifest.outcomes() if o.error is None)
        assert job.vocabulary is not None
        write_report(manifest.outcomes, job.vocabulary, settings, job.out)
        return manifest.counts()


def _check_apart(sources: Sequence[Source], out: Path) -> None:
    """Refuse photos that lie where the results go, which would be taken for photos."""
    inside = out.resolve()
    for folder in {source.path.parent for source in sources}:
        if folder.resolve().is_relative_to(inside):
            raise LabelError(
                f"photos of {folder} lie in {out}, where results go: choose another --out"
            )


def _settings(job: Job, *, weights: str) -> dict[str, Any]:
    """Return all that decides the files, but the photos, as plain values."""
    return {
        "model": job.model,
        "weights": weights,
        "templates": job.templates,
        "precision": job.precision,
        "vocabulary": None if job.vocabulary is None else job.vocabulary.to_dict(),
        "options": asdict(job.options),
        "cleaning": asdict(job.cleaning),
        "formats": sorted(job.formats),
    }


def _gone(manifest: Manifest, formats: Sequence[Format], out: Path) -> list[int]:
    """Return the numbers of photos that were done and some of whose files are not there."""
    return [
        outcome.task.number
        for outcome in manifest.outcomes()
        if outcome.error is None
        and not all(path.exists() for path in _files(formats, out, outcome.task.name))
    ]


def _files(formats: Sequence[Format], out: Path, name: str) -> Iterator[Path]:
    yield thumbnail_path(out, name)
    for written in formats:
        yield from written.files(name)
