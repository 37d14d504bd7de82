"""`tune_labels`: the folder of a labelling in, a proposal out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.methods import gives_probabilities
from maskclip.core.text import counted
from maskclip.core.vocabulary import BACKGROUND, Vocabulary
from maskclip.data.corrections import Corrections
from maskclip.data.images import load_image
from maskclip.data.region_folder import RegionFolder
from maskclip.tasks.label.finished import FinishedLabels, LabeledPhoto, open_labels
from maskclip.tasks.model_names import names_exported, names_student
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.tasks.segmenter import load
from maskclip.tasks.tune.changes import Change, background_changes, read_tries, synonym_changes
from maskclip.tasks.tune.propose import Bench, Proposal, Reviewed, bins, propose
from maskclip.tasks.tune.tallies import folds
from maskclip.tasks.voting import Voting

LEAST, MOST = 10, 200
"""Photos that were reviewed: how many are needed, and how many are looked at."""

_VIEW = ("short_side", "long_side", "window", "stride")
_BACKGROUNDS = ("voc21", "cocoobject81")
"""Whose words for the background are tried where none are given."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A proposal, with the words that it changes.

    Attributes:
        proposal: it.
        vocabulary: the classes as they are now.
        model: which labelled, and for which it is proposed.
        options: with which it labelled.
        min_region: below how many pixels regions were dropped.
        left_out: lines about what could not be taken into account.
    """

    proposal: Proposal
    vocabulary: Vocabulary
    model: ModelConfig
    options: Options
    min_region: int
    left_out: tuple[str, ...]


def tune_labels(
    out: Path,
    *,
    tries: Sequence[str] = (),
    model: str | None = None,
    weights: str | None = None,
    method_file: str | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Tuned:
    """Propose words, a background and thresholds for a labelling, by what people corrected of it.

    Args:
        out: the folder of the labelling.
        tries: further words, `dog=puppy,hound` or `background=sky,wall`.
        model, weights, method_file, tokenizer: where their files lie now; by default where they
            lay.
        device: as `load` takes it.
        on_progress: is called with what is done, how often it was done, and how often at most.

    Raises:
        MaskCLIPError: fewer than `LEAST` photos were reviewed, the model is another, or a file
            cannot be used.
    """
    finished, corrections = open_labels(out), Corrections(out)
    corrections.check(finished.vocabulary)
    reviewed = [p for p in finished.photos if corrections.of(p.name).reviewed]
    if len(reviewed) < LEAST:
        raise MaskCLIPError(
            f"{counted(len(reviewed), 'photo is', 'photos are')} accepted or corrected in {out}, "
            f"and {LEAST} are needed: `maskclip serve --review {out}` shows those worth a look"
        )
    config = finished.model(
        name=model, weights=weights, method_file=method_file, tokenizer=tokenizer
    )
    words = read_tries(tries, finished.vocabulary)
    changes = _changes(config, finished.vocabulary, words)
    segmenter = load(config, device=device, options=finished.options)
    if segmenter.fingerprint != finished.settings.get("weights"):
        raise MaskCLIPError(
            f"the weights of {config.name} are not those that labelled {out}: name these by "
            "`model` or `weights`"
        )
    if segmenter.tokenizer_identity() != finished.settings.get("tokenizer", ""):
        raise MaskCLIPError(
            f"the tokenizer of {config.name} is not the one that labelled {out}: name its folder "
            "by `tokenizer`"
        )
    changes = {
        stage: [one for one in each if _is_known(one, finished, segmenter, given=bool(words))]
        for stage, each in changes.items()
    }
    chosen, left_out = _chosen(reviewed)
    refinement, folder = _refinement(finished)
    photos = []
    for photo in chosen:
        photos.append(_encoded(photo, corrections, finished, segmenter, folder))
        on_progress("photos encoded", len(photos), len(chosen))
    stage, count, most = "", 0, 0

    def begin(name: str, labelings: int) -> None:
        nonlocal stage, count, most
        stage, count, most = name, 0, labelings

    def counted_one() -> None:
        nonlocal count
        count += 1
        on_progress(f"labellings tried ({stage})", count, max(count, most))

    bench = Bench(segmenter, photos, finished.vocabulary, refinement, counted_one)
    needed = bins(finished.cleaning.thresholds(finished.vocabulary).tolist())
    found = propose(
        bench, needed, changes, thresholds=gives_probabilities(segmenter.method), on_stage=begin
    )
    changed = [photo.name for photo in chosen if photo.change()]
    if changed:
        what = counted(len(changed), "photo has", "photos have")
        left_out.append(f"{what} changed since the labels were made, the first {changed[0]}")
    return Tuned(
        found,
        finished.vocabulary,
        config,
        finished.options,
        finished.cleaning.min_region,
        tuple(left_out),
    )


def _changes(
    config: ModelConfig, vocabulary: Vocabulary, tries: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what may be tried, by stage: nothing of words where a student has its own classes."""
    if names_exported(config.name):
        raise MaskCLIPError(
            f"{config.name}: its words are frozen, and tuning changes them: tune the model that it "
            "was exported from"
        )
    if names_student(config.name):
        if tries:
            raise MaskCLIPError("`tries`: a student knows its own classes, and takes no words")
        return {}
    background = tries.get(BACKGROUND, ())
    if not background and vocabulary.has_background:
        taken = {*vocabulary.names, *vocabulary.flat_prompts}
        listed = [w for name in _BACKGROUNDS for w in Vocabulary.builtin(name).prompts[0]]
        background = [word for word in dict.fromkeys(listed) if word not in taken]
    return {
        "words": synonym_changes(vocabulary, tries),
        "background": background_changes(vocabulary, background),
    }


