"""The folder of a labelling whose labels people have corrected: what they accepted or edited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from maskclip.core.text import counted
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations.mask_folder import MaskFolder
from maskclip.data.corrections import FOLDER, LABELS, REJECTED, Corrections


class CorrectedLabels(MaskFolder):
    """The labels of photos that people accepted or edited; of others nothing is said.

    Args:
        place: the folder of the labelling.
        photos: the names of photos: relative paths, with an image's suffix or without.
        vocabulary: the classes.

    Raises:
        MaskCLIPError: the journal of corrections is damaged, or has other classes.
    """

    title = "corrected labels"

    def __init__(self, place: Path, photos: Sequence[str], vocabulary: Vocabulary) -> None:
        corrections = Corrections(place)
        self._classes = corrections.classes
        super().__init__(place / LABELS, photos, vocabulary)
        self.place, self._files, self.unused = place, list(corrections.files()), []
        found, self.photos = self.photos, {}
        for photo, path in found.items():
            name = path.relative_to(place / LABELS).with_suffix("").as_posix()
            correction = corrections.of(name)
            if correction.state == REJECTED:
                self.rejected.add(photo)
            elif correction.reviewed:
                self.photos[photo] = corrections.labels_file(name)
        if self.rejected:
            left_out = counted(len(self.rejected), "rejected photo is", "rejected photos are")
            self.notes.append(f"{place}: {left_out} left out")

    def _own_names(self, path: Path) -> None:
        """Take the meaning of values from the journal."""
        self._take_names(self._classes, path.parents[1] / FOLDER)

    def expected(self, photo: str) -> str:
        """Return what would be a label."""
        return f"photos that were accepted or corrected in {self.place}"

    def files(self) -> Iterable[Path]:
        """Return the journal and the labels that it speaks of."""
        return [*self._files, *self.photos.values()]
