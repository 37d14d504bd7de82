"""What the options of verbs name, opened: classes, photos, data sets, files of weights."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip.core.errors import MaskCLIPError
from maskclip.data.specs import SPECS

if TYPE_CHECKING:
    from maskclip.core.samples import Samples
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.data.datasets import Labeled
    from maskclip.data.sources import Found
    from maskclip.tasks.evaluation.settings import Evaluation

DATASETS = (*SPECS, "emoji", "folder")
_CLASS_FILES = (".txt", ".toml", ".json", ".yaml", ".yml", ".csv", ".tsv", ".pbtxt")
_MOST_NAMES = 3  # masks, in a message


def read_vocabulary(names: Sequence[str], file: Path | None, builtin: str | None) -> Vocabulary:
    """Return the vocabulary of `-c`, `--classes` or `--vocabulary`, of which one must be given.

    Raises:
        MaskCLIPError: none or several are given, or the classes cannot be used.
    """
    from maskclip.cli.console import warning_line
    from maskclip.core.vocabulary import Vocabulary, builtin_names

    given = [bool(names), file is not None, builtin is not None]
    if sum(given) != 1:
        what = "no classes" if not any(given) else "several sources of classes"
        raise MaskCLIPError(
            f"{what}: give -c NAME (repeat it for more), --classes FILE, or --vocabulary NAME "
            "(see `maskclip vocabularies`)"
        )
    if file is not None:
        if not file.exists() and str(file) in builtin_names():
            raise MaskCLIPError(f"{file}: no such file; the built-in set is --vocabulary {file}")
        return Vocabulary.from_file(file)
    if builtin is not None:
        if Path(builtin).is_file() and builtin not in builtin_names():
            raise MaskCLIPError(f"{builtin} is a file: give it as --classes {builtin}")
        return Vocabulary.builtin(builtin)
    for name in names:
        if Path(name).suffix in _CLASS_FILES and Path(name).is_file():
            raise MaskCLIPError(f"{name} is a file: give it as --classes {name}")
        if "," in name and "=" not in name:
            warning_line(f"{name!r} is one class; for several, repeat -c: -c dog -c cat")
    return Vocabulary.parse(names)


def check_photos(arguments: Sequence[str], names: Sequence[str] | None) -> None:
    """Refuse addresses, and words that follow a class, where photos are expected.

    Raises:
        MaskCLIPError: says how it is written.
    """
    for argument in arguments:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", argument):
            raise MaskCLIPError(
                f"{argument} is an address: download it first, and give the file's path"
            )
    if names:
        check_words(arguments, names)


def find_photos(arguments: Sequence[str], listed: Path | None, *, out: Path) -> Found:
    """Return the photos of folders, patterns, a list and of standard input, but those in `out`.

    Raises:
        MaskCLIPError: none are named, or a list cannot be read.
    """
    from maskclip.data.sources import find_sources, read_list

    wanted = [argument for argument in arguments if argument != "-"]
    if "-" in arguments:
        wanted += read_list(sys.stdin.buffer)
    if listed is not None:
        with listed.open("rb") as file:
            wanted += read_list(file)
    if not wanted:
        raise MaskCLIPError(
            "no photos: name folders, patterns or images, give --list FILE, or pipe a list to `-`"
        )
    return find_sources(wanted, outside=out)


def check_words(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Refuse words that follow a class, as in `-c dog cat`, and are no path.

    Raises:
        MaskCLIPError: says how several classes are written.
    """
    for argument in arguments:
        plain = argument != "-" and not re.search(r"[./\\*?[]", argument)
        if plain and not Path(argument).exists():
            raise MaskCLIPError(
                f"{argument}: no such file or folder; for several classes, repeat -c: "
                f"-c {shlex.quote(names[-1])} -c {shlex.quote(argument)}"
            )


def read_words(
    names: Sequence[str] | None,
    file: Path | None,
    builtin: str | None,
    background: str | None,
    *,
    model: str,
) -> Vocabulary | None:
    """Return the classes that a model looks for, its background included.

    None are the classes of a student's or of an exported file, which need not be given.

    Raises:
        MaskCLIPError: as `read_vocabulary`, or the background cannot be used.
    """
    from maskclip.core.class_lists import read_background
    from maskclip.tasks.model_names import names_exported, names_student

    rule, own = read_background(background), names_student(model) or names_exported(model)
    if own and not names and file is None and builtin is None:
        if rule is not None:
            raise MaskCLIPError(
                f"--background goes with classes, and {model} takes its own: give those that it is "
                "to look for, too"
            )
        return None
    return read_vocabulary(names or [], file, builtin).with_background(rule)


