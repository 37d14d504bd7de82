"""The weights from which the backbone of a student starts: timm's, the preview's, or a file's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskclip.clip.checkpoint import read_weights
from maskclip.clip.fitting import check_finite, in_order, misfit
from maskclip.clip.hub import TIMM_WEIGHTS, hub_file
from maskclip.core.config import PREVIEWS
from maskclip.core.errors import did_you_mean, quiet_loggers
from maskclip.imagenet.classifier import architecture_of, load_classifier
from maskclip.plus.config import FIRST_WEIGHTS, IMAGENET, RANDOM, TEACHER, StudentError


@contextmanager
def first_weights(source: str, backbone: str, **options: Any) -> Iterator[Path | None]:
    """Give timm a file of weights while the block runs; None stands for random ones.

    Args:
        source: one of `FIRST_WEIGHTS`, or a file: tensors with the names that timm gives them, or
            in timm's order; a classifier may be among them.
        backbone: timm's name of the architecture.
        options: of the architecture, as `timm.create_model` takes them.

    Raises:
        MaskCLIPError: the weights cannot be had or read, or are not of this architecture.
    """
    check_first_weights(source, backbone)
    if source == RANDOM:
        yield None
    elif source == IMAGENET:
        file = _imagenet_file(backbone)
        with quiet_loggers("timm"):  # it warns of a classifier's weights, which features do without
            yield file
    else:
        state = _read(source)
        fitting = _fitting(state, backbone, source=source, **options)
        # On Windows, a file that is still mapped cannot be removed.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "weights.safetensors"
            save_file(fitting, file)
            with quiet_loggers("timm"):
                yield file


def check_first_weights(source: str, backbone: str) -> None:
    """Refuse first weights that cannot be had, as far as is known before anything is downloaded.

    Args:
        source, backbone: as `first_weights` takes them.

    Raises:
        StudentError: timm has none, they are of another architecture, or there is no such file.
    """
    if source == IMAGENET:
        known = timm.get_pretrained_cfg(backbone)
        if known is None or not known.hf_hub_id:
            raise StudentError(
                f"timm has no pretrained weights of {backbone}; give a file of some with "
                f"`student_weights=FILE`, start from random ones with `student_weights={RANDOM}`, "
                "or take one of timm.list_pretrained()"
            )
    elif source in PREVIEWS:
        expected = architecture_of(source)
        if backbone.partition(".")[0] != expected:
            raise StudentError(
                f"`student_weights`: those of {source!r} are for the backbone {expected}, got "
                f"{backbone}; take `student=unet:{expected}`, or give `student_weights=FILE`"
            )
    elif source != RANDOM and not Path(source).is_file():
        raise StudentError(
            f"`student_weights`: no file {source!r}{did_you_mean(source, FIRST_WEIGHTS)}; expected "
            f"{', '.join(FIRST_WEIGHTS)}, or a .safetensors or .pth file of the weights of "
            f"{backbone}"
        )


def _imagenet_file(name: str) -> Path:
    """Return timm's default weights for a model; download them when not cached."""
    pretraining = timm.get_pretrained_cfg(name)
    assert pretraining is not None
    repository = str(pretraining.hf_hub_id)
    try:
        return hub_file(repository, TIMM_WEIGHTS)
    except OSError as error:
        preview = PREVIEWS[0]
        raise StudentError(
            f"the pretrained weights of {name} ({repository}/{TIMM_WEIGHTS}) are not on this "
            f"machine and cannot be downloaded ({error}); bring that file and give it with "
            f"`student_weights=FILE`, start from the teacher itself with `student={TEACHER}`, take "
            f"the backbone {architecture_of(preview)} with `student_weights={preview}`, whose "
            f"weights a package has, or start from random ones with `student_weights={RANDOM}`"
        ) from error


def _read(source: str) -> Mapping[str, Tensor]:
    if source in PREVIEWS:
        return load_classifier(source).network.state_dict()
    return read_weights(Path(source))[0]


def _fitting(
    state: Mapping[str, Tensor], backbone: str, *, source: str, **options: Any
) -> dict[str, Tensor]:
    """Return weights under timm's names, float32; zeros for a classifier that is none of timm's.

    Whole numbers, as BatchNorm's counts of batches, are left out: nothing that is used depends on
    them, and some files have none.

    Raises:
        MaskCLIPError: they are not those of the architecture, or not finite.
    """
    with torch.device("meta"):
        network: Any = timm.create_model(backbone, **options)
    named = network.pretrained_cfg.get("classifier") or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    expected = _floating(network.state_dict())
    given = _floating(state)
    body = _without(expected, heads)
    if not body.keys() <= given.keys():
        given = in_order(expected, given) or in_order(body, given) or given
    own = _without(given, heads)
    problem = misfit({key: tuple(value.shape) for key, value in body.items()}, own)
    if problem:
        raise StudentError(
            f"{source} does not fit the architecture: {problem}; expected weights of timm's "
            f"{backbone}: give `student_weights` a file of these, or take the `student` whose "
            "backbone they are of"
        )
    check_finite(own, source=source)
    classifier = {key: torch.zeros(expected[key].shape) for key in expected if key not in body}
    whole = classifier | {key: value.float() for key, value in own.items()}
    return {key: value.clone().contiguous() for key, value in whole.items()}


def _floating(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if value.is_floating_point()}


def _without(state: Mapping[str, Tensor], heads: tuple[str, ...]) -> dict[str, Tensor]:
    prefixes = tuple(f"{head}." for head in heads)
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}
