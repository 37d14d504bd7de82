"""Files of torch's layouts as torch does not write them: pickles, tensors, archives, headers."""

import io
import json
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import torch
from torch import nn

from tests.crafted.states import CONV

CANARY = "it ran"
"""A folder of this name in the working directory: code of a file ran."""


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


class Emptied(nn.Module):
    """A module pickled whole."""


def raw(data, *, storages=None, more=None, compress=zipfile.ZIP_STORED):
    """Return a maker of a file of torch's layout from the bytes of its pickle and its storages."""

    def make(folder):
        with zipfile.ZipFile(folder / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", data)
            for key, content in (storages or {"0": bytes(16)}).items():
                archive.writestr(f"a/data/{key}", content, compress)
            for key, content in (more or {}).items():
                archive.writestr(f"a/{key}", content, zipfile.ZIP_DEFLATED)
        return folder / "a.pt"

    return make


class _Tensor:
    """Pickled as torch pickles a tensor, of any numbers."""

    def __init__(self, shape, stride, offset=0, count=4, key="0", kind="FloatStorage"):
        self.values = shape, stride, offset, count, key, kind

    def __reduce__(self):
        shape, stride, offset, count, key, kind = self.values
        storage = _Id(("storage", getattr(torch, kind), key, "cpu", count))
        return torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, {})


class _Id:
    def __init__(self, pid):
        self.pid = pid


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, _Id) else None


def pickled(value):
    """Return the pickle of values among which are `_Tensor` and `_Id`."""
    out = io.BytesIO()
    _Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def tensor(*numbers, **more):
    """Return a maker of a file of one tensor of these numbers."""
    return raw(pickled({"visual.conv1.weight": _Tensor(*numbers, **more)}))


def saved(make, name="a.pt", **options):
    """Return a maker of a file of torch's with some content."""

    def write(folder):
        torch.save(make(), folder / name, **options)
        return folder / name

    return write


def plain(content, name="a.pt"):
    """Return a maker of a file of some bytes."""

    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _cycle():
    values = {"a": torch.ones(1)}
    values["state_dict"] = values
    return values


def _repeated(start, instructions):
    """A list made once, and many short instructions that take it: memo 1 is the list."""
    many = b"](" + b"N" * 10_000 + b"eq\x01"
    return b"\x80\x02" + many + start + b"(" + instructions * 300_000 + b"t."


_SIZE = b"ctorch\nSize\nq\x02"


