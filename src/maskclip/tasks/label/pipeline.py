"""Label whole folders: photos in, files of other tools out, unattended and resumable.

The output folder gets a folder for each format, `report.html`, `report.json`, `thumbnails/`, and
`manifest.sqlite`, from which a labelling that was stopped or killed is resumed. Labels that people
have corrected in `corrections/` since are written instead of the model's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from maskclip.core.config import RUNTIMES
from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.files import check_writable, remove_unfinished
from maskclip.core.method import Method
from maskclip.core.methods import AUTO, METHODS, get_method, gives_probabilities
from maskclip.data.corrections import FOLDER, REJECTED, Corrections
from maskclip.data.formats import Format, PhotoFile
from maskclip.data.sources import Found, Source
from maskclip.tasks.classes import with_usable_confidence
from maskclip.tasks.label import MANIFEST, Chunk, Job, LabelingError, Outcome
from maskclip.tasks.label.manifest import Counts, Manifest
from maskclip.tasks.label.report import write_report
from maskclip.tasks.label.worker import Worker
from maskclip.tasks.voting import Voting

Backend = Callable[[Job, Iterable[Chunk]], Generator[list[Outcome], None, None]]
"""Labels chunks, in other processes or on other machines; yields the outcomes of each chunk."""

OnProgress = Callable[[Sequence[Outcome], Counts], None]
"""Is called with the outcomes of some photos, and how many are done with them."""

_SHOWN = 3  # files of a plan


@dataclass(frozen=True)
class Plan:
    """What a labelling would do.

    Attributes:
        counts: of photos; those that failed before count as left, because they are tried again.
        first: where the first few results would go.
    """

    counts: Counts
    first: tuple[Path, ...]


def plan_labels(job: Job, sources: Sequence[Source]) -> Plan:
    """Return what `label_photos` would do; nothing is written, and no model is loaded.

    Raises:
        MaskCLIPError: `label_photos` would refuse it, as far as is known without the model.
    """
    _check_apart(sources, job.out)
    beside = _maps_beside(job, sources)
    manifest = Manifest.copy_of(job.out / MANIFEST)
    job, why = _as_begun(job, manifest)
    if job.vocabulary is not None:
        words = with_usable_confidence(job.vocabulary, job.model.method)
        job = replace(job, vocabulary=words)
    corrections = Corrections(job.out)
    settings = _settings(job, weights="", tokenizer="", why=why)
    unknown = ["auto", "weights", "tokenizer", *(["vocabulary"] if job.vocabulary is None else [])]
    unknown += [name for name in ("precision", "method") if getattr(job.model, name) == AUTO]
    unknown += ["runtime"] if job.runtime == AUTO else []
    manifest.check_settings(settings, ignore=unknown)
    formats = []
    if job.vocabulary is not None:
        job.cleaning.thresholds(job.vocabulary)  # refuses unknown classes
        _warn_if_useless(job)
        corrections.check(job.vocabulary)
        formats = job.open_formats(job.vocabulary)
    missing = _missing(manifest, formats)
    manifest.plan(sources, settings, missing=missing, beside=beside, corrections=corrections)
    chunk = next(manifest.chunks(), ())
    first = [path for task in chunk for f in formats[:1] for path in f.files(task.name)]
    return Plan(manifest.counts(), tuple(first[:_SHOWN]))


def label_photos(
    job: Job,
    sources: Sequence[Source],
    *,
    device: str = "auto",
    backend: Backend | None = None,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda _: None,
    on_choice: Callable[[str, str, str], None] = lambda *_: None,
) -> Counts:
    """Label photos that are not labelled yet, and write the files and the report of all.

    What is done is recorded chunk by chunk. A labelling that was stopped at any moment and is run
    again leaves the same files as one that was not. A photo that cannot be read counts as failed
    and is tried again by the next run; the others are labelled.

    Args:
        job: what is done; `vocabulary` may be None for a student that carries its own.
        sources: the photos; of `Found` the report says what was left out.
        device: of the model, as `load` takes it.
        backend: what does the work; None is this process.
        on_progress: is called after each chunk.
        on_note: is called at the end with lines for the user, such as how files are imported.
        on_choice: is called before the first photo with what `auto` is here, `"method"` or
            `"runtime"`: which, its name, and why; labels that were begun keep theirs.

    Returns:
        How many photos are done and failed, including those of earlier runs.

    Raises:
        MaskCLIPError: the model or the settings cannot be used, another labelling runs in the same
            folder, or a file cannot be written.
    """
    _check_apart(sources, job.out)
    beside = _maps_beside(job, sources)
    check_writable(job.out)
    with Manifest(job.out / MANIFEST) as manifest:
        place = _Place(job.out / MANIFEST)
        wanted = job.runtime
        job, why = _as_begun(job, manifest)
        worker = Worker(job, device)
        job, formats = worker.job, worker.formats
        settings = _settings(
            job, weights=worker.fingerprint, tokenizer=worker.tokenizer, why=why or worker.why
        )
        manifest.check_settings(settings, ignore=["auto"])
        if why or worker.why:
            reason = worker.why or _AS_BEGUN
            on_choice("method", get_method(job.model.method).name, reason)
        if wanted == AUTO:
            on_choice("runtime", job.runtime, worker.runtime_why or _AS_BEGUN)
        _warn_if_useless(job)
        assert job.vocabulary is not None
        corrections = Corrections(job.out)
        corrections.check(job.vocabulary)
        remove_unfinished(job.out, outside=job.out / FOLDER)  # where people may be at work
        missing = _missing(manifest, formats)
        others = _other_folder(manifest, sources)
        manifest.plan(sources, settings, missing=missing, beside=beside, corrections=corrections)
        if backend is None:
            results = worker.label(manifest.chunks())
        else:
            del worker  # frees its memory for the backend's
            results = backend(job, manifest.chunks())
        _record(results, manifest, place, on_progress)
        notes = [
            *_notes(corrections),
            *(n for f in formats for n in f.finish(_photo_files(manifest, corrections))),
        ]
        for note in [*([others] if others else []), *notes]:
            on_note(note)
        left_out = sources.left_out.line() if isinstance(sources, Found) else ""
        write_report(
            manifest.outcomes,
            job.vocabulary,
            settings,
            job.out,
            formats=formats,
            left_out=left_out,
            notes=notes,
            corrections=corrections.photos,
        )
        return manifest.counts()


_AS_BEGUN = "as when these labels were begun"


def _as_begun(job: Job, manifest: Manifest) -> tuple[Job, str]:
    """Return a job with what `auto` became when its labels were begun, and why the method did."""
    saved = manifest.settings()
    if saved and job.runtime == AUTO:
        runtime = saved.get("runtime", "torch")
        job = replace(job, runtime=runtime if runtime in RUNTIMES else AUTO)
    method, why = saved.get("method"), saved.get("auto")
    if job.model.method != AUTO or not (isinstance(method, str) and method in METHODS):
        return job, ""
    if not (isinstance(why, str) and why):
        return job, ""
    return replace(job, model=replace(job.model, method=method)), why


def _maps_beside(job: Job, sources: Sequence[Source]) -> Callable[[Source], Path] | None:
    """Return what names the label map of a photo's segments, where there are such maps.

    Raises:
        MaskCLIPError: there is no such folder, or it has no map of any photo.
    """
    voting = Voting.of(job.options)
    if voting is None or voting.folder is None:
        return None
    voting.check(
        [source.relative_path for source in sources],
        done=lambda: _done(Manifest.copy_of(job.out / MANIFEST), sources),
    )
    folder = voting.folder
    return lambda s: folder.find(s.relative_path) or folder.expected(s.relative_path)


def _done(manifest: Manifest, sources: Sequence[Source]) -> set[str]:
    """Return the relative paths of sources that are labelled already."""
    done = {outcome.task.path for outcome in manifest.outcomes() if outcome.error is None}
    left = {source.relative_path for source in sources if source.path.absolute() not in done}
    return {source.relative_path for source in sources} - left


def _other_folder(manifest: Manifest, sources: Sequence[Source]) -> str | None:
    """Return a line on photos that were labelled before, if none of theirs is among the sources."""
    tasks = [outcome.task for outcome in manifest.outcomes() if outcome.error is None]
    folders = {_folder(task.path, task.relative_path) for task in tasks}
    here = {folder for source in sources for folder in source.path.absolute().parents}
    others = sorted(folders - here)
    if not others:
        return None
    more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
    return (
        f"photos of another folder than before: {others[0]}{more}; the labels lie together, and "
        "where two photos have one name, those of the later have a longer one"
    )


def _folder(path: Path, relative_path: str) -> Path:
    """Return the folder in which a photo was found; of one that was named itself, its parent."""
    found = path.parents[len(PurePosixPath(relative_path).parts) - 1]
    return path.parent if found == Path(path.anchor) else found


def _warn_if_useless(job: Job) -> None:
    if job.options.regions is not None:  # whose scores have no floor: who is outvoted counts as 0
        return
    if job.vocabulary is not None and gives_probabilities(job.model.method):
        useless = job.cleaning.useless(job.vocabulary)
        if useless is not None:
            warnings.warn(useless, MaskCLIPWarning, stacklevel=3)


def _notes(corrections: Corrections) -> list[str]:
    """Return what the files of the set make of corrections, in lines for the user."""
    if not corrections.photos:
        return []
    rejected = corrections.count(lambda correction: correction.state == REJECTED)
    left_out = "; rejected ones are left out of files about the whole set" if rejected else ""
    return [f"{corrections.line()}{left_out}"]


def _photo_files(manifest: Manifest, corrections: Corrections) -> Iterator[PhotoFile]:
    """Yield the photos of files about the whole set: those that are done, and not rejected."""
    for outcome in manifest.outcomes():
        rejected = corrections.of(outcome.task.name).state == REJECTED
        if outcome.error is None and not rejected:
            task = outcome.task
            yield PhotoFile(task.name, task.relative_path, _without_dots(task.path))


def _without_dots(path: Path) -> str:
    """Return a path without `..`, which other programs refuse: the plain one, if it is the same."""
    if ".." not in path.parts:
        return str(path)
    plain = os.path.normpath(path)
    same = Path(plain).exists() and path.exists() and path.samefile(plain)
    return plain if same else os.path.realpath(path)


def _check_apart(sources: Sequence[Source], out: Path) -> None:
    """Refuse photos in the folder of the results, where results could be taken for photos."""
    inside = out.resolve()
    for folder in {source.path.parent for source in sources}:
        if folder.resolve().is_relative_to(inside):
            raise LabelingError(
                f"the photos of {folder} lie in the output folder {out}: choose another `out`"
            )


def _settings(job: Job, *, weights: str, tokenizer: str, why: str) -> dict[str, Any]:
    """Return all that decides the files, except the photos, as plain values, and why `auto`."""
    model = job.model
    return {
        "model": model.name,
        "weights": weights,
        "method": _plain_method(model.method),
        **({"auto": why} if why else {}),
        "templates": model.templates,
        "precision": model.precision,
        **({} if job.runtime == "torch" else {"runtime": job.runtime}),
        "proxy": model.proxy,
        **({"tokenizer": tokenizer} if tokenizer else {}),
        **({} if model.language is None else {"language": model.language}),
        "vocabulary": None if job.vocabulary is None else job.vocabulary.to_dict(),
        "options": asdict(job.options),
        "cleaning": asdict(job.cleaning),
        "formats": sorted(job.formats),
    }


def _plain_method(method: str | Method) -> object:
    """Return a method's name, or all its fields where no name stands for it."""
    if method == AUTO:
        return AUTO
    method = get_method(method)
    return method.name if METHODS.get(method.name) == method else asdict(method)


