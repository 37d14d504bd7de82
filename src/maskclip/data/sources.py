"""Find the images that paths, folders, patterns and lists name.

The one place that lists folders: what is followed, what is left out, and how that is reported.
"""

from __future__ import annotations

import glob
import os
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, overload

from maskclip.core.errors import MaskCLIPWarning
from maskclip.data.images import ImageError
from maskclip.data.kinds import image_suffixes, why_not_read

__all__ = [
    "Found",
    "LeftOut",
    "Source",
    "files_below",
    "find_sources",
    "read_list",
    "regular_files_below",
]

_FOLDS_CASE = sys.platform in ("darwin", "win32")  # where A.jpg and a.jpg are one file, usually
_SHOWN = 8  # suffixes in a line


@dataclass(frozen=True)
class Source:
    """An image, and its path in the tree that it was found in.

    Attributes:
        path: of the image.
        relative_path: POSIX. Relative to the folder that was named, or to the fixed part of a
            pattern; of a file that was named itself, the whole path without its root.
    """

    path: Path
    relative_path: str


@dataclass(frozen=True)
class LeftOut:
    """What folders and patterns hold besides images that are read.

    Attributes:
        suffixes: how many files have each suffix, lower case; "" is none. The commonest first.
        special: things called like images that are no files: pipes, sockets and devices.
        again: further names, through links, of images that are there already.
    """

    suffixes: Mapping[str, int] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    again: int = 0

    def line(self) -> str:
        """Return all of it in one line; empty if there is nothing."""
        parts = []
        if self.suffixes:
            total, known = sum(self.suffixes.values()), list(self.suffixes.items())
            shown = ", ".join(f"{name or '(no suffix)'} {n:,}" for name, n in known[:_SHOWN])
            more = f", {len(known) - _SHOWN} more suffixes" if len(known) > _SHOWN else ""
            reasons = dict.fromkeys(filter(None, map(why_not_read, self.suffixes)))
            why = "; ".join(reasons) or "not read as images"
            parts.append(f"{total:,} {_files(total)} left out: {shown}{more} ({why})")
        if self.special:
            count = len(self.special)
            what = "a pipe, socket or device" if count == 1 else "pipes, sockets or devices"
            parts.append(f"{count:,} left out that {_is(count)} {what}: {self.special[0]}")
        if self.again:
            parts.append(
                f"{self.again:,} {_files(self.again)} left out that {_is(self.again)} here under "
                "another name already, by links"
            )
        return "; ".join(parts)


def _files(count: int) -> str:
    return "file" if count == 1 else "files"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


@dataclass(frozen=True)
class Found(Sequence[Source]):
    """The images that were found, in order, and what was left out.

    Attributes:
        sources: the images, each once.
        left_out: the rest of what folders and patterns hold.
    """

    sources: tuple[Source, ...]
    left_out: LeftOut = field(default_factory=LeftOut)

    @overload
    def __getitem__(self, index: int) -> Source: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Source, ...]: ...

    def __getitem__(self, index: int | slice) -> Source | tuple[Source, ...]:
        return self.sources[index]

    def __len__(self) -> int:
        return len(self.sources)


def find_sources(
    arguments: Sequence[str | os.PathLike[str]], *, outside: Path | None = None
) -> Found:
    """Return the image files that paths, folders and patterns name, in order, each once.

    A folder gives all images in it and in its subfolders, sorted; hidden files and folders are
    skipped, links are followed, and none in a circle. A pattern (`*`, `?`, `[...]`, `**`) gives its
    matches, sorted; a path that exists is never taken as a pattern. A file that was named itself is
    returned even if it is missing or has no image's suffix: loading it reports the error. A file
    under several spellings, or through links, comes once, under the first of them.

    What folders and patterns hold besides is reported in one `MaskCLIPWarning`.

    Args:
        arguments: paths, folders and patterns.
        outside: a folder whose images are skipped in folders and patterns: that of the results.

    Raises:
        ImageError: a folder without images, or that cannot be read; a pattern without a match; a
            path that does not exist, without an image's suffix.
    """
    places = _Places()
    found: dict[tuple[object, ...], Source] = {}
    files, special, again = Counter[str](), list[str](), 0
    for argument in arguments:
        listing = _listed(argument, outside)
        files.update(listing.suffixes)
        special += listing.special
        winners: dict[tuple[object, ...], Path] = {}
        for image in sorted(listing.images, key=lambda path: len(path.parts)):
            winners.setdefault(places.key(image), image)
        again += len(listing.images) - len(winners)
        for key, image in sorted(winners.items(), key=lambda item: item[1]):
            source = Source(image, _relative(image, listing.root))
            earlier = found.setdefault(key, source)
            again += listing.root is not None and _spelled(earlier.path) != _spelled(image)
    left_out = LeftOut(dict(files.most_common()), tuple(special), again)
    if left_out.line():
        warnings.warn(left_out.line(), MaskCLIPWarning, stacklevel=2)
    return Found(tuple(found.values()), left_out)


@dataclass(frozen=True)
class _Listing:
    """What one argument names; `root` is the folder that relative paths begin at, if there is."""

    root: Path | None
    images: Sequence[Path]
    suffixes: Mapping[str, int] = field(default_factory=dict)
    special: Sequence[str] = ()


