"""Files of torch's read by our own reader: as torch reads them, and without running anything."""

import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from maskclip.clip.archives import read_torch_file
from maskclip.clip.checkpoint import WeightsError, read_checkpoint, read_weights


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(12, 4))
        self.out_proj = nn.Linear(4, 4)
        self.scale = 0.5
        self.order = [2, 0, 1]
        self.beside = torch.ones(3)  # neither parameter nor buffer: no part of a state_dict

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = x @ self.in_proj_weight[:4].to(x.dtype) * self.scale
        return self.out_proj(mixed) + torch.arange(4) * self.beside.sum()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.ln_1 = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.ln_1(self.attn(x)))


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, stride=2)
        self.bn1 = nn.BatchNorm2d(4)
        self.class_embedding = nn.Parameter(torch.randn(4))
        self.resblocks = nn.Sequential(Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.bn1(self.conv1(x)).flatten(2).mT + self.class_embedding
        return self.resblocks(found)


class Clip(nn.Module):
    """Named and nested as OpenAI's are, with constants, lists and weights under two names."""

    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.table = nn.Parameter(torch.randn(4, 6).t())  # its strides are not those of its shape
        self.again = self.visual.class_embedding
        self.register_buffer("input_resolution", torch.tensor(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.visual(x) @ self.table.t().to(x.dtype)
        return found * self.logit_scale + torch.tensor([1.5, 2.5, 3.5, 4.5, 5.5, 6.5])


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; OpenAI's files stay as they are
        yield


def archive(path, *, traced=False, half=False):
    torch.manual_seed(0)
    model = Clip().eval()
    made = torch.jit.trace(model, torch.rand(1, 3, 8, 8)) if traced else torch.jit.script(model)
    torch.jit.save(made.half() if half else made, str(path))
    return path


@pytest.mark.parametrize("traced", [False, True], ids=["scripted", "traced"])
@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
def test_an_archive_is_read_as_torchscript_reads_it(traced, half, quiet, tmp_path):
    path = archive(tmp_path / "ViT.pt", traced=traced, half=half)
    expected = torch.jit.load(str(path)).state_dict()
    assert any("constants" in name for name in zipfile.ZipFile(path).namelist())
    file = read_torch_file(path)
    assert file.is_script
    found = file.read(file.content)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    assert found["again"].data_ptr() == found["visual.class_embedding"].data_ptr()
    loaded = read_checkpoint(path)
    assert loaded.quick_gelu
    assert "input_resolution" not in loaded.state


SETS_STATE = """
class Thief(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self):
        return {KEPT}, self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[{KIND}, bool]):
        torch.save(state[1], MARKER)  # writes a file
        self.weight = {TAKEN}
        self.training = state[1]
"""


@pytest.mark.parametrize(
    ("kept", "kind", "taken"),
    [
        ("self.weight", "torch.Tensor", "state[0]"),
        ("{'weight': self.weight}", "Dict[str, torch.Tensor]", "state[0]['weight']"),
    ],
)
def test_code_of_an_archive_never_runs(kept, kind, taken, quiet, tmp_path, monkeypatch):
    marker = tmp_path / "it ran"
    source = SETS_STATE.replace("{KEPT}", kept).replace("{KIND}", kind).replace("{TAKEN}", taken)
    source = source.replace("MARKER", repr(str(marker)))
    module = tmp_path / "thief.py"
    module.write_text(
        f"from typing import Dict, Tuple\nimport torch\nfrom torch import nn\n{source}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    thief = importlib.reload(importlib.import_module("thief")).Thief()
    path = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.script(nn.Sequential(thief)), str(path))
    assert not marker.exists()
    with pytest.raises(WeightsError, match=r"weights\.pt: not a readable|run code"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.jit.load(str(path))  # and it would have
    assert marker.exists()


def test_weights_that_a_module_makes_by_code_are_not_taken_as_they_lie(quiet, tmp_path):
    """A dictionary for `__setstate__` looks like attributes, which it may double or drop."""
    path = archive(tmp_path / "a.pt")
    target = tmp_path / "b.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("test_archives.py"):
                content = content.replace(
                    b"  def forward",
                    b"  def __setstate__(self, s: int) -> None:\n    pass\n  def forward",
                )
            new.writestr(entry.filename, content)
    read_checkpoint(path)
    with pytest.raises(WeightsError, match="restored by code of its own"):
        read_checkpoint(target)


VIEWS = {
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "offset": torch.arange(10.0)[4:],
    "steps": torch.arange(10.0)[1::3],
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "half": torch.tensor([1.5, -2]).half(),
    "bfloat16": torch.tensor([1.5, -2]).bfloat16(),
    "double": torch.tensor([1e300]),
    "bool": torch.tensor([True, False]),
    "int8": torch.tensor([-3, 3], dtype=torch.int8),
    "uint16": torch.tensor([7], dtype=torch.uint16),
    "float8": torch.tensor([1.5]).to(torch.float8_e4m3fn),
    "parameter": nn.Parameter(torch.ones(2)),
    "buffer": nn.Buffer(torch.ones(2)),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", VIEWS)
def test_tensors_are_read_as_torch_reads_them(name, protocol, legacy, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(
        {"x": VIEWS[name], "y": torch.ones(2)},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    if legacy and name in ("uint16", "float8"):
        pytest.skip("torch itself cannot read what it writes")
    found, _ = read_weights(path)
    value = VIEWS[name].detach()
    assert (found["x"].dtype, found["x"].shape) == (value.dtype, value.shape)
    assert torch.equal(found["x"].float(), value.float())
    if protocol == 2:
        assert torch.equal(torch.load(path, weights_only=True)["x"].float(), value.float())


@pytest.mark.parametrize("legacy", [False, True])
def test_shared_weights_stay_shared(legacy, tmp_path):
    table = torch.arange(12.0)
    state = {"all": table, "part": table[3:7], "view": table.view(3, 4)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    found, _ = read_weights(tmp_path / "a.pt")
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 1
    assert torch.equal(found["part"], table[3:7])


def test_plain_values_beside_the_weights_are_read(tmp_path):
    beside = {
        "epoch": 3,
        "big": 10**300,
        "text": "grüße\n",
        "list": [1, (2.5, None, True)],
        "bytes": b"ab",
        "set": {1, 2},
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "moments": {0: {"exp_avg": torch.ones(3)}},
    }
    torch.save({"state_dict": {"a": torch.ones(1)}, **beside}, tmp_path / "a.ckpt")
    _, found = read_weights(tmp_path / "a.ckpt")
    assert found.keys() == beside.keys()
    for key in beside.keys() - {"moments"}:
        assert found[key] == beside[key]


def test_a_file_of_the_other_byte_order_is_turned(tmp_path):
    path, turned = tmp_path / "a.pt", tmp_path / "b.pt"
    values = {"a": torch.tensor([1.5, -3]), "b": torch.tensor([1, 2**40])}
    torch.save(values, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(turned, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("byteorder"):
                content = b"big"
            if "/data/" in entry.filename:
                width = 4 if entry.filename.endswith("0") else 8
                parts = [content[at : at + width][::-1] for at in range(0, len(content), width)]
                content = b"".join(parts)
            new.writestr(entry.filename, content)
    found, _ = read_weights(turned)
    assert all(torch.equal(found[key], value) for key, value in values.items())


def test_flipped_bits_are_damage(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        read_weights(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(path)[0]["a"], torch.arange(1000.0))


class Object:
    """Anything that a pickle may make: never made here."""


@pytest.mark.parametrize(
    "value", [Object(), Object, print, range(3), {(1, 2): 3}, frozenset([(1,)])]
)
def test_anything_else_ends_the_reading(value, tmp_path):
    torch.save({"a": torch.ones(1), "more": value}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="run code"):
        read_weights(tmp_path / "a.pt")


def test_pickle_keeps_the_machine_that_ours_is_made_of():
    assert issubclass(pickle._Unpickler, object)
    assert pickle.REDUCE[0] in pickle._Unpickler.dispatch