PROTO = b"\x80\x02"
SCRIPT = {"constants.pkl": PROTO + b").", "code/__torch__.py": "class M(Module):\n  x : int\n"}
_TWICE = b"c__torch__\nM\n)\x81}(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01ubq\x01"
_MODULE = b"c__torch__\nM\n)\x81}"
PICKLES = {
    "calls": PROTO + b"cos\nmkdir\n(X\x06\x00\x00\x00it rantR.",
    "calls by another way": PROTO + b"(cos\nmkdir\nX\x06\x00\x00\x00it rano.",
    "instances": PROTO + b"(X\x06\x00\x00\x00it ranios\nmkdir\n.",
    "names from the stack": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x06it ran\x85R.",
    "makes with keywords": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93)}\x92.",
    "extension": PROTO + b"\x82\x01.",
    "old identities": b"Pabc\n.",
    "builds a function": PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "slots of a function": PROTO + b"ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
    "a million levels": PROTO + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "a million tuples as a key": PROTO + b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.",
    "far memory": PROTO + b"}r\xff\xff\xff\x7f.",
    "large frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    "large text": PROTO + b"X\xff\xff\xff\x7fa.",
    "copies": _repeated(_SIZE, b"h\x02h\x01\x85R"),
    "copies by a type": _repeated(
        b"ctorch._tensor\n_rebuild_from_type_v2\nq\x03" + _SIZE,
        b"h\x03(h\x02Nh\x01\x85}tR",
    ),
    "long identities": _repeated(b"", b"h\x01Q"),
    "many": PROTO + b"](" + b"}" * 9_000_000 + b"e.",
    "no end": PROTO + b"}",
    "nothing": b"",
    "only the end": b".",
    "wrong end": PROTO + b"0.",
    "memory of nothing": PROTO + b"h\x05.",
    "unknown storage": PROTO + b"X\x01\x00\x00\x00aQ.",
    "storage of none": PROTO + b"(NNNNNtQ.",
}
TENSORS = {
    "no step": tensor((10**5, 10**5), (0, 0)),
    "overlapping": tensor((4, 4), (1, 0)),
    "beyond": tensor((4,), (1,), 1),
    "negative offset": tensor((4,), (1,), -1),
    "negative step": tensor((4,), (-1,)),
    "negative size": tensor((-4,), (1,)),
    "huge size": tensor((10**30,), (1,)),
    "huge and empty": tensor((10**30, 0), (1, 1)),
    "size of a float": tensor((4.0,), (1,)),
    "no shape": tensor(None, None),
    "more steps than sizes": tensor((4,), (1, 1)),
    "a thousand axes": tensor((1,) * 1000, (1,) * 1000),
    "count that lies": tensor((10**9,), (1,), count=10**9),
    "no such storage": tensor((4,), (1,), key="5"),
    "path as a key": tensor((4,), (1,), key="../../etc/passwd"),
    "complex": tensor((2,), (1,), count=2, kind="ComplexFloatStorage"),
    "quantised": tensor((4,), (1,), kind="QInt8Storage"),
    "a thousand names of one": raw(
        pickled({f"n{i}": _Tensor((2**20,), (1,), count=2**20) for i in range(1000)}),
        storages={"0": bytes(2**22)},
    ),
}


def _bomb(entry):
    """A small file whose entry unpacks to 1.6 GiB."""

    def make(folder):
        path = folder / "a.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            if entry != "data.pkl":
                count = 100 * 2**22
                content = {"visual.conv1.weight": _Tensor((count,), (1,), count=count)}
                script = _MODULE + b"b." if entry.startswith("code") else None
                archive.writestr("a/data.pkl", script or pickled(content), zipfile.ZIP_STORED)
            if entry.startswith("code"):
                archive.writestr("a/constants.pkl", PROTO + b").")
            with archive.open(f"a/{entry}", "w") as file:
                for _ in range(100):
                    file.write(bytes(2**24))
        return path

    return make


