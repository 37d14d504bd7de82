"""The pickles of torch's files, read by a machine that can make nothing but inert values.

It knows plain values, dictionaries and what torch writes for a tensor. A tensor is compared with
the bytes that its file has for it before any are read; a module of TorchScript is a value with
attributes; any other name, and any instruction that torch does not write, ends the reading.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from math import prod
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import torch

_MOST_AXES = 16
_LARGEST = 2**48  # values of a tensor
_MOST_COPIED = 2**20  # items and bytes that are copied from one value to another

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES: dict[str, torch.dtype | None] = {  # None: of values that no plain tensor has
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    **dict.fromkeys(f"Q{kind}Storage" for kind in ("Int8", "UInt8", "Int32", "UInt4x2", "UInt2x4")),
}


class Storage(NamedTuple):
    """Bytes of a file.

    Attributes:
        key: what the file calls them.
        dtype: of what they hold.
        numel: values of that type.
    """

    key: str
    dtype: torch.dtype | None
    numel: int

    @property
    def nbytes(self) -> int:
        """Their number."""
        return self.numel * (1 if self.dtype is None else self.dtype.itemsize)


class Stored(NamedTuple):
    """A tensor that lies in a file, of which nothing has been read yet."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of its values."""
        return prod(self.shape)


class Unusable(NamedTuple):
    """Something in the place of a tensor that is no plain one, or that its bytes do not hold."""

    what: str


class ScriptModule:
    """A module of TorchScript, as a file describes it: the attributes that were written."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.attributes: Any = None


class _ScriptClass(NamedTuple):
    kind: str


class _StorageType(NamedTuple):
    dtype: torch.dtype | None


class _Maker(NamedTuple):
    """A function of ours for one that a file may name."""

    make: Callable[..., Any]


class _NumPyType:
    """The type of NumPy values, in the form of `numpy.dtype`."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufSU?]\d{0,4}", code):
            raise pickle.UnpicklingError("it names NumPy values of an unknown type")
        self.code = code
        self.order = ""

    def scalar(self, data: object) -> Any:
        """Return the Python value of one such value's bytes."""
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("it names a NumPy value without bytes")
        return np.frombuffer(data, np.dtype(self.order + self.code))[0].item()


class Machine(pickle._Unpickler):
    """Runs a pickle that makes nothing but plain values, `Stored`, `Unusable`, `ScriptModule`."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self._left = _MOST_COPIED

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name that a file may use."""
        module = "builtins" if module == "__builtin__" else module  # Python 2's name for it
        if module == "__torch__" or module.startswith("__torch__."):
            return _ScriptClass(f"{module}.{name}")
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = _MAKERS.get((module, name))
        if known is None and module == "torch._utils" and name.startswith("_rebuild_"):
            known = _Maker(_unusable(name))
        if known is None and module == "numpy.dtypes":
            known = _Maker(lambda *_: None)
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage of ("storage", type, key, device, count, and perhaps None)."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6):
            raise pickle.UnpicklingError("it names something outside of itself")
        kind, type_, key, _, count, *view = pid
        if kind != "storage" or not isinstance(type_, _StorageType) or any(view):
            raise pickle.UnpicklingError("it names a storage of an unknown kind")
        if type(count) is not int or count < 0 or not isinstance(key, str):
            raise pickle.UnpicklingError("it names a storage of no size")
        storage = Storage(key, type_.dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError("it names one storage twice, as different ones")
        return storage

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Maker) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls something")
        # A list that is made once can be copied by many short instructions.
        self._left -= sum(len(value) for value in arguments if hasattr(value, "__len__"))
        if self._left < 0:
            raise ValueError("its description takes more memory than any network's")
        self.append(function.make(*arguments))

    def _new(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _ScriptClass) or arguments != ():
            raise pickle.UnpicklingError("it makes an object")
        self.append(ScriptModule(kind.kind))

    def _build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, ScriptModule):
            value.attributes = state
        elif isinstance(value, _NumPyType):
            value.order = state[1] if state[1] in ("<", ">") else ""
        elif not isinstance(value, dict | _Array):  # the former have attributes of no use to us
            raise pickle.UnpicklingError("it gives attributes to an object")

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._put(items[::2], items[1::2])

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key], [value])

    def _put(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("it sets items of an object")
        target.update(zip(map(_key, keys), values, strict=True))

    def _add_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(map(_key, items))

    def _frozen_set(self) -> None:
        self.append(frozenset(map(_key, self.pop_mark())))

    # Of the machine's instructions, those that torch writes; these make plain values ...
    _plain: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK,
            pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1,
            pickle.BININT2, pickle.LONG1, pickle.LONG4, pickle.BINFLOAT, pickle.SHORT_BINUNICODE,
            pickle.BINUNICODE, pickle.BINUNICODE8, pickle.SHORT_BINSTRING, pickle.BINSTRING,
            pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8, pickle.BYTEARRAY8,
            pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
            pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.EMPTY_SET,
            pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET,
            pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID,
        )
    }  # fmt: skip
    # ... and these could do more.
    _careful: ClassVar[dict[int, Callable[[Any], None]]] = {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _new,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen_set,
    }
    dispatch = {**_plain, **_careful}  # noqa: RUF012 - it is so in the base