def _missing(manifest: Manifest, formats: Sequence[Format]) -> list[int]:
    """Return the numbers of photos that are done and some of whose files are missing or emptied."""
    return [
        outcome.task.number
        for outcome in manifest.outcomes()
        if outcome.error is None
        and not all(_is_there(path, f) for f in formats for path in f.files(outcome.task.name))
    ]


def _is_there(path: Path, written: Format) -> bool:
    try:
        return path.stat().st_size > 0 or written.may_be_empty
    except OSError:
        return False


class _Place:
    """A file that must stay where it is: it can be written to long after it was moved."""

    def __init__(self, path: Path) -> None:
        self._path, self._status = path, path.stat()

    def check(self) -> None:
        """Look whether it is still there.

        Raises:
            LabelingError: it was moved or removed, perhaps with its folder.
        """
        try:
            there = os.path.samestat(self._path.stat(), self._status)
        except OSError:
            there = False
        if not there:
            raise LabelingError(
                f"{self._path} was moved or removed meanwhile. What is done is kept where it is "
                "now: move it back, and run the same command to resume; labels that were made "
                f"since may lie in a new folder {self._path.parent}"
            )


def _record(
    results: Generator[list[Outcome], None, None],
    manifest: Manifest,
    place: _Place,
    on_progress: OnProgress | None,
) -> None:
    """Record the outcomes of each chunk as it is done; stop at one that stops other photos too."""
    with closing(results):
        for outcomes in results:
            place.check()
            for outcome in outcomes:
                if outcome.fatal:
                    raise LabelingError(
                        f"{outcome.error}. No half-written file is left: fix this, then run the "
                        "same command to resume"
                    )
            manifest.record(outcomes)
            if on_progress is not None:
                on_progress(outcomes, manifest.counts())
