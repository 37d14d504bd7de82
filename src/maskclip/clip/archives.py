"""Files of `torch.save` and TorchScript archives, read without running anything that they hold.

Both describe their tensors in a pickle (`unpickling`) beside raw bytes, which are never compressed:
what is read takes no more memory than the file has bytes.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskclip.clip.unpickling import Machine, ScriptModule, Storage, Stored, Unusable
from maskclip.core.files import read_entry

_MOST_PICKLE = 2 * 2**20
"""Bytes of a pickle: 250 describe a tensor; a byte can ask for a set, which takes 216."""
_MOST_CODE = 4 * 2**20  # bytes of TorchScript code, unpacked
_MOST_NAMES = 100_000  # attributes of all modules together: those of a CLIP are some thousands

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Place(NamedTuple):
    """Where the bytes of a storage lie in a file; a checksum of 0 is none."""

    position: int
    size: int
    checksum: int = 0


@dataclass(frozen=True)
class TorchFile:
    """What a file holds.

    Attributes:
        path: the file.
        content: plain values, in which tensors are `Stored` or `Unusable`.
        is_script: whether it is a TorchScript archive; its content is a state_dict.
    """

    path: Path
    content: Any
    is_script: bool
    _places: Mapping[str, _Place]
    _swapped: bool = False

    def read(self, tensors: Mapping[str, Stored]) -> dict[str, Tensor]:
        """Read tensors; those that share a storage in the file share memory.

        Raises:
            ValueError: bytes are missing or damaged.
            OSError: the file cannot be read.
        """
        users = Counter(stored.storage for stored in tensors.values())
        self._check(users)
        shared: dict[Storage, Tensor] = {}
        found = {}
        with self.path.open("rb") as file:
            for name, (storage, dtype, offset, shape, stride) in tensors.items():
                values = shared.get(storage)
                if values is None:
                    values = self._read_storage(file, storage, dtype.itemsize)
                if users[storage] > 1:
                    shared[storage] = values
                values = (values != 0) if dtype == torch.bool else values.view(dtype)
                found[name] = values.as_strided(shape, stride, offset)
        return found

    def _check(self, storages: Mapping[Storage, int]) -> None:
        """Compare the bytes that tensors need with those that are there."""
        for storage in storages:
            place = self._places.get(storage.key)
            if place is None or place.size != storage.nbytes:
                there = 0 if place is None else place.size
                raise ValueError(f"expected {storage.nbytes:,} bytes of values, found {there:,}")
        if sum(storage.nbytes for storage in storages) > self.path.stat().st_size:
            raise ValueError("its parts lie over each other")

    def _read_storage(self, file: io.BufferedReader, storage: Storage, itemsize: int) -> Tensor:
        """Return the bytes of a storage, (bytes,) uint8, in this machine's order."""
        place = self._places[storage.key]
        values = torch.empty(place.size, dtype=torch.uint8)
        memory = values.numpy()
        file.seek(place.position)
        if file.readinto(memory.data) != place.size:
            raise ValueError("it ends early")
        if place.checksum and zlib.crc32(memory.data) != place.checksum:
            raise ValueError("its bytes are not those that were written: it is damaged")
        if self._swapped and itemsize > 1:
            memory.view(f"u{itemsize}").byteswap(inplace=True)
        return values


def read_torch_file(path: Path) -> TorchFile:
    """Read a file of `torch.save`, of either format, or a TorchScript archive, without its tensors.

    Raises:
        pickle.UnpicklingError: it would have to run code, or is no such file.
        Exception: nearly any other, where it is damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP_MAGIC
        return _read_zip(path, file) if is_zip else _read_legacy(path, file)


def _read_zip(path: Path, file: io.BufferedReader) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next(name for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name))
        root = root.removesuffix("data.pkl")
        pickled = _read_place(file, _place(file, entries[f"{root}data.pkl"]), most=_MOST_PICKLE)
        content = Machine(io.BytesIO(pickled)).load()
        is_script = f"{root}constants.pkl" in entries
        if is_script:
            content = _state_of(content, _Code(archive, f"{root}code/"))
        order = entries.get(f"{root}byteorder")
        swapped = order is not None and _read_place(file, _place(file, order), most=8) == b"big"
        part = f"{root}data/"
        places = {
            name.removeprefix(part): _place(file, entry)
            for name, entry in entries.items()
            if name.startswith(part)
        }
    return TorchFile(path, content, is_script, places, swapped)


def _place(file: io.BufferedReader, entry: zipfile.ZipInfo) -> _Place:
    """Return where an entry's bytes lie. torch never compresses them: what is small is small."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ValueError(f"{entry.filename} is compressed or encrypted, which torch writes none")
    file.seek(entry.header_offset)
    header = file.read(30)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return _Place(entry.header_offset + 30 + lengths, entry.file_size, entry.CRC)


