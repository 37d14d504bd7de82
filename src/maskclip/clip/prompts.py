"""Words -> unit text rows: prompt ensembles, and a cache by which a word is encoded once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import tomllib
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import platformdirs
import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.model import CLIPModel, shared_copy
from maskclip.core.errors import MaskCLIPError

TEMPLATE_SETS = ("published", "open_clip", "plain", "word")

FILE_BYTES = 128 * 2**20
"""The most that rows take on disk: some 60,000 of 512 channels."""
MEMORY_BYTES = 32 * 2**20
"""The same in memory."""

_PATIENCE = 0.5  # seconds for which a locked file is waited for; then words are encoded (again)
_DAY = 86_400  # seconds: how exactly the last use of a row is kept
_COLUMNS = "key, row, unknown, checksum, used"
_UNSURE = 4  # tokens by which a sentence may be longer than its parts
_AT_ONCE = 500  # keys a query; SQLite takes 999 in its oldest builds

OnWord = Callable[[int, int], None]

K = TypeVar("K")
V = TypeVar("V")


class TextRows(NamedTuple):
    """What a model makes of names.

    Attributes:
        rows: (P, D) float32 unit rows, one per name, on the CPU.
        unknown: the names with a word that an embedded model never saw; none for other models.
    """

    rows: Tensor
    unknown: tuple[str, ...]


class PromptError(MaskCLIPError):
    """A name cannot be put into a prompt."""


@cache
def template_set(name: str) -> tuple[str, ...]:
    """Return a set of prompt templates, each with one `{}`.

    `published`: the authors' 85; `open_clip`: its 80 for ImageNet; `plain`: "a photo of a {}.";
    `word`: the word alone, in whatever language it is.

    Raises:
        PromptError: no set has that name.
    """
    if name == "open_clip":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if name not in TEMPLATE_SETS:
        raise PromptError(f"unknown templates {name!r}: expected one of {', '.join(TEMPLATE_SETS)}")
    text = resources.files(__package__).joinpath("templates.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)[name])


def cache_path() -> Path:
    """Return the file of cached text rows; it may not exist yet."""
    return platformdirs.user_cache_path("maskclip") / "text-rows-1.sqlite"


def text_rows(
    clip: CLIPModel,
    names: Sequence[str],
    *,
    templates: str,
    device: torch.device | str = "cpu",
    path: Path | None = None,
    on_word: OnWord | None = None,
) -> TextRows:
    """Return one unit row per name, from the cache where they were made before.

    Args:
        clip: the model; its text tower runs only for names that are not cached.
        names: P names, as they stand in prompts.
        templates: which `template_set` to average over.
        device: where the text tower runs, if it does.
        path: the file in which rows are cached; `cache_path()` by default.
        on_word: is called after each name: how many are encoded, of how many that were not cached.

    Raises:
        PromptError: there are no names, or one does not fit into the model's context.
    """
    if not names:
        raise PromptError("no names: give at least one word, such as 'dog'")
    kept = _row_cache(path or cache_path())
    sentences = template_set(templates)
    keys = _keys(clip, names, sentences)
    found = kept.read(keys)
    missing = {key: name for key, name in zip(keys, names, strict=True) if key not in found}
    if missing:
        words = list(missing.values())
        rows = encode_names(clip, words, sentences, device=device, on_word=on_word)
        unknown = set(unknown_words(clip, words))
        made = {
            key: _Row(row.numpy().tobytes(), name in unknown)
            for (key, name), row in zip(missing.items(), rows, strict=True)
        }
        kept.write(made)
        found |= made
    joined = bytearray().join(found[key].values for key in keys)
    return TextRows(
        torch.frombuffer(joined, dtype=torch.float32).view(len(keys), -1),
        tuple(name for key, name in zip(keys, names, strict=True) if found[key].unknown),
    )


def _keys(clip: CLIPModel, names: Sequence[str], sentences: Sequence[str]) -> list[bytes]:
    """Return what each name's row depends on: weights, templates, tokenizer and the name."""
    identity = clip.tokenizer_identity()
    parts = [clip.fingerprint, sentences, *([identity] if identity else [])]
    key = hashlib.sha256(json.dumps(parts).encode()).digest()
    return [hashlib.blake2b(name.encode(), key=key, digest_size=16).digest() for name in names]