def _packed(entry, method=zipfile.ZIP_BZIP2, size=2**29):
    """A tiny file whose entry unpacks to `size` bytes, though it says that it has a thousand."""

    def make(folder):
        path = folder / "a.pt"
        content = {"data.pkl": _MODULE + b"b.", "constants.pkl": PROTO + b")."}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                if name != entry:
                    archive.writestr(f"a/{name}", data)
            with archive.open(zipfile.ZipInfo(f"a/{entry}"), "w") as file:
                file._compressor = zipfile._get_compressor(method)
                file._zinfo.compress_type = method
                for _ in range(size // 2**24):
                    file.write(bytes(2**24))
            archive.getinfo(f"a/{entry}").file_size = 1000
        return path

    return make


def _many_of_one_class(folder):
    """Many modules of a class whose text is long to search."""
    body = "class M(Module):\n" + "  __parameters__ = [\n" * 190_000
    names = (b"\x8c\x04%04xh\x00)\x81}b" % number for number in range(20_000))
    content = b"\x80\x04c__torch__\nM\nq\x00)\x81}(" + b"".join(names) + b"ub."
    more = {"constants.pkl": PROTO + b").", "code/__torch__.py": body}
    return raw(content, more=more)(folder)


def _header(header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return plain(struct.pack("<Q", len(text)) + text + data, "a.safetensors")


def _floats(start, stop, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


HEADERS = {
    "length beyond": plain(struct.pack("<Q", 2**62) + b"{}", "a.safetensors"),
    "nested": _header(b"[" * 200_000),
    "null": _header(b"null"),
    "metadata null": _header({"__metadata__": None, "a": _floats(0, 16)}),
    "metadata nested": _header({"__metadata__": {"a": {"b": [1]}}, "a": _floats(0, 16)}),
    "offsets beyond": _header({"a": _floats(0, 2**40, (2**38,))}),
    "offsets over each other": _header({"a": _floats(0, 16), "b": _floats(0, 16)}),
    "negative offsets": _header({"a": _floats(-16, 0)}),
    "unknown type": _header({"a": _floats(0, 16, dtype="F7")}),
    "huge shape": _header({"a": _floats(0, 0, (2**62, 0))}),
    "huge numbers": _header(b'{"a":{"dtype":"F32","shape":[1' + b"0" * 5000 + b"]}}"),
    "not text": _header(b"\xff\xfe{}"),
}
FILES = {
    "quantised": saved(lambda: {CONV: torch.quantize_per_tensor(torch.ones(4), 1, 0, torch.qint8)}),
    "sparse": saved(lambda: {CONV: torch.eye(4).to_sparse()}),
    "sparse rows": saved(lambda: {CONV: torch.eye(4).to_sparse_csr()}),
    "without memory": saved(lambda: {CONV: torch.ones(4, device="meta")}),
    "nested tensor": saved(lambda: {CONV: torch.nested.nested_tensor([torch.ones(2)])}),
    "expanded": saved(lambda: {CONV: torch.ones(1).expand(10**5, 10**5)}),
    "negative view": saved(lambda: {CONV: torch._neg_view(torch.ones(4))}),
    "bomb": saved(Bomb),
    "hidden bomb": saved(lambda: {"state_dict": {"a": torch.ones(1)}, "more": Bomb()}),
    "legacy bomb": saved(Bomb, _use_new_zipfile_serialization=False),
    "module": saved(Emptied),
    "array": saved(lambda: {CONV: np.ones(4)}),
    "objects of arrays": saved(lambda: {CONV: np.array([None, {}], object)}),
    "in itself": saved(_cycle),
    "list": saved(lambda: [torch.ones(1)]),
    "tensor": saved(lambda: torch.ones(1)),
    "number": saved(lambda: 10**5000),
    "keys of numbers": saved(lambda: {1: torch.ones(1)}),
    "null state": saved(lambda: {"state_dict": None}),
    "nested states": saved(lambda: {"state_dict": {"state_dict": {"state_dict": {}}}}),
    "millions of sets": raw(PROTO + b"\x8f" * (8 * 2**20 - 100) + b"."),
    "bomb of values": _bomb("data/0"),
    "bomb of a pickle": _bomb("data.pkl"),
    "bomb of code": _bomb("code/__torch__.py"),
    "bzip2 pickle": _packed("data.pkl"),
    "bzip2 code": _packed("code/__torch__.py"),
    "many modules of one class": _many_of_one_class,
    "module in itself": raw(
        PROTO + b"c__torch__\nM\n)\x81q\x01}X\x01\x00\x00\x00ah\x01sb.", more=SCRIPT
    ),
    "modules that double": raw(PROTO + _MODULE + b"bq\x01" + _TWICE * 60 + b".", more=SCRIPT),
    "no module": raw(PROTO + b"}.", more=SCRIPT),
    "module without attributes": raw(PROTO + b"c__torch__\nM\n)\x81.", more=SCRIPT),
    "module of a tuple": raw(PROTO + b"c__torch__\nM\n)\x81K\x01\x85b.", more=SCRIPT),
    "nothing": plain(b""),
    "zip of nothing": plain(b"PK\x05\x06" + bytes(18)),
    "start of a zip": plain(b"PK\x03\x04" + bytes(60)),
    "page": plain(b"<html>404</html>"),
    "pointer": plain(b"version https://git-lfs.github.com/spec/v1\n"),
    "noise": plain(random.Random(0).randbytes(5000)),
    "noise of a pickle": plain(PROTO + random.Random(1).randbytes(5000), "a.pth"),
}  # fmt: skip
