"""Weights files and students as nobody should write them: a table of names and makers.

`CRAFTED[name](folder)` writes one file and returns its path. Each is small; some would take all
memory, run code or end in a traceback if they were trusted. `python -m tests.crafted` loads files
in a process of limited memory, and prints an outcome each.
"""

from functools import partial

from tests.crafted.files import CANARY, FILES, HEADERS, PICKLES, TENSORS, plain, raw
from tests.crafted.states import (
    CONTAINERS,
    EMBEDDED,
    STATES,
    TEXT,
    VISION,
    cut,
    flipped,
    state_file,
)
from tests.crafted.students import STUDENTS

__all__ = ["CANARY", "CRAFTED", "NAMED", "WORKS", "may_work", "outcome"]

WORKS = "works"
NAMED = "named: "
"""Begins the names of files that are given as the weights of an architecture."""
WORKING = (  # beside those that are as they should be, and those with a few other bits
    "numbers of a byte",
    "doubles",
    "truths",
    "vision_cfg__head_width 48",
    "long text",  # resized, for a name
    "unknown format",
    "step of another source",
    "released before its start",
    "released huge step",
    "released step of a word",
    "released classes of arrays",
)

CRAFTED = {
    **{f"{container}: {name}": partial(state_file, name, container)
       for container in CONTAINERS for name in STATES
       if container != "script" or name not in ("no weights", "names", "long name")},
    **{f"{NAMED}{name}": partial(state_file, name, "pt") for name in STATES},
    **{f"pickle: {name}": raw(data) for name, data in PICKLES.items()},
    **{f"old pickle: {name}": plain(data, "a.pth") for name, data in PICKLES.items()},
    **{f"tensor: {name}": make for name, make in TENSORS.items()},
    **{f"header: {name}": make for name, make in HEADERS.items()},
    **{f"file: {name}": make for name, make in FILES.items()},
    **{f"embedded: {name}": make for name, make in EMBEDDED.items()},
    **{f"student: {name}": make for name, make in STUDENTS.items()},
    **{f"{container}: cut {share}": cut(share, container)
       for container in CONTAINERS for share in (0.001, 0.5, 0.999)},
    **{f"{container}: flipped {seed}": flipped(seed, container)
       for container in CONTAINERS for seed in range(6)},
}  # fmt: skip


def may_work(name):
    """Whether a file may be a model, whatever was done to it."""
    return "flipped" in name or "as it should be" in name or name.split(": ")[1] in WORKING


def outcome(path, *, named=False):
    """Load a file as a model and give it words; return `WORKS`, or the line of its refusal.

    Any other exception is the caller's to see. `named` is as the weights of an architecture.
    """
    import open_clip

    from maskclip.core.errors import MaskCLIPError
    from maskclip.tasks.segmenter import CLIPSegmenter, load

    architectures = open_clip.factory._MODEL_CONFIGS
    try:
        if named:
            config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
            architectures["ViT-crafted"] = config
            segmenter = load("ViT-crafted", weights=str(path), device="cpu")
        else:
            segmenter = load(str(path), device="cpu")
        known = (
            not isinstance(segmenter, CLIPSegmenter) and segmenter.trained.vocabulary is not None
        )
        segmenter.prepare(None if known else ["dog", "cat", "car"])
    except MaskCLIPError as error:
        return str(error)
    finally:
        architectures.pop("ViT-crafted", None)
    return WORKS