def _read_place(file: io.BufferedReader, place: _Place, *, most: int) -> bytes:
    if place.size > most:
        raise ValueError(f"{place.size:,} bytes of description are more than any network's")
    file.seek(place.position)
    return file.read(place.size)


def _read_legacy(path: Path, file: io.BufferedReader) -> TorchFile:
    """Read the format before torch 1.6: five pickles in a row, then the storages."""
    file.seek(0)
    start = io.BytesIO(file.read(_MOST_PICKLE))
    is_pickle = start.read(1) == pickle.PROTO
    start.seek(0)
    if (
        not is_pickle
        or Machine(start).load() != _LEGACY_MAGIC
        or Machine(start).load() != _LEGACY_PROTOCOL
    ):
        raise pickle.UnpicklingError("it is no file of torch's")
    system = Machine(start).load()
    machine = Machine(start)
    content = machine.load()
    keys = Machine(start).load()
    places, position = {}, start.tell()
    for key in keys:
        storage = machine.storages[key]
        file.seek(position)
        if storage.dtype is None or int.from_bytes(file.read(8), "little") != storage.numel:
            raise ValueError("its parts are not of the sizes that it names")
        places[key] = _Place(position + 8, storage.nbytes)
        position += 8 + storage.nbytes
    swapped = isinstance(system, dict) and system.get("little_endian") is False
    return TorchFile(path, content, is_script=False, _places=places, _swapped=swapped)


class _Code:
    """What the code of an archive declares; none of it is run.

    Args:
        archive: the archive.
        folder: where it keeps its code.
    """

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._left = _MOST_CODE
        self._classes: dict[str, dict[str, str]] = {}
        self._weights: dict[str, frozenset[str] | None] = {}  # by kind: modules share a long class

    def weights_of(self, kind: str) -> frozenset[str] | None:
        """Return which attributes of a class are weights, or None where it does not say.

        Raises:
            pickle.UnpicklingError: it makes its weights by code of its own.
        """
        if kind not in self._weights:
            self._weights[kind] = self._declared(kind)
        return self._weights[kind]

    def _declared(self, kind: str) -> frozenset[str] | None:
        module, _, name = kind.rpartition(".")
        if module not in self._classes:
            self._classes[module] = self._parse(module)
        body = self._classes[module].get(name)
        if body is None:
            return None
        if "def __setstate__" in body:
            raise pickle.UnpicklingError("a module of it is restored by code of its own")
        declared = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]", body, re.MULTILINE)
        return frozenset(re.findall(r'"([^"]*)"', " ".join(declared))) if declared else None

    def _parse(self, module: str) -> dict[str, str]:
        """Return the text of each class of a module."""
        try:
            entry = self._archive.getinfo(f"{self._folder}{module.replace('.', '/')}.py")
        except KeyError:
            return {}
        text = read_entry(self._archive, entry, most=self._left + 1)
        self._left -= len(text)
        if self._left < 0:
            raise ValueError("more code than any network has")
        _, *found = re.split(r"^class (\w+)", text.decode(), flags=re.MULTILINE)
        return dict(zip(found[::2], found[1::2], strict=True))


def _state_of(root: Any, code: _Code) -> dict[str, Stored | Unusable]:
    """Return the state_dict of a module: names of attributes, joined by dots, to tensors."""
    state: dict[str, Stored | Unusable] = {}
    waiting = [("", root)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, ScriptModule) or not isinstance(module.attributes, dict):
            raise ValueError("its modules do not have the attributes of modules")
        weights = code.weights_of(module.kind)
        for name, value in module.attributes.items():
            seen += 1
            if seen > _MOST_NAMES or len(prefix) > 1000:
                raise ValueError("more modules than any network has")
            if isinstance(value, ScriptModule):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, Stored | Unusable) and (weights is None or name in weights):
                state[f"{prefix}{name}"] = value
    return state
