"""Name the results of images: uniquely, after the images, in a tree or in one flat folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath, PurePosixPath


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
