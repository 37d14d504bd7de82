"""Photos whose pixels vote by segments: superpixels, or label maps from a folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskclip.core.config import Options
from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning, require_extra
from maskclip.core.regions import SLIC, enlarge, superpixels, vote
from maskclip.data.region_folder import RegionFolder

if TYPE_CHECKING:
    from torch import Tensor

_MOST_NAMES = 3  # photos that a warning names


class Voting:
    """By which segments the pixels of photos vote; of `Options.regions`.

    Args:
        regions: `"slic"`, or a folder of label maps.

    Raises:
        MaskCLIPError: what makes superpixels is not installed, or there is no such folder.
    """

    def __init__(self, regions: str) -> None:
        self.folder: RegionFolder | None = None
        if regions == SLIC:
            require_extra("regions", "skimage")
        else:
            self.folder = RegionFolder(Path(regions))

    @classmethod
    def of(cls, options: Options) -> Voting | None:
        """Return that of options; None where pixels do not vote."""
        return None if options.regions is None else cls(options.regions)

    def check(self, photos: Sequence[str], done: Callable[[], Collection[str]] = tuple) -> None:
        """Warn of photos without a label map, which cannot be labelled.

        Args:
            photos: their paths.
            done: returns those that need no map any more; called where a map is missing.

        Raises:
            MaskCLIPError: none has one, or one map is that of two photos.
        """
        missing = [] if self.folder is None else self.folder.missing(photos)
        if missing:
            known = done()
            missing = [photo for photo in missing if photo not in known]
        if self.folder is None or not missing:
            return
        if len(missing) == len(photos):
            raise self.folder.no_map(missing[0])
        names = ", ".join(missing[:_MOST_NAMES]) + (", ..." if len(missing) > _MOST_NAMES else "")
        warnings.warn(
            f"{len(missing):,} of {len(photos):,} photos have no label map in "
            f"{self.folder.folder}, and cannot be labelled: {names}",
            MaskCLIPWarning,
            stacklevel=3,
        )

    def require(self, photos: Sequence[str]) -> None:
        """Check that all photos have a label map.

        Raises:
            MaskCLIPError: some have none, or one map is that of two photos.
        """
        missing = [] if self.folder is None else self.folder.missing(photos)
        if self.folder is not None and missing:
            raise MaskCLIPError(
                f"{self.folder.folder}: {len(missing):,} of {len(photos):,} label maps are "
                f"missing, the first {self.folder.expected(missing[0])}"
            )

    def fingerprint(self, photos: Sequence[str]) -> str:
        """Return what else but its settings decides a vote: a hash of the maps, or a version."""
        if self.folder is not None:
            return self.folder.fingerprint(photos)
        return f"scikit-image {version('scikit-image')}"

    def map_of(self, photo: str) -> Path | None:
        """Return the file that holds a photo's segments; None where they are made of the photo.

        Raises:
            MaskCLIPError: there is none, or several.
        """
        if self.folder is None:
            return None
        path = self.folder.find(photo)
        if path is None:
            raise self.folder.no_map(photo)
        return path

    def vote(
        self,
        labels: Labels,
        scores: npt.NDArray[np.float32],
        *,
        photo: str | None,
        seen: Tensor,
    ) -> tuple[Labels, npt.NDArray[np.float32]]:
        """Return labels and scores (H, W) after the vote.

        Args:
            labels, scores: (H, W), of `PhotoMaps.labels`.
            photo: its path; None for an image that has none.
            seen: (3, h, w) uint8, the photo at the network's size, of which superpixels are made.

        Raises:
            MaskCLIPError: the photo has no label map, or one that cannot be used.
        """
        if self.folder is None:
            found = superpixels(seen.permute(1, 2, 0).cpu().numpy())
            return vote(labels, scores, enlarge(found, labels.shape))
        if photo is None:
            raise MaskCLIPError(
                "`regions`: a folder is searched by the photo's name, and this image has none: "
                "give its path, or use `voted` of the segmentation"
            )
        return vote(labels, scores, self.folder.read(photo, labels.shape[::-1]))