def open_data(
    name: str,
    *,
    data: Path | None,
    split: str,
    images: Path | None,
    masks: Path | None,
    classes: Path | None,
    missing: bool = False,
) -> Labeled:
    """Open a data set by name, or one's own as `folder`, then of photos with masks or of all.

    Raises:
        MaskCLIPError: an option is missing or belongs elsewhere, or the data set is not there.
    """
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.data.datasets import open_dataset
    from maskclip.data.photos import open_folder

    if name == "folder":
        if images is None or masks is None or classes is None:
            raise MaskCLIPError("folder needs --images DIR, --masks DIR and --classes FILE")
        return open_folder(images, masks, Vocabulary.from_file(classes), missing=missing)
    if images or masks or classes:
        raise MaskCLIPError(f"--images, --masks and --classes belong to `folder`, not to {name}")
    if data is None and name in SPECS:
        raise MaskCLIPError(
            f"{name} needs --data ROOT, the folder that holds "
            f"{SPECS[name].splits['val'].parts[0].images.partition('/')[0]}"
        )
    return open_dataset(name, data or Path(), split=split)


def default_evaluation(
    dataset: str, protocol: str | None = None, *, model: str | None = None
) -> Evaluation:
    """Return how a data set is evaluated where nothing else, or only this, is given."""
    from maskclip.core.config import DEFAULT_MODEL, PREVIEWS, ModelConfig
    from maskclip.tasks.evaluation.settings import Evaluation, default_templates

    name = model or ("emoji" if dataset == "emoji" else DEFAULT_MODEL)
    own = dataset in ("emoji", "folder") or name in PREVIEWS  # of which there are no papers
    protocol = protocol or ("segment" if own else "published")
    return Evaluation(
        dataset=dataset,
        model=ModelConfig(name=name, templates=default_templates(protocol), precision="float32"),
        protocol=protocol,
    )


def open_samples(
    name: str,
    *,
    data: Path | None,
    split: str | None,
    size: int | None,
    images: Path | None,
    masks: Path | None,
    classes: Path | None,
) -> Samples:
    """Open a data set; refuse options that do not belong to it.

    Raises:
        MaskCLIPError: says which option, or what is missing.
    """
    if name != "emoji":
        if size is not None:
            raise MaskCLIPError(f"--size belongs to `emoji`, not to {name}")
        if name == "folder" and (split or data):
            raise MaskCLIPError("folder takes no --split and no --data: give --images and --masks")
        return open_data(
            name, data=data, split=split or "val", images=images, masks=masks, classes=classes
        )
    from maskclip.emoji.scenes import SCENE_SIZE, EmojiScenes

    if split not in (None, "val") or any((data, images, masks, classes)):
        raise MaskCLIPError(
            "emoji is drawn and has only the split val: leave out --split, --data, --images, "
            "--masks and --classes"
        )
    return EmojiScenes(size=size or SCENE_SIZE)


def show_notes(samples: Samples) -> None:
    """Warn of what users should know about samples."""
    from maskclip.cli.console import warning_line
    from maskclip.data.photos import Photos

    for note in samples.notes:
        warning_line(note)
    if isinstance(samples, Photos):
        warn_of_unused(samples.unused_masks())


def warn_of_count(samples: Samples, count: int) -> None:
    """Warn where scores are of fewer images than the published ones."""
    from maskclip.cli.console import warning_line

    if samples.official not in (None, count):
        listed = f" of the {len(samples):,} listed" if count < len(samples) else ""
        warning_line(
            f"{count:,} images{listed}, but {samples.name} {samples.split} officially has "
            f"{samples.official:,}: these scores are of the {count:,} alone, and not comparable "
            "with published ones"
        )


def read_weights(given: Sequence[str] | None, models: Collection[str]) -> dict[str, str]:
    """Return the files, or `random`, that are given for some of the models as MODEL=FILE.

    Raises:
        MaskCLIPError: not written so, no such file, or no such model.
    """
    return _of_models(
        given,
        models,
        "--weights",
        lambda file: file == "random" or Path(file).is_file(),
        "MODEL=FILE, and the file to be there, or MODEL=random",
    )


def read_tokenizers(given: Sequence[str] | None, models: Collection[str]) -> dict[str, str]:
    """Return the folders of tokenizers that are given for some of the models as MODEL=DIR.

    Raises:
        MaskCLIPError: not written so, no such folder, or no such model.
    """
    return _of_models(
        given,
        models,
        "--tokenizer",
        lambda folder: Path(folder).is_dir(),
        "MODEL=DIR, and the folder to be there",
    )


def _of_models(
    given: Sequence[str] | None,
    models: Collection[str],
    option: str,
    is_there: Callable[[str], bool],
    expected: str,
) -> dict[str, str]:
    """Return what is given for some of the models as MODEL=VALUE."""
    found = {}
    for text in given or ():
        model, _, value = text.partition("=")
        if not value or not is_there(value):
            raise MaskCLIPError(f"{option} {text}: expected {expected}")
        if model not in models:
            known = ", ".join(sorted(models))
            raise MaskCLIPError(f"{option} {text}: no model is {model!r} here: there are {known}")
        found[model] = value
    return found


def warn_of_unused(masks: Sequence[Path]) -> None:
    """Say which masks belong to no photo, if there are some."""
    from maskclip.cli.console import warning_line

    if masks:
        some = ", ".join(map(str, masks[:_MOST_NAMES]))
        dots = ", ..." if len(masks) > _MOST_NAMES else ""
        warning_line(f"masks without a photo: {len(masks):,} ({some}{dots})")