def _key(value: Any) -> Any:
    """Refuse keys whose hash is more than a number's or a text's: it is not bounded."""
    if type(value) not in (str, int, float, bool, bytes, type(None)):
        raise pickle.UnpicklingError("it has keys that are neither names nor numbers")
    return value


def _stored(
    storage: Storage,
    offset: Any,
    shape: Any,
    stride: Any,
    _requires_grad: object = None,
    _hooks: object = None,
    metadata: object = None,
) -> Stored | Unusable:
    """Describe a tensor of a storage of its own type."""
    if not isinstance(storage, Storage):
        return Unusable("a tensor without bytes")
    return _checked(storage, storage.dtype, (offset, shape, stride), metadata)


def _stored_untyped(
    storage: Storage,
    offset: Any,
    shape: Any,
    stride: Any,
    _requires_grad: object,
    _hooks: object,
    dtype: Any,
    metadata: object = None,
) -> Stored | Unusable:
    """Describe a tensor of a storage of bytes."""
    if not isinstance(storage, Storage) or storage.dtype != torch.uint8:
        return Unusable("a tensor without bytes")
    return _checked(storage, dtype, (offset, shape, stride), metadata)


def _checked(
    storage: Storage, dtype: Any, layout: tuple[Any, Any, Any], metadata: object
) -> Stored | Unusable:
    """Return a tensor if its storage holds all of its values, each at a place of its own."""
    offset, shape, stride = layout
    if not isinstance(dtype, torch.dtype) or dtype.is_complex:
        return Unusable("a tensor of complex or quantised values")
    if metadata:
        return Unusable("a tensor whose values are yet to be computed")
    if len(shape) != len(stride) or len(shape) > _MOST_AXES:
        return Unusable("a tensor of a shape that cannot be")
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
        return Unusable("a tensor of a shape that cannot be")
    stored = Stored(storage, dtype, offset, tuple(shape), tuple(stride))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    room = storage.nbytes // dtype.itemsize
    if stored.numel and (last >= room or stored.numel > room):
        return Unusable(f"a tensor of {stored.numel:,} values over {room:,} in the file")
    return stored


def _unusable(name: str) -> Callable[..., Unusable]:
    kind = name.removeprefix("_rebuild_").removesuffix("_no_storage").replace("_", " ")
    what = {"qtensor": "a quantised tensor"}.get(kind, f"no plain tensor ({kind})")
    return lambda *_: Unusable(what)


def _rebuilt(function: Any, _type: object, arguments: Any, *_: object) -> Any:
    """Return what a tensor with attributes is made from."""
    if not isinstance(function, _Maker) or function.make not in (_stored, _stored_untyped, _first):
        return Unusable("a tensor of a type of its own")
    return function.make(*arguments)


def _first(value: Any, *_: object) -> Any:
    return value


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    pairs = list(items.items() if isinstance(items, dict) else items)
    return {_key(key): value for key, value in pairs}


def _encoded(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


class _Array:
    """An array of NumPy's, which no weights need."""


_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and 2
_MAKERS = {
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_stored),
    ("torch._utils", "_rebuild_tensor"): _Maker(_stored),
    ("torch._utils", "_rebuild_tensor_v3"): _Maker(_stored_untyped),
    ("torch._utils", "_rebuild_parameter"): _Maker(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): _Maker(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): _Maker(_rebuilt),
    ("torch.nn.parameter", "Parameter"): _Maker(_first),
    ("torch", "Tensor"): _Maker(_unusable("tensor")),
    ("torch", "Size"): _Maker(tuple),
    ("torch", "device"): _Maker(lambda *_: None),
    ("torch.serialization", "_get_layout"): _Maker(lambda *_: None),
    **{("torch", name): _Maker(_unusable(name)) for name in dir(torch) if name.startswith("per_")},
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _Maker(_first)
        for kind in ("int", "double", "bool", "tensor")
    },
    ("torch.jit._pickle", "restore_type_tag"): _Maker(_first),
    ("collections", "OrderedDict"): _Maker(_dictionary),
    ("collections", "Counter"): _Maker(_dictionary),
    ("builtins", "set"): _Maker(lambda items=(): set(map(_key, items))),
    ("builtins", "complex"): _Maker(lambda *_: None),
    ("builtins", "bytearray"): _Maker(lambda *_: None),
    ("_codecs", "encode"): _Maker(_encoded),
    ("numpy", "dtype"): _Maker(_NumPyType),
    ("numpy", "ndarray"): _Maker(lambda *_: None),
    **{(core, "scalar"): _Maker(lambda kind, data: kind.scalar(data)) for core in _CORES},
    **{(core, "_reconstruct"): _Maker(lambda *_: _Array()) for core in _CORES},
}
