"""A client of `maskclip serve`, of the standard library and numpy alone: no torch is needed."""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, check_key, check_kind

ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]

_MOST_NARROW = 255  # classes of 8-bit labels
_LONGEST_WAIT = 1_000_000  # seconds; sockets know no endless ones
_MOST_WAITS = 10  # times that "busy" is waited for


@dataclass(frozen=True)
class AnswerClass:
    """A class of an `Answer`, whether it was found or not.

    Attributes:
        id: its value in `Answer.labels`.
        name: what it is called.
        words: what was looked for: the name, or its synonyms.
        color: `"#rrggbb"`.
        coverage: the fraction of pixels that it covers, 0 to 1.
        mean_score: the mean score of these pixels; None where it covers none.

    Examples:
        >>> client = maskclip.Client("http://127.0.0.1:8000")
        >>> answer = client.segment("photo.jpg", ["dog", "person=boy,woman"])
        >>> dog, person = answer.classes
        >>> dog.id, dog.name, person.words
        (0, 'dog', ('boy', 'woman'))
    """

    id: int
    name: str
    words: tuple[str, ...]
    color: str
    coverage: float
    mean_score: float | None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a service found in a photo: what `Client.segment` returns.

    Attributes:
        labels: (H, W) uint8 up to 255 classes, else uint16: the id of a class at each pixel; H and
            W are the photo's own.
        classes: all classes that were looked for, in the order of their ids.
        model: the name of the model that labelled the photo.
        method: the name of its method.
        notes: warnings of the service, a line each: what may not be as you think.

    Examples:
        >>> client = maskclip.Client("http://127.0.0.1:8000")
        >>> answer = client.segment("photo.jpg", ["dog", "grass"])
        >>> answer.labels.shape, answer.labels.dtype, answer.model, answer.notes
        ((256, 256), dtype('uint8'), 'emoji', ())
    """

    labels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    classes: tuple[AnswerClass, ...]
    model: str
    method: str
    notes: tuple[str, ...]


class Client:
    """A client of `maskclip serve`; torch is not loaded.

    Args:
        address: where the service is, `http://` or `https://`.
        key: the key of the service, where it has one; by default the environment variable
            `MASKCLIP_KEY`.
        timeout: seconds that a request may take.

    Raises:
        MaskCLIPError: the address is not one of HTTP, or the key cannot be sent.

    Examples:
        `maskclip serve --model emoji` runs on this machine:

        >>> client = maskclip.Client("http://127.0.0.1:8000")
        >>> answer = client.segment("photo.jpg", ["dog", "balloon", "grass"])
        >>> answer.labels.shape, [one.name for one in answer.classes]
        ((256, 256), ['dog', 'balloon', 'grass'])
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        _check_address(address)
        self.address = address.rstrip("/")
        self.key = os.environ.get("MASKCLIP_KEY") if key is None else key
        if self.key:
            check_kind(self.key, str, "`key`: expected a text")
            check_key(self.key)
        check_kind(timeout, Real, "`timeout`: expected a number of seconds")
        if not 0 < timeout <= _LONGEST_WAIT:
            raise MaskCLIPError(
                f"`timeout`: expected seconds above 0, at most {_LONGEST_WAIT:,}, got {timeout}"
            )
        self.timeout = timeout

    def segment(
        self,
        image: ImageSource,
        words: str | Sequence[str] | None = None,
        *,
        vocabulary: str | None = None,
        **options: Any,
    ) -> Answer:
        """Label every pixel of an image.

        Args:
            image: a path, the bytes of a file, a Pillow image or a uint8 array (H, W, 3).
            words: names as `Segmenter.segment` takes them, or one text as the page takes it.
            vocabulary: a built-in set, instead of words.
            options: what the service takes besides: `model`, `method`, `refine`, `background`,
                `key_smoothing`, `prompt_denoising`, `regions`, `short_side`, `window`, `stride`.

        Returns:
            The labels, of the image's own size, and their legend.

        Raises:
            MaskCLIPError: the service refuses, cannot be reached, or stays busy.

        Examples:
            >>> answer = client.segment("photo.jpg", ["dog", "grass"], background=0.6)
            >>> [one.name for one in answer.classes]
            ['background', 'dog', 'grass']
        """
        text = words if words is None or isinstance(words, str) else "; ".join(_names(words))
        if "format" in options:
            raise MaskCLIPError("`format`: labels come as an array, whatever they are sent as")
        fields = {"words": text, "vocabulary": vocabulary, **options}
        body, kind = _form({n: _text(v) for n, v in fields.items() if v is not None}, _file(image))
        answer = self._ask("/v1/segment", body, kind)
        try:
            return _found(answer)
        except (KeyError, TypeError, ValueError, OSError):
            raise MaskCLIPError(f"{self.address} answers otherwise than `maskclip serve`") from None

    def models(self) -> list[dict[str, Any]]:
        """Return the models of the service, the default first.

        Returns:
            A dictionary a model, with its `name` and what it can do.

        Raises:
            MaskCLIPError: the service refuses, or cannot be reached.

        Examples:
            >>> client.models()[0]["name"]
            'emoji'
        """
        return list(self._ask("/v1/models"))

    def vocabularies(self) -> list[dict[str, Any]]:
        """Return the built-in sets of classes.

        Returns:
            A dictionary a set, with its `name` and its classes.

        Raises:
            MaskCLIPError: the service refuses, or cannot be reached.

        Examples:
            >>> "voc21" in [one["name"] for one in client.vocabularies()]
            True
        """
        return list(self._ask("/v1/vocabularies"))

    def _ask(self, path: str, body: bytes | None = None, kind: str = "") -> Any:
        headers = {"Accept": "application/json"}
        if kind:
            headers["Content-Type"] = kind
        request = urllib.request.Request(f"{self.address}{path}", body, headers)
        if self.key:  # for this address, and for none to which it leads on
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        for waits in range(_MOST_WAITS + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    pause = error.headers.get("Retry-After", "")
                    if error.code != 503 or not pause.isdigit() or waits == _MOST_WAITS:
                        raise MaskCLIPError(f"{self.address}: {_reason(error)}") from None
                time.sleep(min(int(pause), 30))
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                raise MaskCLIPError(
                    f"{self.address} does not answer ({reason}): is `maskclip serve` running there?"
                ) from None
        raise AssertionError("not reached")


def _check_address(address: object) -> None:
    """Refuse what is no address of HTTP."""
    expected = "`address`: expected one with http:// or https://"
    check_kind(address, str, expected)
    try:
        parts = urlsplit(str(address))
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets or a port that are none
        known = False
    if not known:
        raise MaskCLIPError(f"{expected}, got {brief(address)}")


def _names(words: object) -> list[str]:
    """Return a list of names; refuse anything else."""
    listed = isinstance(words, Iterable) and not isinstance(words, Mapping)
    several: list[Any] = list(words) if listed else [None]  # type: ignore[call-overload]
    if not all(isinstance(word, str) for word in several):
        raise MaskCLIPError(f"`words`: expected a text or a list of names, got {brief(words)}")
    return several


def _found(answer: Any) -> Answer:
    with Image.open(io.BytesIO(b64decode(answer["labels"]))) as labels:
        found = np.array(labels)
    narrow = len(answer["classes"]) <= _MOST_NARROW
    return Answer(
        labels=found.astype(np.uint8) if narrow else found.astype(np.uint16),
        classes=tuple(
            AnswerClass(**{**one, "words": tuple(one["words"])}) for one in answer["classes"]
        ),
        model=answer["model"],
        method=answer["method"],
        notes=tuple(answer["notes"]),
    )


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"the answer is {error.code} {error.reason}"


def _text(value: object) -> str:
    """Return a value as a form has it: of a list, what `segment` writes as text."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _file(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            reason = getattr(error, "strerror", None) or error
            raise MaskCLIPError(f"{image}: {reason}") from None
    kinds = (Image.Image, np.ndarray)
    check_kind(image, kinds, "`image`: expected a path, bytes, a Pillow image or a uint8 array")
    file = io.BytesIO()
    try:
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture.save(file, "PNG")
    except (OSError, TypeError, ValueError, SystemError) as error:  # whatever Pillow has no PNG of
        raise MaskCLIPError(f"`image`: cannot be sent as PNG ({error})") from None
    return file.getvalue()


def _form(fields: dict[str, str], image: bytes) -> tuple[bytes, str]:
    """Return a form as multipart, and its content type."""
    mark = secrets.token_hex(16)
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = 'Content-Disposition: form-data; name="image"; filename="photo"'
    parts.append(f"--{mark}\r\n{head}\r\n\r\n".encode() + image + f"\r\n--{mark}--\r\n".encode())
    return b"".join(parts), f"multipart/form-data; boundary={mark}"