def _listed(argument: str | os.PathLike[str], outside: Path | None) -> _Listing:
    """List a folder or a pattern, or name a file.

    Raises:
        ImageError: as `find_sources`.
    """
    path = Path(argument)
    if not str(argument):
        raise ImageError("an empty path: name an image, a folder or a pattern")
    if path.is_dir():
        listing = _sorted_out(path, files_below(path, outside=outside))
        nothing = f"{path}: no images in this folder"
    elif not path.exists() and glob.has_magic(str(argument)):
        listing = _sorted_out(_fixed_part(path), _matches(str(argument), outside))
        nothing = f"{argument}: no image matches this pattern"
    elif (
        not path.exists() and not path.is_symlink() and path.suffix.lower() not in image_suffixes()
    ):
        raise ImageError(f"{argument}: no such file or folder")
    else:
        return _Listing(None, [path])
    if not listing.images:
        rest = LeftOut(listing.suffixes, tuple(listing.special)).line()
        raise ImageError(f"{nothing}; {rest}" if rest else nothing)
    return listing


def _sorted_out(root: Path, paths: Iterable[Path]) -> _Listing:
    """Tell images from other files by their suffix, and files from pipes."""
    read, images, files, special = image_suffixes(), [], Counter[str](), []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in read:
            files[suffix] += path.is_file()
        elif path.is_file() or not path.exists():  # a link that leads nowhere is for the loader
            images.append(path)
        else:
            special.append(str(path))
    return _Listing(root, images, {s: n for s, n in files.most_common() if n}, special)


def files_below(folder: Path, *, outside: Path | None = None) -> Iterator[Path]:
    """Yield what is in a folder and its subfolders and is no folder, in no certain order.

    Hidden files and folders are skipped. Linked folders are followed, after all others, so that a
    file keeps its own path; each folder is entered once, and none that holds the link to it.

    Args:
        folder: where to begin.
        outside: a folder that is left out.

    Raises:
        ImageError: a folder cannot be read.
    """
    hidden = None if outside is None else Path(outside).resolve()
    entered = set[tuple[int, int]]()
    if hidden is not None and hidden.exists() and not hidden.samefile(folder):
        entered.add(_identity(hidden))
    waiting, links = [os.fspath(folder)], list[str]()
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
            link = links.pop()
            target = Path(link).resolve()
            around = Path(link).parent.resolve().is_relative_to(target)
            if around or (hidden is not None and target.is_relative_to(hidden)):
                continue
            waiting.append(link)
        parent = waiting.pop()
        try:
            place = _identity(parent)
            if place in entered:
                continue
            entered.add(place)
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not _is_folder(entry):
                        yield Path(entry.path)
                    else:
                        (links if entry.is_symlink() else waiting).append(entry.path)
        except OSError as error:
            reason = error.strerror or error
            raise ImageError(f"{error.filename or parent}: cannot be read ({reason})") from None


def regular_files_below(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Yield the files of `files_below` with one of these suffixes, in lower case.

    Pipes, sockets and devices, which would never end, are left out, and links that lead to none.

    Raises:
        ImageError: a folder cannot be read.
    """
    for path in files_below(folder):
        if path.suffix.lower() in suffixes and path.is_file():
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _spelled(path: Path) -> str:
    return os.path.normpath(path.absolute())


class _Places:
    """Tells whether two paths are one file, without a look at most files."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[object, ...]] = {}
        self._names: dict[str, dict[str, str]] = {}

    def key(self, path: Path) -> tuple[object, ...]:
        """Return what all spellings of a path have in common, and other files do not."""
        try:
            if path.is_symlink():
                path = path.resolve()
            parent = os.fspath(path.parent)
            if parent not in self._folders:
                self._folders[parent] = _identity(parent)
            return (*self._folders[parent], self._name(parent, path.name))
        except (OSError, RuntimeError):  # of links in a circle: the latter before Python 3.13
            return (_spelled(path),)

    def _name(self, parent: str, name: str) -> str:
        """Return a name as its folder spells it, where case does not count."""
        if not _FOLDS_CASE:
            return name
        if parent not in self._names:
            self._names[parent] = {_folded(p.name): p.name for p in Path(parent).iterdir()}
        known = self._names[parent]
        return known.get(_folded(name), name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


_LARGEST_LIST = 1 << 28  # bytes: some million paths


def _has_mark(content: bytes) -> bool:
    """Return whether a text is in UTF-16, as PowerShell writes it."""
    return content.startswith((b"\xff\xfe", b"\xfe\xff"))


def read_list(file: IO[bytes]) -> list[str]:
    """Read paths, one a line, or separated by NUL bytes as `find -print0` writes them.

    Empty lines are skipped.

    Raises:
        ImageError: it is no list, or larger than that of all photos of a disk.
    """
    content = file.read(_LARGEST_LIST + 1)
    if len(content) > _LARGEST_LIST or (b"\0\0" in content and not _has_mark(content)):
        raise ImageError("expected a list of photos, a path a line, got something else")
    if _has_mark(content):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def _matches(pattern: str, outside: Path | None) -> list[Path]:
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (takes absolute ones)
    paths = [path for path in map(Path, found) if not path.is_dir()]
    if outside is None:
        return paths
    left_out = outside.resolve()
    return [path for path in paths if not path.resolve().is_relative_to(left_out)]


def _fixed_part(pattern: Path) -> Path:
    """Return the folder above the first part of a pattern that is not a plain name."""
    folder = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        folder /= part
    return folder


def _relative(path: Path, root: Path | None) -> str:
    """Return an image's path below a folder; without one, its whole path without the root."""
    if root is not None:
        return path.relative_to(root).as_posix()
    plain = Path(os.path.normpath(path))
    if ".." in plain.parts:
        plain = path.resolve()
    return plain.relative_to(plain.anchor).as_posix()
