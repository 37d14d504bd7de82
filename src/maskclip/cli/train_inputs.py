"""What `maskclip train` learns from and starts from: data of a recipe, scenes, or own photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskclip.cli.inputs import check_words, open_data, read_vocabulary, warn_of_unused
from maskclip.core.class_lists import read_background
from maskclip.core.errors import MaskCLIPError

Confidence = float | tuple[float, ...] | None

if TYPE_CHECKING:
    from maskclip.core.samples import Samples
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.plus.config import Training

_MEASURED = 50  # photos, of however many
_SMALL = 0.75  # of the working size: below, enlarging costs more than it gives


def open_inputs(
    recipe: str | None,
    data: Path | None,
    images: Path | None,
    words: tuple[list[str], Path | None, str | None, str | None],
    labels: Path | None = None,
    validate: float | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> tuple[Training, Samples, Samples | None]:
    """Return what is trained, what it learns from, and the validation set.

    `words` are the names of classes, their file, a built-in set and the rule of the background.
    `validate` is the share of photos with labels to validate on, and `seed` chooses them. Photos
    of one's own are refused where `out`, the run folder, lies in theirs, or they in it.
    """
    if recipe is not None and images is not None and words[0]:
        check_words([recipe], words[0])  # as in -c dog cat
    if (recipe is None) == (images is None):
        what = "nothing to train on" if recipe is None else "a recipe has its own images"
        raise MaskCLIPError(f"{what}: give a RECIPE (`maskclip recipes`), or --images DIR")
    if images is not None:
        if data is not None:
            raise MaskCLIPError("--data belongs to recipes; your own photos are --images")
        if labels is None and validate is not None:
            raise MaskCLIPError("--validate keeps some of the labelled photos: give --labels")
        vocabulary = read_vocabulary(*words[:3]).with_background(read_background(words[3]))
        if out is not None:
            _check_apart(images, out)
        learnt = _learnable(vocabulary)
        opened: tuple[Training, Samples, Samples | None] = (
            _own_photos(images, learnt)
            if labels is None
            else _labeled_photos(images, learnt, labels, validate=validate, seed=seed)
        )
        return _with_scores(opened[0], vocabulary), *opened[1:]
    if labels is not None or validate is not None:
        raise MaskCLIPError("--labels and --validate belong to --images; a recipe has its own")
    if any(words):
        raise MaskCLIPError(
            "-c, --classes, --vocabulary and --background belong to --images; a recipe has its own"
        )
    from maskclip.trainings import get_training

    assert recipe is not None
    training = get_training(recipe).training
    if training.dataset == "emoji":
        if data is not None:
            raise MaskCLIPError("emoji is drawn: leave out --data")
        from maskclip.emoji.scenes import EmojiScenes, training_scenes

        return training, training_scenes(), EmojiScenes()
    samples = _published(training.dataset, data, training.split)
    validation = _published(training.dataset, data, "val")
    return training, samples, validation


def _check_apart(images: Path, out: Path) -> None:
    """Refuse a run folder whose overlays would be taken for photos by the next training."""
    photos, run = images.resolve(), out.resolve()
    if run.is_relative_to(photos) or photos.is_relative_to(run):
        raise MaskCLIPError(
            f"--out {out} and --images {images} lie in one another, and the next training would "
            "take what is drawn in a run folder for photos: choose another --out"
        )


def _learnable(vocabulary: Vocabulary) -> Vocabulary:
    """Return the classes without scores: those of the student are others.

    A background by threshold becomes a class that the student knows by what it looks like.
    """
    from maskclip.core.vocabulary import BACKGROUND

    plain = vocabulary.with_confidence({})
    return plain if vocabulary.threshold is None else plain.with_background([BACKGROUND])


def _with_scores(training: Training, vocabulary: Vocabulary) -> Training:
    """Return a training in which CLIP labels by the scores that a class file says."""
    from dataclasses import replace

    supervision, threshold = training.supervision, vocabulary.threshold
    return replace(
        training,
        supervision=replace(
            supervision,
            confidence=vocabulary.confidence or None,
            background=threshold is not None,
            threshold=threshold,
        ),
    )


def _published(name: str, data: Path | None, split: str) -> Samples:
    return open_data(name, data=data, split=split, images=None, masks=None, classes=None)


def _own_photos(images: Path, words: Vocabulary) -> tuple[Training, Samples, None]:
    from maskclip.core.config import DEFAULT_MODEL
    from maskclip.data.photos import open_photos
    from maskclip.trainings import own_training

    training = own_training("photos", DEFAULT_MODEL, classes=len(words))
    return training, open_photos(images, words), None


def _labeled_photos(
    images: Path, words: Vocabulary, labels: Path, *, validate: float | None, seed: int
) -> tuple[Training, Samples, Samples | None]:
    """Open photos of which some have true labels; the teacher labels the rest."""
    from dataclasses import replace

    from maskclip.cli.console import print_line, warning_line, working
    from maskclip.core.config import DEFAULT_MODEL
    from maskclip.core.text import counted
    from maskclip.data.photos import open_photos
    from maskclip.tasks.check_dataset import doubt_labels
    from maskclip.trainings import own_training

    if validate is not None and not 0 < validate < 1:
        raise MaskCLIPError(
            f"--validate: expected a share of the labelled photos in (0, 1), got {validate:g}"
        )
    photos = open_photos(images, words, labels)
    with working("looking at the labels"):
        doubt = doubt_labels(photos)
    for note in (*photos.notes, *((doubt,) if doubt else ())):
        warning_line(note)
    warn_of_unused(photos.unused_masks())
    known = photos.annotations
    assert known is not None
    kept = None
    if validate is not None:
        photos, kept = photos.split_off(validate, seed=seed)
    count = len(known.photos) - (len(kept) if kept is not None else 0)
    held = f", {len(kept):,} kept to validate on" if kept is not None else ""
    print_line(
        f"{known.title} of {counted(count, 'photo', 'photos')} are learnt as they are{held}; "
        "the teacher labels the rest of these, and the "
        f"{counted(len(photos) - count, 'other', 'others')}"
    )
    training = own_training("photos", DEFAULT_MODEL, classes=len(words))
    supervision = replace(training.supervision, keep_labels=True)
    return replace(training, supervision=supervision), photos, kept


def say_if_small(samples: Samples, training: Training) -> None:
    """Say that photos are enlarged, and how to train at their own size."""
    from maskclip.cli.console import warning_line
    from maskclip.data.images import image_size

    step = -(-len(samples) // _MEASURED)
    try:
        paths = [samples.paths(index)[0] for index in range(0, len(samples), step)]
        sides = sorted(min(image_size(path)) for path in paths)
    except (MaskCLIPError, OSError):  # which is reported by others
        return
    side = sides[len(sides) // 2]
    if side < _SMALL * training.short_side:
        warning_line(
            f"the photos' short side is about {side} px, and they are enlarged to "
            f"{training.short_side} px: --short-side {side} trains at their own size, faster"
        )


def least_scores(given: float | None, needed: Confidence) -> Confidence:
    """Return the scores that labels need: those of a class file, and what is given elsewhere."""
    if given is None or not isinstance(needed, tuple):
        return given
    return tuple(own or given for own in needed)


def checked_scores(training: Training, samples: Samples, *, given: float | None) -> Training:
    """Return a training without the scores of a class file where there are none like them.

    Warns of that, and of a score or a background threshold that no label is below.
    """
    from dataclasses import replace

    from maskclip.cli.console import warning_line
    from maskclip.core.cleaning import Cleaning
    from maskclip.core.method import CLEAN
    from maskclip.core.methods import gives_probabilities
    from maskclip.tasks.classes import useless

    supervision = training.supervision
    probable, needed = gives_probabilities(training.teacher.method), supervision.confidence
    if isinstance(needed, tuple):
        needed = given
        if not probable or supervision.clip_guided is None:
            why = "no labels of CLIP are learnt" if probable else "the method gives none like them"
            warning_line(
                f"the scores that classes need ([confidence] of the class file) are left out: {why}"
            )
            training = replace(training, supervision=replace(supervision, confidence=given))
    words = samples.vocabulary.with_background(supervision.threshold)
    if probable:
        idle = Cleaning(confidence=needed or 0).useless(words)
        threshold = None if supervision.threshold is None else useless(words, CLEAN)
        for warning in (idle, threshold):
            if warning is not None:
                warning_line(warning)
    return training


def read_student_weights(
    given: str | None, student: str | None, initial: Path | None
) -> str | None:
    """Return from which weights a backbone starts; of some students, all weights come with them.

    Raises:
        MaskCLIPError: it is one of these, and `--student-weights` is given too.
    """
    from maskclip.plus.config import RANDOM, TEACHER

    others = {"--init": initial is not None, f"--student {TEACHER}": student == TEACHER}
    for option, chosen in others.items():
        if chosen and given is not None:
            raise MaskCLIPError(
                f"--student-weights and {option}: a student starts from one of them; leave the "
                "other out"
            )
    return RANDOM if any(others.values()) else given
