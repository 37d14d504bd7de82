"""`png`: label maps as images, as Pascal VOC has them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from maskclip.core.draw import palette_image
from maskclip.core.files import atomic_path, write_text
from maskclip.data.formats.base import Format, Labeled

_VOID = (224, 224, 192)  # VOC's colour of index 255


class Palette(Format):
    """`NAME.png`: pixel values are class ids, and 255 where nothing is said.

    They are palette images in the vocabulary's colours, with VOC's cream for the ignored label.
    Beyond 255 classes they are 16-bit grey, and 65,535 is ignored. `classes.txt` names the classes,
    one a line, from id 0.
    """

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the image."""
        return (self.out / f"{name}.png",)

    def write(self, item: Labeled) -> None:
        """Write the image."""
        labels = self.class_ids(item)
        if labels.dtype == "uint8":
            spare = self.vocabulary.ignore - len(self.vocabulary)
            image = palette_image(labels, (*self.vocabulary.colors, *[(0, 0, 0)] * spare, _VOID))
        else:
            image = Image.fromarray(labels)
        with atomic_path(*self.files(item.name)) as temporary:
            image.save(temporary)

    def finish(self, names: Iterable[str]) -> None:
        """Write the names of the classes."""
        write_text("".join(f"{name}\n" for name in self.vocabulary.names), self.out / "classes.txt")