class RecentlyUsed(Generic[K, V]):
    """Values by key, within so many bytes: the longest unused go first. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self._max, self._held = max_bytes, 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return a value, or None where it is not kept."""
        with self._lock:
            entry = self._values.get(key)
            if entry is None:
                return None
            self._values.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of so many bytes."""
        with self._lock:
            self._held += size - self._values.pop(key, (value, 0))[1]
            self._values[key] = (value, size)
            while self._held > self._max:
                self._held -= self._values.popitem(last=False)[1][1]


class _Row(NamedTuple):
    """A row as float32 bytes, and whether an embedded model never saw a word of its name."""

    values: bytes
    unknown: bool


@cache
def _row_cache(path: Path) -> _RowCache:
    return _RowCache(path)


class _RowCache:
    """Rows in memory and in an SQLite file, both bounded; whatever is wrong with it costs time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory: RecentlyUsed[bytes, _Row] = RecentlyUsed(MEMORY_BYTES)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, _Row]:
        """Return the rows that are there."""
        found = {key: row for key in keys if (row := self.memory.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        stored, old = {}, []
        try:
            if not missing or not self.path.exists():
                return found
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as file:
                for key, values, unknown, checksum, used in _select(file, missing):
                    whole = isinstance(values, bytes) and unknown in (0, 1)
                    if whole and checksum == _checksum(key, values, unknown):
                        stored[key] = _Row(values, bool(unknown))
                        if not isinstance(used, int) or used < time.time() - _DAY:
                            old.append(key)
        except (OSError, sqlite3.Error) as error:
            self._discard_if(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        for key, row in stored.items():
            self.memory.put(key, row, len(row.values))
        if old:
            self.write({key: stored[key] for key in old})  # used today
        return found | stored

    def write(self, rows: Mapping[bytes, _Row]) -> None:
        """Keep rows, as used now."""
        for key, row in rows.items():
            self.memory.put(key, row, len(row.values))
        now = int(time.time())
        entries = [
            (key, values, unknown, _checksum(key, values, unknown), now)
            for key, (values, unknown) in rows.items()
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as file, file:
                file.execute("PRAGMA page_size = 16384")  # of a new file: several rows a page
                file.execute("PRAGMA auto_vacuum = FULL")  # the same: it shrinks with its content
                file.execute(
                    "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, row BLOB NOT NULL, "
                    "unknown INTEGER NOT NULL, checksum INTEGER NOT NULL, used INTEGER NOT NULL)"
                )
                file.executemany(
                    f"INSERT OR REPLACE INTO rows ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", entries
                )
                removed = 1
                while removed > 0 and _size(file) > FILE_BYTES:
                    removed = file.execute(
                        "DELETE FROM rows WHERE key IN (SELECT key FROM rows ORDER BY used "
                        "LIMIT (SELECT 1 + count(*) / 4 FROM rows))"
                    ).rowcount
        except (OSError, sqlite3.Error) as error:
            codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
            self._discard_if(error, *codes)  # the last: a table of another shape

    def _discard_if(self, error: Exception, *codes: int) -> None:
        """Remove the file after an error with one of SQLite's primary codes."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in codes:
            with suppress(OSError):  # it may be another process that still has it open
                self.path.unlink()


def _select(file: sqlite3.Connection, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
    found = []
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        marks = ", ".join("?" * len(some))
        query = f"SELECT {_COLUMNS} FROM rows WHERE key IN ({marks})"
        found += file.execute(query, some).fetchall()
    return found


def _size(file: sqlite3.Connection) -> int:
    """Return the bytes of a file's pages that hold something."""
    pages, free, size = (
        file.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _checksum(key: bytes, values: bytes, unknown: bool) -> int:
    return zlib.crc32(values, zlib.crc32(key, unknown))


def class_rows(
    clip: CLIPModel,
    prompts: Sequence[Sequence[str]],
    *,
    templates: str,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return one unit text row per class, (K, D): the mean of the rows of its names.

    Args:
        clip: the model.
        prompts: the names of each class, one at least.
        templates, device: as `text_rows` takes them.

    Raises:
        PromptError: a name is too long for the model.
    """
    flat = [name for names in prompts for name in names]
    rows = text_rows(clip, flat, templates=templates, device=device).rows
    return mean_rows(rows, [len(names) for names in prompts])


def mean_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the unit means (K, D) of so many rows (P, D) each, one after the other."""
    means = [part.mean(dim=0) for part in torch.split(rows, list(sizes))]
    return F.normalize(torch.stack(means), dim=1)


@torch.inference_mode()
def encode_names(
    clip: CLIPModel,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    on_word: OnWord | None = None,
) -> Tensor:
    """Run the text tower: per name normalise each template's row, average, normalise.

    Each name is a batch of its own: the last digits of a row depend on its batch, and must not
    depend on which other names were cached. On a device other than the CPU a temporary copy of the
    tower runs. `on_word` is that of `text_rows`.

    Returns:
        (P, D) float32, unit rows, on the CPU.

    Raises:
        PromptError: a name does not fit into the model's context.
    """
    check_lengths(clip, names, templates)
    model: Any = clip.model
    if torch.device(device).type != "cpu":
        model = shared_copy(model, leave_out=model.visual).to(device)
    rows = []
    for name in names:
        tokens = clip.tokenizer([template.format(name) for template in templates])
        each = F.normalize(model.encode_text(tokens.to(device)), dim=-1)
        rows.append(F.normalize(each.float().mean(dim=0), dim=-1))
        if on_word is not None:
            on_word(len(rows), len(names))
    return torch.stack(rows).cpu()


def check_lengths(clip: CLIPModel, names: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse names that CLIP's tokenizer would silently cut.

    Raises:
        PromptError: names the first name that is too long, and the limit.
    """
    tokenizer: Any = clip.tokenizer
    limit = tokenizer.context_length
    special = getattr(tokenizer, "special_tokens", 2)  # start and end of text

    def count(text: str) -> int:
        return len(tokenizer.encode(text)) + special

    frame = max(count(template.format("")) for template in templates)
    for name in names:
        used = len(tokenizer.encode(name)) + frame
        if used > limit - _UNSURE:  # pieces of sentences join at their ends, in some tokenizers
            used = max(count(template.format(name)) for template in templates)
        if used > limit:
            shown = name if len(name) <= 40 else f"{name[:40]}..."
            raise PromptError(
                f"the name {shown!r} takes {used} tokens with its prompt, and {clip.name} reads "
                f"{limit}: shorten it"
            )


def unknown_words(clip: CLIPModel, names: Sequence[str]) -> list[str]:
    """Return the names with a word that an embedded model never saw; [] for open-world models."""
    if clip.known_tokens is None:
        return []
    tokenizer: Any = clip.tokenizer
    return [name for name in names if not clip.known_tokens.issuperset(tokenizer.encode(name))]


def never_saw(clip: CLIPModel, unknown: Sequence[str]) -> str:
    """Return a warning of names with a word that an embedded model never saw."""
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    return (
        f"{clip.name} was trained on the words of the vocabulary emoji alone and never saw: "
        f"{', '.join(unknown[:8])}{more}"
    )
