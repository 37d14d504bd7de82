"""State_dicts of a tiny CLIP with something wrong, in every container; and the embedded format."""

import json
import math
import random
import warnings
from functools import cache, partial

import torch
from safetensors.torch import save_file
from torch import nn

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
CONV, POSITIONS, TABLE = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "token_embedding.weight",
)


@cache
def clip_state():
    """Return the weights of a tiny CLIP."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(16, dict(VISION), dict(TEXT)).state_dict()


def changed(**changes):
    """Return a change of a state_dict: names (dots as __) to values, None removes."""

    def change(state):
        state = {**state, **{key.replace("__", "."): value for key, value in changes.items()}}
        return {key: value for key, value in state.items() if value is not None}

    return change


def broken(key, value, index=0):
    """Return a change of one value of one tensor."""

    def change(state):
        tensor = state[key].clone()
        tensor.view(-1)[index] = value
        return {**state, key: tensor}

    return change


def _many_blocks(state):
    part = "visual.transformer.resblocks."
    first = {key: value for key, value in state.items() if key.startswith(f"{part}0.ln_1")}
    more = {
        key.replace("blocks.0.", f"blocks.{n}."): first[key] for n in range(300) for key in first
    }
    return {**state, **{key: value.clone() for key, value in more.items()}}


STATES = {
    "as it should be": changed(),
    "nan": broken("visual.proj", math.nan, 3),
    "infinite": broken("text_projection", -math.inf),
    "nan statistics of half": lambda s: {k: broken(k, math.nan)(s)[k].half() for k in s},
    "missing": changed(visual__proj=None),
    "extra": changed(extra=torch.zeros(1)),
    "no axes": changed(visual__conv1__weight=torch.tensor(1.0)),
    "one axis": changed(visual__conv1__weight=torch.ones(4)),
    "five axes": changed(visual__conv1__weight=torch.ones(1, 1, 1, 1, 1)),
    "empty": changed(visual__conv1__weight=torch.ones(64, 3, 0, 0)),
    "no patch": changed(visual__conv1__weight=torch.ones(64, 3, 1, 0)),
    "wide": changed(visual__conv1__weight=torch.ones(100_000, 3, 1, 1)),
    "narrow": changed(visual__conv1__weight=torch.ones(3, 3, 16, 16)),
    "table of one axis": changed(token_embedding__weight=torch.ones(49408)),
    "few words": changed(token_embedding__weight=torch.ones(10, 8)),
    "projection of no axes": changed(text_projection=torch.tensor(2.0)),
    "projection of one axis": changed(text_projection=torch.ones(8)),
    "positions of one axis": changed(visual__positional_embedding=torch.ones(5)),
    "no positions": changed(visual__positional_embedding=torch.ones(0, 64)),
    "positions of no square": changed(visual__positional_embedding=torch.ones(7, 64)),
    "long text": changed(positional_embedding=torch.ones(100_000, 8)),
    "hot": changed(logit_scale=torch.tensor(1000.0)),
    "two scales": changed(logit_scale=torch.ones(2)),
    "scale nan": changed(logit_scale=torch.tensor(math.nan)),
    "complex": changed(visual__proj=torch.ones(64, 16, dtype=torch.complex64)),
    "numbers of a byte": lambda s: {k: v.to(torch.int8) for k, v in s.items()},
    "doubles": lambda s: {k: v.double() for k, v in s.items()},
    "truths": changed(visual__proj=torch.ones(64, 16, dtype=torch.bool)),
    "blocks": _many_blocks,
    "no weights": lambda _: {},
    "resnet of no shape": lambda _: {"visual.layer1.0.conv1.weight": torch.tensor(1.0)},
    "names": changed(**{"a\nb\x1b[31m\u202e": torch.ones(1)}),
    "long name": changed(**{"a" * 100_000: torch.ones(1)}),
}


class _Part(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(state, path):
    """Write a state_dict as a TorchScript archive."""
    root = _Part()
    for key, value in state.items():
        *parents, name = key.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, _Part())
            module = getattr(module, parent)
        module.register_buffer(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), str(path))


CONTAINERS = {
    "pt": ("a.pt", torch.save),
    "legacy": ("a.pth", partial(torch.save, _use_new_zipfile_serialization=False)),
    "script": ("a.pt", scripted),
    "safetensors": (
        "a.safetensors",
        lambda state, path: save_file({k: v.contiguous() for k, v in state.items()}, path),
    ),
}


def state_file(name, container, folder):
    file, write = CONTAINERS[container]
    state = {key: value.clone() for key, value in STATES[name](clip_state()).items()}
    write(state, folder / file)
    return folder / file


def flipped(seed, container):
    """A file some of whose bytes are others."""

    def make(folder):
        path = state_file("as it should be", container, folder)
        content = bytearray(path.read_bytes())
        dice = random.Random(seed)
        for _ in range(8):
            edge = min(len(content), 40_000)
            at = dice.randrange(edge)
            content[at if dice.random() < 0.5 else -1 - at] = dice.randrange(256)
        path.write_bytes(content)
        return path

    return make


def cut(share, container):
    def make(folder):
        path = state_file("as it should be", container, folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return path

    return make


def _embedded(config=None, tensors=None, **metadata):
    """Return a maker of a file of the embedded format, with changes."""

    def make(folder):
        state = {key: value.contiguous() for key, value in clip_state().items() if key != TABLE}
        state["token_embedding.ids"] = torch.tensor([320, 1929, 49406, 49407])
        state["token_embedding.rows"] = torch.ones(4, 8)
        state = changed(**(tensors or {}))(state)
        values = {"embed_dim": 16, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)}
        for key, value in (config or {}).items():
            part, _, name = key.rpartition("__")
            (values[part] if part else values)[name] = value
        described = {
            "format": "maskclip-embedded-1",
            "config": json.dumps(values),
            "short_side": "96",
            **metadata,
        }
        save_file(state, folder / "a.safetensors", metadata=described)
        return folder / "a.safetensors"

    return make


IDS, ROWS = "token_embedding__ids", "token_embedding__rows"
EMBEDDED = {
    "as it should be": _embedded(),
    **{f"short side {text:.20}": _embedded(short_side=text)
       for text in ("-3", "0", "1e3", "20000", "1" + "0" * 25, "9" * 5000, "", "NaN")},
    **{f"{key} {value!s:.20}": _embedded({key: value}) for key, value in (
        ("embed_dim", -1), ("embed_dim", 10**12), ("embed_dim", None), ("embed_dim", 1.5),
        ("vision_cfg", None), ("vision_cfg", []), ("vision_cfg__width", 10**5),
        ("vision_cfg__width", 0), ("vision_cfg__head_width", 0), ("vision_cfg__head_width", 48),
        ("vision_cfg__layers", 10**9), ("vision_cfg__layers", [1, 1]), ("vision_cfg__layers", "1"),
        ("vision_cfg__patch_size", 0), ("vision_cfg__image_size", 10**9),
        ("vision_cfg__image_size", True), ("vision_cfg__act_kwargs", {}), ("text_cfg", None),
        ("text_cfg__vocab_size", 10**12), ("text_cfg__vocab_size", 10), ("text_cfg__layers", 10**9),
        ("text_cfg__context_length", 10**9), ("text_cfg__width", 10**5), ("text_cfg__heads", 3),
        ("text_cfg__hf_model_name", "someone/model"), ("quick_gelu", [1]), ("custom_text", True),
    )},
    "words beyond": _embedded(tensors={IDS: torch.tensor([1, 2, 3, 10**12])}),
    "words below": _embedded(tensors={IDS: torch.tensor([1, 2, 3, -1])}),
    "words of two axes": _embedded(tensors={IDS: torch.ones(2, 2)}),
    "no words": _embedded(tensors={IDS: torch.ones(0), ROWS: torch.ones(0, 8)}),
    "rows of one axis": _embedded(tensors={ROWS: torch.ones(4)}),
    "no rows": _embedded(tensors={ROWS: None}),
    "wide rows": _embedded(tensors={ROWS: torch.ones(4, 10**5)}),
    "nan rows": _embedded(tensors={ROWS: torch.full((4, 8), math.nan)}),
    "unknown format": _embedded(format="maskclip-embedded-9"),
}  # fmt: skip
