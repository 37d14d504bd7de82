"""`scores`: the probability of every class, for those who learn from more than the winner."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from maskclip.core.files import atomic_path
from maskclip.data.formats.base import Format, Labeled


class Scores(Format):
    """`NAME.npz`, read by `numpy.load`, with

    - `probabilities`: (K, h, w) float16, of K classes on a grid that spans the photo: cell (i, j)
      is centred at ((i + 0.5) H / h, (j + 0.5) W / w), as `torch.nn.functional.interpolate` without
      `align_corners` takes it. In half precision they sum to 1 within 0.001 K.
    - `classes`: (K,) the classes' names.
    - `size`: (2,) int64, H and W of the photo.
    """

    wants_probabilities = True

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the archive."""
        return (self.out / f"{name}.npz",)

    def write(self, item: Labeled) -> None:
        """Write the archive."""
        maps, count = item.probabilities, len(self.vocabulary)
        if maps is None or maps.ndim != 3 or len(maps) != count or maps.size == 0:
            got = "none" if maps is None else f"{maps.shape}"
            raise ValueError(f"{item.name}: expected probabilities ({count}, h, w), got {got}")
        with atomic_path(*self.files(item.name)) as temporary:
            np.savez_compressed(
                temporary,
                probabilities=maps.astype(np.float16),
                classes=np.array(self.vocabulary.names),
                size=np.array(item.labels.shape, np.int64),
            )

    def finish(self, names: Iterable[str]) -> None:
        """Do nothing: each archive stands for itself."""
