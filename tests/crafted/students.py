"""Students whose metadata or weights are wrong, in the three formats."""

import json
import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from maskclip.core.vocabulary import Vocabulary
from tests.crafted.files import Bomb
from tests.crafted.states import changed


@cache
def student():
    """Return a tiny student."""
    from maskclip.plus.config import StudentConfig
    from maskclip.plus.student import build_student

    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    return build_student(StudentConfig(depth=50, width=8, embed_dim=8), F.normalize(rows, dim=1))


def _values(changes):
    from maskclip.plus.files import TrainedStudent

    words = Vocabulary.parse(["dog", "cat", "car"])
    values = TrainedStudent(student(), words, 3).metadata.to_dict()
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (values[part] if part else values)[name] = value
    return values


def _student(tensors=None, text=None, **changes):
    """Return a maker of a student's safetensors file, with changes."""

    def make(folder):
        state = changed(**(tensors or {}))(student().state_dict())
        described = json.dumps(_values(changes)) if text is None else text
        save_file(state, folder / "a.safetensors", metadata={"maskclip": described})
        return folder / "a.safetensors"

    return make


def _lightning(values=None, *, tensors=None, **content):
    """Return a maker of a checkpoint of a training, with changes."""

    def make(folder):
        state = changed(**(tensors or {}))(student().state_dict())
        state = {f"student.{key}": value for key, value in state.items()}
        made = {"maskclip": _values(values or {}), "global_step": 3, "state_dict": state, **content}
        torch.save(made, folder / "a.ckpt")
        return folder / "a.ckpt"

    return make


def _released(meta=None, **tensors):
    """Return a maker of a checkpoint of the authors' layout, with changes."""
    from maskclip.plus.released import published_name

    def make(folder):
        state = {published_name(k): v for k, v in student().state_dict().items()}
        state = changed(**tensors)(state)
        torch.save({"meta": meta or {}, "state_dict": state}, folder / "a.pth")
        return folder / "a.pth"

    return make


HUGE = 10**400


def _spelt(value):
    return "huge" if type(value) is int and abs(value) >= HUGE else f"{value!r:.20}"


NUMBERS = (
    ("short_side", 20_000), ("short_side", 10**25), ("short_side", HUGE), ("short_side", -3),
    ("short_side", True), ("short_side", None), ("short_side", 0.5), ("step", HUGE), ("step", 2.5),
    ("step", 10**25), ("step", -5), ("version", HUGE), ("version", None), ("config", []),
    ("config__width", HUGE), ("config__width", 0), ("config__width", 3), ("config__width", 10**5),
    ("config__depth", 10**9), ("config__skip", 0), ("config__embed_dim", HUGE),
    ("config__dropout", 0.5), ("config__decoder", "x" * 10**5),
    ("config__decoder", None), ("vocabulary", []), ("vocabulary", "dog"),
    ("vocabulary__threshold", HUGE), ("vocabulary__threshold", -HUGE),
    ("vocabulary__threshold", math.nan), ("vocabulary__names", ["\ud800", "b", "c"]),
    ("vocabulary__names", [["a"], "b", "c"]), ("vocabulary__names", ["a"] * 10**5),
    ("clip", ""), ("clip", "../clip.pt"), ("clip", "hf-hub:a/.."), ("clip", "C:\\clip.pt"),
    ("clip", "a\nb"), ("clip", 5),
    ("clip", "x" * 10**5), ("clip", []), ("templates", None), ("templates", 10**25),
    ("vocabulary__colors", [[HUGE, 0, 0]] * 3), ("vocabulary__prompts", [[], [], []]),
)  # fmt: skip
STEM = "backbone__layer1__0__conv1__weight"
STUDENTS = {
    "as it should be": _student(),
    "lightning as it should be": _lightning(),
    "released as it should be": _released(),
    **{f"{key} {_spelt(value)}": _student(**{key: value}) for key, value in NUMBERS},
    **{
        f"{key} {_spelt(value)} by lightning": _lightning({key: value})
        for key, value in NUMBERS
        if key != "step"  # theirs is another
    },
    "step of another source": _lightning({"step": -5}),
    **{
        f"backbone {_spelt(name)}": _student(config__decoder="unet", config__backbone=name)
        for name in ("nothing\n", 5, "vit_giant_patch14_dinov2", "resnet18", "resnet18.nothing", "")
    },
    **{f"text {text:.12}": _student(text=text) for text in (
        "", "null", "[]", "{", "[" * 10**5, '{"version": 1' + "0" * 5000 + "}",
        json.dumps({"version": 1, "config": {}}), '{"short_side": 1e400}',
    )},
    "nan rows": _student({"rows": torch.full((3, 8), math.nan)}),
    "rows of one axis": _student({"rows": torch.ones(8)}),
    "no rows": _student({"rows": None}),
    "infinite statistics": _student({"backbone__bn1__running_var": torch.full((8,), math.inf)}),
    "rows without memory": _lightning(tensors={"rows": torch.ones(3, 8, device="meta")}),
    "sparse rows": _lightning(tensors={"rows": torch.eye(8)[:3].to_sparse()}),
    "huge step": _lightning(global_step=10**5000),
    "step of a tensor": _lightning(global_step=torch.ones(3)),
    "description of a list": _lightning(maskclip=[1]),
    "lightning bomb": _lightning(more=Bomb()),
    "released rows without memory": _released(
        **{"decode_head__text_embeddings": torch.ones(3, 8, device="meta")}),
    "released before its start": _released({"iter": -5}),
    "released huge step": _released({"iter": 10**5000}),
    "released step of a word": _released({"iter": "many"}),
    "released classes": _released({"CLASSES": [["a"], {}, 10**5000]}),
    "released classes of arrays": _released({"CLASSES": np.array(["a", "b", "c"])}),
    "released of no width": _released(**{STEM: torch.ones(0, 3, 1, 1)}),
    "released of width 3": _released(**{STEM: torch.ones(3, 3, 1, 1)}),
    "released rows of one axis": _released(**{"decode_head__text_embeddings": torch.ones(8)}),
    "released nan": _released(**{"backbone__stem__0__weight": torch.full((4, 3, 3, 3), math.nan)}),
}  # fmt: skip
