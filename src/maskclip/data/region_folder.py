"""Segments of photos in a folder: label maps that any tool made, found by the photos' names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.regions import SLIC, Regions
from maskclip.data.annotations.mask_folder import names_of_mask
from maskclip.data.kinds import image_suffixes
from maskclip.data.masks import MASK_SUFFIXES, MaskError, SizeError, open_mask, size_error
from maskclip.data.sources import regular_files_below

ARRAY = ".npy"
_SUFFIXES = (*MASK_SUFFIXES, ARRAY)


class RegionFolder:
    """Label maps `NAME.png` (or TIFF, BMP, .npy), in the tree that the photos lie in, or flat.

    A map is an image of as many pixels as its photo, whose values number its segments: a palette
    or grey levels of up to 16 bits, or colours, of which each is a segment; or an array (H, W) of
    whole numbers. Pixels of 0, of black or transparent ones, and below belong to no segment.

    Args:
        folder: of the maps.

    Raises:
        MaskCLIPError: there is no such folder, or no map in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise MaskCLIPError(
                f"`regions`: no folder of label maps: {folder}{did_you_mean(str(folder), [SLIC])}; "
                "slic makes superpixels"
            )
        self.folder = folder
        self._by_name: dict[str, list[str]] = {}
        self._by_plain_name: dict[str, list[str]] = {}
        for path in sorted(regular_files_below(folder, _SUFFIXES)):
            relative = path.relative_to(folder).as_posix()
            stem = PurePosixPath(relative).with_suffix("").as_posix()
            name, *plain = (name.casefold() for name in names_of_mask(stem))
            self._by_name.setdefault(name, []).append(relative)
            for one in plain:
                self._by_plain_name.setdefault(one, []).append(relative)
        if not self._by_name:
            raise MaskCLIPError(
                f"{folder}: no label maps in this folder: expected PNG, TIFF, BMP or .npy"
            )

    def find(self, photo: str) -> Path | None:
        """Return the map of a photo, by its path: of the longest end that a map is called like.

        Raises:
            MaskCLIPError: several maps are called so.
        """
        for name in _names_of_photo(photo):
            for known in (self._by_name, self._by_plain_name):
                paths = known.get(name.casefold(), [])
                if len(paths) > 1:
                    raise MaskCLIPError(
                        f"{self.folder}: {paths[0]} and {paths[1]} are both label maps of {photo}: "
                        "keep one of them"
                    )
                if paths:
                    return self.folder / paths[0]
        return None

    def missing(self, photos: Iterable[str]) -> list[str]:
        """Return the photos that have no map.

        Raises:
            MaskCLIPError: a map is that of two photos, or a photo has two.
        """
        owners, missing = dict[Path, str](), []
        for photo in photos:
            path = self.find(photo)
            if path is None:
                missing.append(photo)
            elif owners.setdefault(path, photo) != photo:
                raise MaskCLIPError(
                    f"{path} is called like {owners[path]} and {photo}: put label maps into "
                    "folders as the photos are, or add the photos' suffix to their names"
                )
        return missing

    def read(self, photo: str, size: tuple[int, int]) -> Regions:
        """Return the segments (H, W) of a photo.

        Args:
            photo: its path.
            size: its (width, height), upright.

        Raises:
            MaskCLIPError: it has no map, or one that is damaged or of another size.
        """
        path = self.find(photo)
        if path is None:
            raise self.no_map(photo)
        if path.suffix.lower() == ARRAY:
            return _read_array(path, size)
        try:
            image, _ = open_mask(path, size)
        except SizeError as error:
            raise SizeError(str(error).replace("the mask is", "the label map is")) from None
        pixels = np.asarray(image)
        if pixels.ndim == 3:
            opaque = pixels[..., -1] > 0 if image.mode in ("LA", "PA", "RGBA") else True
            colors = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
            return np.where(opaque, _packed(colors), 0)
        if pixels.dtype.kind not in "iub":
            raise MaskError(f"{path}: expected whole numbers, got pixels of mode {image.mode}")
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)

    def expected(self, photo: str) -> Path:
        """Return the map of a photo that has none, by its plainest name."""
        name = PurePosixPath(photo)
        stem = name.stem if name.suffix.lower() in image_suffixes() else name.name
        return self.folder / f"{stem}.png"

    def no_map(self, photo: str) -> MaskCLIPError:
        """Return the error about a photo without a map."""
        return MaskCLIPError(
            f"{photo}: no label map of its segments: expected {self.expected(photo)}, or .npy"
        )

    def fingerprint(self, photos: Iterable[str]) -> str:
        """Return a hash of the content of the maps of photos, 16 hex digits.

        Raises:
            MaskCLIPError: a map cannot be read any more.
        """
        digest = hashlib.sha256()
        for path in map(self.find, photos):
            if path is not None:
                _check_regular(path)
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def _names_of_photo(photo: str) -> Iterator[str]:
    """Yield what a map may be called: ends of the path, the longest first, with the suffix or not.

    `.` and the like are not in the way: `../photos/a.jpg` is `photos/a`.
    """
    parts = PurePosixPath(os.path.normpath(photo).replace(os.sep, "/")).parts
    parts = tuple(part for part in parts if part not in ("..", "/") and not part.endswith(":\\"))
    for start in range(len(parts)):
        name = PurePosixPath(*parts[start:])
        yield name.as_posix()
        if name.suffix.lower() in image_suffixes() and name.stem.strip("."):
            yield name.with_suffix("").as_posix()


def _check_regular(path: Path) -> None:
    """Refuse what has taken the place of a map since it was listed, and would never end."""
    if not path.is_file():
        raise MaskError(f"{path}: no such file any more: expected a label map")


def _read_array(path: Path, size: tuple[int, int]) -> Regions:
    _check_regular(path)
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # headers may hold anything
        raise MaskError(
            f"{path}: cannot be read as a label map ({' '.join(str(error).split())}): expected an "
            "array (H, W) of whole numbers"
        ) from None
    if not isinstance(mapped, np.ndarray) or mapped.ndim != 2 or mapped.dtype.kind not in "iub":
        what = f"{mapped.dtype} of shape {mapped.shape}" if hasattr(mapped, "dtype") else "several"
        raise MaskError(f"{path}: expected an array (H, W) of whole numbers, got {what}")
    height, width = mapped.shape
    if (width, height) != size:
        raise size_error(f"{path}: the label map is", (width, height), size)
    return np.array(mapped, mapped.dtype.newbyteorder("="))


def _packed(colors: Regions) -> Regions:
    """Return a number for each colour (H, W, n) of 8 bits a channel; that of black is 0."""
    numbers: Regions = np.zeros(colors.shape[:2], np.int32)
    for channel in np.moveaxis(colors, 2, 0):
        numbers = numbers << 8 | channel
    return numbers
