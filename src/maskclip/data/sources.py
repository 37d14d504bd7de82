"""Find the images that paths, folders, patterns and lists name, and name their results."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

from maskclip.data.images import IMAGE_SUFFIXES, ImageError

__all__ = ["Source", "find_sources", "output_names", "output_stems", "read_list"]


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


def find_sources(
    arguments: Sequence[str | os.PathLike[str]], *, outside: Path | None = None
) -> list[Source]:
    """Return the image files that paths, folders and patterns name, in order, each once.

    A folder gives all images in it and in its subfolders, sorted; hidden files and folders are
    skipped. A pattern (`*`, `?`, `[...]`, `**`) gives its matches, sorted; a path that exists is
    never taken as a pattern. A file that was named itself is returned even if it is missing or has
    no image's suffix: loading it reports the error.

    Args:
        arguments: paths, folders and patterns.
        outside: a folder whose images are skipped in folders and patterns: that of the results.

    Raises:
        ImageError: a folder without images, or that cannot be read; a pattern without a match; a
            path that does not exist, without an image's suffix.
    """
    found: dict[str, Source] = {}
    for argument in arguments:
        path = Path(argument)
        if not str(argument):
            raise ImageError("an empty path: name an image, a folder or a pattern")
        if path.is_dir():
            root, paths = path, sorted(_images_below(path, outside))
            if not paths:
                raise ImageError(f"{path}: no images in this folder")
        elif not path.exists() and glob.has_magic(str(argument)):
            root, paths = _fixed_part(path), _matches(str(argument), outside)
            if not paths:
                raise ImageError(f"{argument}: no image matches this pattern")
        elif not path.exists() and path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ImageError(f"{argument}: no such file or folder")
        else:
            root, paths = None, [path]
        for image in paths:
            relative = _without_root(image) if root is None else image.relative_to(root).as_posix()
            found.setdefault(str(image.absolute()), Source(image, relative))
    return list(found.values())


def read_list(file: IO[bytes]) -> list[str]:
    """Read paths, one a line, or separated by NUL bytes as `find -print0` writes them.

    Empty lines are skipped.
    """
    content = file.read().removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def _images_below(folder: Path, outside: Path | None) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise ImageError(f"{error.filename}: cannot be read ({error.strerror})")

    left_out = None if outside is None else outside.resolve()
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (left_out is None or not _is(parent, name, left_out))
        ]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and _is_image(path):
                yield path


def _is(parent: str, name: str, folder: Path) -> bool:
    return name == folder.name and Path(parent, name).resolve() == folder


def _matches(pattern: str, outside: Path | None) -> list[Path]:
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (takes absolute ones)
    images = [match for match in sorted(map(Path, found)) if _is_image(match)]
    if outside is None:
        return images
    left_out = outside.resolve()
    return [image for image in images if not image.resolve().is_relative_to(left_out)]


def _fixed_part(pattern: Path) -> Path:
    """Return the folder above the first part of a pattern that is not a plain name."""
    folder = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        folder /= part
    return folder


def _without_root(path: Path) -> str:
    plain = Path(os.path.normpath(path))
    if ".." in plain.parts:
        plain = path.resolve()
    return plain.relative_to(plain.anchor).as_posix()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def output_names(relative_paths: Sequence[str], *, taken: Collection[str] = ()) -> list[str]:
    """Return a unique name for the results of each image, in a tree like that of the images.

    It is the image's relative path without suffix. Where that is in `taken`, or of an image before
    it (upper and lower case count as the same), the suffix is added (`a/x_jpg`), then a number. So
    an image that comes first keeps its name, whatever comes later.
    """
    paths = [PurePosixPath(relative) for relative in relative_paths]
    plain = [str(path.with_name(_stem(path))) for path in paths]
    used = {name.casefold() for name in taken}
    owner: dict[str, int] = {}
    for index, name in enumerate(plain):
        if name.casefold() not in used:
            owner.setdefault(name.casefold(), index)
    first = list(owner.values())
    keep = set(first)
    wished = [
        name if index in keep or not path.suffix else f"{name}_{path.suffix[1:]}"
        for index, (name, path) in enumerate(zip(plain, paths, strict=True))
    ]
    return _numbered(wished, first=first, taken=used)


def output_stems(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a unique name for the results of each image, in one flat folder.

    It is the file's name without suffix. Where that would be the same for two (upper and lower case
    count as the same), the suffix is added (`x_jpg`, `x_png`), or as many parent folders as needed
    (`a_x`, `b_x`), or a number.
    """
    files = [Path(path) for path in paths]
    stems = [_stem(path) for path in files]
    groups: dict[str, list[int]] = {}
    for index, stem in enumerate(stems):
        groups.setdefault(stem.casefold(), []).append(index)
    for indices in groups.values():
        if len(indices) > 1:
            for index, stem in zip(
                indices, _longer_names([files[i] for i in indices]), strict=True
            ):
                stems[index] = stem
    return _numbered(stems, first=[group[0] for group in groups.values() if len(group) == 1])


def _stem(path: PurePath) -> str:
    """Return a file's name without suffix, unless nothing but dots would be left."""
    return path.stem if path.stem.strip(".") else path.name


def _longer_names(files: list[Path]) -> list[str]:
    """Return longer names for files of one stem: unique ones, if their paths differ."""
    suffixed = [f"{path.stem}_{path.suffix[1:]}" if path.suffix else path.stem for path in files]
    parents = [path.parent.resolve().parts[1:] for path in files]
    for depth in range(max(map(len, parents)) + 1):
        for names in ([_stem(path) for path in files], suffixed):
            heads = [parts[len(parts) - depth :] if depth else () for parts in parents]
            joined = ["_".join((*head, name)) for head, name in zip(heads, names, strict=True)]
            if len({name.casefold() for name in joined}) == len(joined):
                return joined
    return suffixed


def _numbered(stems: list[str], *, first: Sequence[int], taken: Collection[str] = ()) -> list[str]:
    """Add `_2`, `_3` ... to names that are taken; the names at `first` take precedence."""
    result, taken, before = list(stems), set(taken), set(first)
    for index in (*first, *(i for i in range(len(stems)) if i not in before)):
        name, number = stems[index], 1
        while name.casefold() in taken:
            number += 1
            name = f"{stems[index]}_{number}"
        taken.add(name.casefold())
        result[index] = name
    return result
