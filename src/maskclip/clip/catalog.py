"""The list of open_clip's published weights: family, size, licence, and whether they are here.

Names, sizes and repositories are in models.json, which `python -m tools.models` writes from
open_clip: its import takes longer than reading them. Where another release of open_clip is
installed than the one that the list was written from, they are read from that release instead.
Licences are those of the model cards on this machine, or else those of licenses.toml, each with
where it was read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from maskclip.clip.hub import cache_folder, cached_file, hub_files, url_cache
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.text import parse_toml, read_text

UNKNOWN = "unknown"
COMMERCIAL = frozenset(
    {"mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"}
)
"""Licences that allow commercial use, as model cards call them."""

_FAMILIES = (
    ("nllb", "nllb"),
    ("siglip2", "siglip2"),
    ("siglip", "siglip"),
    ("mobileclip2", "mobileclip2"),
    ("mobileclip", "mobileclip"),
    ("pe-core", "pe-core"),
    ("eva", "eva"),
    ("vitamin", "vitamin"),
    ("clipa", "clipa"),
    ("coca", "coca"),
    ("convnext", "convnext"),
    ("worldwide", "metaclip2"),
    ("roberta", "multilingual"),
    ("mt5", "multilingual"),
    ("swin", "swin"),
    ("rn", "resnet"),
)
# A part of an architecture's name -> its family; others are "vit".

_LARGEST_CARD = 1 << 20  # bytes
_LICENSE_LINE = re.compile(r"^(license(?:_name)?): *[\"']?([\w.+-]{1,60})[\"']? *$", re.MULTILINE)
_BYTES = 4  # of a weight: published files hold float32
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of an architecture that open_clip knows by a tag.

    Attributes:
        name: `ARCHITECTURE:TAG`.
        family: as `maskclip models --family` takes it.
        image_size: px of the square images of their training.
        parameters: of both towers; None where a text tower's are not known.
        size: bytes of the download: the file's where it is here, else 4 a parameter; None as above.
        license: as the model card names it, or `unknown`.
        source: where the licence was read; "" where it is unknown.
        repository: of the hub.
        path: the file on this machine, or None.
    """

    name: str
    family: str
    image_size: int
    parameters: int | None
    size: int | None
    license: str
    source: str
    repository: str
    path: Path | None

    @property
    def commercial(self) -> bool:
        """Whether the licence is one that allows commercial use; an unknown one is not."""
        return self.license.casefold() in COMMERCIAL


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which weights are listed; what is None or empty lets all pass.

    Attributes:
        pattern: a part of the name or repository, or a pattern of them with `*`; case is ignored.
        families, licenses: names, of which one must be theirs.
        max_size: bytes of the download.
        commercial: only licences that allow commercial use.
        here: only what is on this machine.
    """

    pattern: str = ""
    families: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    max_size: int | None = None
    commercial: bool = False
    here: bool = False

    def passes(self, weights: Weights) -> bool:
        """Whether weights are listed."""
        wanted = self.pattern.casefold()
        names = (weights.name.casefold(), weights.repository.casefold())
        return (
            (any(wanted in name or fnmatchcase(name, wanted) for name in names) or not wanted)
            and (not self.families or weights.family in self.families)
            and (not self.licenses or weights.license.casefold() in self.licenses)
            and (self.max_size is None or (weights.size or 0) <= self.max_size)
            and (self.max_size is None or weights.size is not None)
            and (not self.commercial or weights.commercial)
            and (not self.here or weights.path is not None)
        )


def published_weights() -> list[Weights]:
    """Return the weights of every architecture that has a dense reading, as open_clip lists them.

    Raises:
        MaskCLIPError: a table of the package is damaged.
    """
    found = []
    for architecture, about in _table().items():
        for tag, where in about["tags"].items() if about["read"] else ():
            found.append(_weights(f"{architecture}:{tag}", about, where))
    return found


def without_weights() -> list[str]:
    """Return the architectures that have a dense reading, and no published weights."""
    return [name for name, about in _table().items() if about["read"] and not about["tags"]]


def not_read() -> list[str]:
    """Return the architectures that have no dense reading."""
    return [name for name, about in _table().items() if not about["read"]]


def family_of(architecture: str) -> str:
    """Return the family of an architecture, by its name."""
    name = architecture.casefold()
    return next((family for part, family in _FAMILIES if part in name), "vit")


def families() -> list[str]:
    """Return the families that there are."""
    return sorted({family_of(name) for name in _table()})


def licenses() -> list[str]:
    """Return the licences of published weights, `unknown` among them."""
    return sorted({weights.license for weights in published_weights()})


def read_size(text: str) -> int:
    """Return bytes of a size such as `600MB`, `1.5 GB` or `2GiB`; without a unit, of bytes.

    Raises:
        MaskCLIPError: it is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise MaskCLIPError(f"`max_size`: expected a size such as 600MB or 2GB, got {text!r}")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " kmgt".index(found[2].casefold() or " "))


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> tuple[str, ...]:
    """Return names in lower case, if they are known.

    Raises:
        MaskCLIPError: one is not; `what` is the argument that gives them.
    """
    known, wanted = list(known), tuple(name.strip().casefold() for name in names)
    for name in wanted:
        if name not in {each.casefold() for each in known}:
            raise MaskCLIPError(
                f"`{what}`: no {name!r}{did_you_mean(name, known)}: expected some of "
                f"{', '.join(known)}"
            )
    return wanted