def _is_known(
    change: Change, finished: FinishedLabels, segmenter: Segmenter, *, given: bool
) -> bool:
    """Return whether a model knows the words of a change; words that were given, it must.

    Raises:
        MaskCLIPError: it does not know them.
    """
    try:
        with warnings.catch_warnings():  # of words that are only tried
            warnings.simplefilter("ignore", MaskCLIPWarning)
            segmenter.prepare(change.apply(finished.vocabulary), options=finished.options)
    except MaskCLIPError:
        if given:
            raise
        return False
    return True


def _chosen(reviewed: Sequence[LabeledPhoto]) -> tuple[list[LabeledPhoto], list[str]]:
    """Return the photos that are looked at, and a line if these are not all."""
    if len(reviewed) <= MOST:
        return list(reviewed), []
    parts = folds([photo.name for photo in reviewed], -(-len(reviewed) // MOST))
    return (
        [reviewed[index] for index in parts[0]],
        [f"{len(parts[0]):,} of {len(reviewed):,} reviewed photos are looked at"],
    )


def _refinement(finished: FinishedLabels) -> tuple[dict[str, Any], RegionFolder | None]:
    """Return how maps are refined, and the folder of the segments that vote, if they are of one.

    Raises:
        MaskCLIPError: it is gone.
    """
    values, voting = asdict(finished.options), Voting.of(finished.options)
    refinement = {name: value for name, value in values.items() if name not in _VIEW}
    if voting is None or voting.folder is None:
        return refinement, None
    return {**refinement, "regions": None}, voting.folder


def _encoded(
    photo: LabeledPhoto,
    corrections: Corrections,
    finished: FinishedLabels,
    segmenter: Segmenter,
    folder: RegionFolder | None,
) -> Reviewed:
    """Return what the network sees in a photo, and its true classes, at a size that is kept."""
    task, least = photo.outcome.task, finished.cleaning.min_region
    regions = None if folder is None else folder.read(task.relative_path, photo.size)
    truth = corrections.read_labels(photo.name, finished.vocabulary, photo.size)
    image, options = load_image(task.path), finished.options
    if image.size != photo.size:
        raise MaskCLIPError(
            f"{task.path}: has another size than when it was labelled: put back "
            "the photo that was labelled, or label it again"
        )
    short = segmenter.short_side if options.short_side is None else options.short_side
    factor = 2 * short / min(image.size)
    if short and factor < 1:  # the network sees half of that, and nobody the rest
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.BOX)
        rows, columns = np.arange(image.height), np.arange(image.width)
        kept = np.ix_(rows * len(truth) // image.height, columns * truth.shape[1] // image.width)
        least = round(least * image.width * image.height / truth.size)
        truth = truth[kept]
        regions = None if regions is None else regions[kept]
    encoded = segmenter.encode(
        image,
        keys=options.key_smoothing is not None,
        image="surgery" in options.refine,
        **{name: getattr(options, name) for name in _VIEW},
    )
    return Reviewed(photo.name, encoded, truth, regions, least)
