"""Photos that visitors have uploaded to the page: each visitor's own, in memory, for a while."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from PIL import Image

from maskclip.data.images import read_image
from maskclip.web.kept import Kept

SHOWN_SIDE = 1600
"""Of the picture that a page shows, in px: larger photos are reduced to it."""
MOST_PHOTOS = 50
"""Of one visitor; another one takes the place of the longest unused."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo of a visitor.

    Attributes:
        name: of its file, as the visitor has it.
        data: the file.
        size: its (height, width), upright.
        shown: the picture that the page shows, no larger than `SHOWN_SIDE`.
        max_pixels: the limit that it was read with.
        digest: tells it apart from every other upload, of whomever.
    """

    name: str
    data: bytes
    size: tuple[int, int]
    shown: Image.Image
    max_pixels: int
    digest: str = field(default_factory=secrets.token_hex)

    def open(self) -> Image.Image:
        """Return the photo at its own size."""
        if self.shown.size == (self.size[1], self.size[0]):
            return self.shown
        return read_image(self.data, name="the photo", max_pixels=self.max_pixels)

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return len(self.data) + 3 * self.shown.width * self.shown.height


def read_photo(data: bytes, name: str, *, max_pixels: int) -> Photo:
    """Return the photo of a file in memory.

    Raises:
        ImageError: it cannot be read, or is too large.
    """
    image = read_image(data, name="the photo", max_pixels=max_pixels)
    size = (image.height, image.width)
    if max(size) > SHOWN_SIDE:
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return Photo(name, data, size, image, max_pixels)


class Photos:
    """Photos by visitor and id, within so many bytes and for so long.

    Args:
        max_bytes: what all photos may take together.
        max_seconds: how long one is kept after its last use.
    """

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._kept: Kept[tuple[str, str], Photo] = Kept(max_bytes, max_seconds)

    def add(self, visitor: str, photo: Photo, *, sender: str) -> str:
        """Keep a photo, and return the id that nobody can guess.

        Args:
            visitor: whose it is, by the cookie.
            photo: it.
            sender: who sent it, by `visitor_of`: memory is shared between those.
        """
        name = secrets.token_urlsafe(16)
        own = [key for key in self._kept.keys() if key[0] == visitor]  # noqa: SIM118
        for key in own[: max(0, len(own) + 1 - MOST_PHOTOS)]:
            self._kept.remove(key)
        self._kept.put((visitor, name), photo, photo.nbytes, sender)
        return name

    def get(self, visitor: str, name: str) -> Photo | None:
        """Return a visitor's photo; None where there is none, or it is another visitor's."""
        return self._kept.get((visitor, name))

    def remove(self, visitor: str, name: str) -> bool:
        """Let a visitor's photo go; return whether it was there."""
        return self._kept.remove((visitor, name))

    @property
    def held(self) -> int:
        """The bytes of all photos."""
        return self._kept.held