def license_of(repository: str) -> tuple[str, str]:
    """Return the licence of a repository's weights, and where it was read; or `unknown` and ""."""
    found = _license_of_card(repository)
    if found:
        return found
    known, patterns = _licenses()
    if repository in known:
        return known[repository]
    for pattern, entry in patterns:
        if fnmatchcase(repository, pattern):
            return entry
    return UNKNOWN, ""


def _weights(name: str, about: Mapping[str, Any], where: Mapping[str, Any]) -> Weights:
    repository, candidates = hub_files(where)
    here = cache_folder(repository).is_dir()
    found = (cached_file(repository, file) for file in candidates if here)
    path = next((file for file in found if file is not None), None)
    own = url_cache(where)
    if path is None and own is not None and own.is_file():
        path = own
    parameters = about["parameters"]
    size = path.stat().st_size if path is not None else None
    if size is None and parameters is not None:
        size = _BYTES * parameters
    kind, source = license_of(repository)
    return Weights(
        name=name,
        family=family_of(name.partition(":")[0]),
        image_size=about["image_size"],
        parameters=parameters,
        size=size,
        license=kind,
        source=source,
        repository=repository,
        path=path,
    )


@cache
def _table() -> dict[str, dict[str, Any]]:
    found = json.loads(files("maskclip.clip").joinpath("models.json").read_text("utf-8"))
    known: dict[str, dict[str, Any]] = found["architectures"]
    if found["open_clip"] == version("open_clip_torch"):
        return known
    return read_open_clip({name: about["parameters"] for name, about in known.items()})


def read_open_clip(known: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
    """Return what models.json has, of the open_clip that is installed.

    Args:
        known: the numbers of parameters of architectures; others, and those that are None, are
            counted, for which no memory is taken.
    """
    import open_clip

    from maskclip.clip.open_clip_models import count_parameters
    from maskclip.clip.published import architectures, model_config, published_config, tags

    read, found = set(architectures()), {}
    for name in open_clip.list_models():
        where = {tag: published_config(name, tag) for tag in tags(name)}
        found[name] = {
            "image_size": model_config(name)["vision_cfg"]["image_size"],
            "parameters": known.get(name) or count_parameters(name),
            "read": name in read,
            "tags": {
                tag: {key: each[key] for key in ("hf_hub", "url") if each.get(key)}
                for tag, each in where.items()
            },
        }
    return found


@cache
def _licenses() -> tuple[dict[str, tuple[str, str]], list[tuple[str, tuple[str, str]]]]:
    """Return the licences by repository, and those by patterns of their names."""
    path = files("maskclip.clip").joinpath("licenses.toml")
    exact, patterns = {}, []
    for entry in parse_toml(path.read_text("utf-8"), str(path), "a table of licences")["license"]:
        for repository in entry["repositories"]:
            found = (entry["name"], entry["source"])
            if "*" in repository:
                patterns.append((repository, found))
            else:
                exact[repository] = found
    return exact, patterns


def _license_of_card(repository: str) -> tuple[str, str] | None:
    """Return the licence that the model card says, where it is on this machine."""
    if not repository or not cache_folder(repository).is_dir():
        return None
    card = cached_file(repository, "README.md")
    if card is None:
        return None
    try:
        text = read_text(card, "a model card", limit=_LARGEST_CARD)
    except (MaskCLIPError, OSError):
        return None
    start, _, rest = text.partition("---\n")
    if start.strip():
        return None
    said = dict(_LICENSE_LINE.findall(rest.partition("\n---")[0]))
    name = said.get("license", "")
    if name == "other":
        name = said.get("license_name", name)
    return (name.casefold(), str(card)) if name else None
