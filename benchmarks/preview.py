"""What the preview `photo` costs a photo, step by step: `python benchmarks/preview.py`.

One photo, from a decoded picture to labels, in turn in one process (A B C A B C ...): the bare
image network, `segment` with each refinement, and a student that starts from the preview.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import CLOCKS, in_turn, machine, ratios, show, spans

from maskclip.core.methods import CLEAN
from maskclip.core.resize import fit_within
from maskclip.core.vocabulary import Vocabulary
from maskclip.imagenet.classifier import load_classifier
from maskclip.plus.files import TrainedStudent
from maskclip.plus.from_teacher import config_from, start_from
from maskclip.plus.student import build_student
from maskclip.tasks.segmenter import load
from maskclip.tasks.without_clip import StudentSegmenter

WAYS: dict[str, dict[str, Any]] = {
    "`segment --refine none`": {"refine": ()},
    "`segment --refine dominant`": {"refine": ("dominant",)},
    "`segment --refine none --key-smoothing 1`": {"refine": (), "key_smoothing": 1.0},
    "`segment` (dominant, pamr)": {"refine": ("dominant", "pamr")},
}


def student(words: Vocabulary) -> StudentSegmenter:
    """Return an untrained student of the preview: training changes nothing of what it costs."""
    source = load_classifier()
    rows, classes = source.word_rows(words.prompts)
    config = config_from(source, CLEAN, classes, embed_dim=rows.shape[1], background=False)
    network = build_student(config, rows)
    start_from(network.backbone, source, CLEAN)
    return StudentSegmenter(
        TrainedStudent(network, words),
        name="student",
        fingerprint="",
        method=CLEAN,
        device=torch.device("cpu"),
        precision="float32",
    )


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--size", type=int, nargs=2, default=(375, 500), help="height and width, px"
    )
    parser.add_argument("--short-side", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--markdown", action="store_true")
    how = parser.parse_args()
    torch.set_num_threads(how.threads)
    words = Vocabulary.builtin("voc20")
    photo = np.random.default_rng(0).integers(0, 256, (*how.size, 3), dtype=np.uint8)
    preview, pupil = load("photo"), student(words)
    height, width = fit_within(how.size, short=how.short_side, long=4 * how.short_side)
    pixels = torch.rand(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    network: Any = load_classifier().network
    runs: dict[str, Callable[[], object]] = {
        "the bare image network": partial(network.forward_features, pixels)
    }
    for name, options in WAYS.items():
        runs[name] = partial(preview.segment, photo, words, short_side=how.short_side, **options)
    runs["a student of it"] = partial(pupil.segment, photo, words, short_side=how.short_side)
    times = in_turn(runs, how.repeats, clock=how.clock)
    rows = [["way", "seconds", "beside the bare network"]]
    bare = next(iter(runs))
    rows += [[name, spans(taken), ratios(times, name, bare)] for name, taken in times.items()]
    photos = f"{how.size[1]} x {how.size[0]} px at a short side of {how.short_side}"
    title = f"A photo of {photos}, {len(words)} classes; {machine()}, {how.clock} clock"
    show(title, rows, markdown=how.markdown)


if __name__ == "__main__":
    main()
