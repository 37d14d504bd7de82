"""The files of a model, ahead of their use: where they come from, where they lie, and fetched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskclip.clip.checkpoint import MissingWeightsError, WeightsError
from maskclip.clip.hub import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    DownloadError,
    NoSuchFileError,
    cache_folder,
    cached_file,
    hub_address,
    hub_file,
    hub_files,
    hub_folder,
    names_folder,
)
from maskclip.clip.open_clip_folder import cached_config, read_folder, split_name
from maskclip.clip.published import default_tag, known_config, locate, published_config
from maskclip.clip.tokenizers import OTHER_FILES, VOCABULARY_FILES
from maskclip.core.config import ALIASES, EMBEDDED, PREVIEWS
from maskclip.core.files import atomic_path, write_json

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some files of a repository that a model needs.

    Attributes:
        what: `weights`, `configuration`, `tokenizer` or `model card`.
        repository: of the hub; `""` where only an address of its own is known.
        files: their names. Of weights and vocabularies one will do, the best first.
        revision: a branch, a tag or a commit of the repository.
    """

    what: str
    repository: str
    files: tuple[str, ...]
    revision: str = "main"

    def here(self) -> list[Path]:
        """Return those of its files that are on this machine."""
        found = (cached_file(self.repository, file, revision=self.revision) for file in self.files)
        return [path for path in found if path is not None]

    def addresses(self) -> list[str]:
        """Return where its files can be downloaded by hand."""
        start = f"{hub_address()}/{self.repository}/resolve/{self.revision}"
        return [f"{start}/{file}" for file in self.files]

    def place(self) -> Path:
        """Return the folder in which the hub's client looks for files that were put there by hand.

        Beside it, the file `reference` must say the folder's name.
        """
        known = self.reference()
        commit = known.read_text().strip() if known is not None and known.is_file() else ""
        return cache_folder(self.repository) / "snapshots" / (commit or self.revision)

    def reference(self) -> Path | None:
        """Return the file that says which folder a revision is; None for a commit, which is one."""
        is_commit = re.fullmatch(r"[0-9a-f]{40}", self.revision)
        return None if is_commit else cache_folder(self.repository) / "refs" / self.revision


def parts_of(name: str) -> list[Part]:
    """Return what a model needs of the hub; nothing is downloaded. Nothing for what is here anyway.

    Raises:
        MaskCLIPError: there is no such model.
    """
    if name in {*EMBEDDED, *ALIASES, *PREVIEWS}:
        return []
    if names_folder(name):
        return _parts_of_repository(name) if name.startswith(PREFIX) else []
    if Path(name).exists():
        raise WeightsError(f"{name} is a file or folder of this machine: name a model of the hub")
    architecture, tag = _split(name)
    repository, files = hub_files(published_config(architecture, tag))
    text = known_config(architecture, ())["text_cfg"]
    return [
        Part(what="weights", repository=repository, files=tuple(files)),
        *_tokenizer_of(text),
        Part(what="model card", repository=repository, files=(CARD,)),
    ]


def fetch(name: str) -> list[Path]:
    """Download what a model needs and is not on this machine, and return its files.

    Raises:
        MaskCLIPError: there is no such model, or its weights cannot be had.
        DownloadError: another file cannot be had.
    """
    found: list[Path] = []
    if name.startswith(PREFIX):
        folder = read_folder(name)
        found += [folder.path / CONFIG, folder.weights()]
    for part in parts_of(name):
        if part.what == "weights" and not name.startswith(PREFIX):
            found.append(_located(name))
        elif part.what == "tokenizer":
            files = (*VOCABULARY_FILES, *OTHER_FILES)
            kept = hub_folder(part.repository, VOCABULARY_FILES, files, revision=part.revision)
            found += [kept / file for file in files if (kept / file).is_file()]
        elif part.what == "model card":
            try:
                found.append(hub_file(part.repository, CARD, revision=part.revision))
            except NoSuchFileError:
                continue  # some have none
            except DownloadError:
                if not part.here() and not found:
                    raise
    return list(dict.fromkeys(found))


def _located(name: str) -> Path:
    try:
        return locate(*_split(name))
    except MissingWeightsError as error:
        raise DownloadError(
            f"{full_name(name)} cannot be downloaded ({error.__cause__}): `maskclip download "
            f"{full_name(name)} --list` says what to copy by hand"
        ) from error


def full_name(name: str) -> str:
    """Return a name with its tag, which may be left out where there is one, or one of OpenAI's."""
    here = name in {*EMBEDDED, *ALIASES, *PREVIEWS} or names_folder(name)
    return name if here else ":".join(_split(name))


def write_folder(name: str, target: Path) -> Path:
    """Write a model as a folder of open_clip's, which any machine reads: `--model FOLDER`.

    What is not on this machine is downloaded.

    Raises:
        MaskCLIPError, DownloadError: as `fetch`; or there is nothing to write.
        OSError: the folder cannot be written.
    """
    if not parts_of(name):
        raise WeightsError(f"{name} needs no download: it is on every machine that has maskclip")
    found = fetch(name)
    if name.startswith(PREFIX):
        folder = read_folder(name)
        weights, config = folder.weights(), folder.config
        mean, std = folder.mean, folder.std
    else:
        architecture, tag = _split(name)
        weights, config = _located(name), known_config(architecture, ())
        published = published_config(architecture, tag)
        config["quick_gelu"] = bool(config.get("quick_gelu") or published.get("quick_gelu"))
        mean, std = published["mean"], published["std"]
    kept = {path.name: path for path in found if path.name in {*VOCABULARY_FILES, *OTHER_FILES}}
    own = WEIGHTS[0] if weights.suffix == ".safetensors" else WEIGHTS[1]
    for file, path in {own: weights, **kept}.items():
        with atomic_path(target / file) as temporary:
            shutil.copyfile(path, temporary)
    preprocess = {"mean": list(mean), "std": list(std)}
    write_json({"model_cfg": config, "preprocess_cfg": preprocess}, target / CONFIG)
    return target


def _split(name: str) -> tuple[str, str]:
    """Return the architecture and the tag of a name, which may leave the only tag out."""
    architecture, _, tag = name.replace("/", "-").partition(":")
    known_config(name, (*EMBEDDED, *ALIASES, *PREVIEWS))
    return architecture, tag or default_tag(architecture)


def _parts_of_repository(name: str) -> list[Part]:
    repository, revision = split_name(name)
    config = cached_config(name)
    return [
        Part(what="configuration", repository=repository, files=(CONFIG,), revision=revision),
        Part(what="weights", repository=repository, files=WEIGHTS, revision=revision),
        *_tokenizer_of({} if config is None else config["text_cfg"]),
        Part(what="model card", repository=repository, files=(CARD,), revision=revision),
    ]


def _tokenizer_of(text: Mapping[str, Any]) -> list[Part]:
    repository = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    files = (*VOCABULARY_FILES, *OTHER_FILES)
    return [Part(what="tokenizer", repository=repository, files=files)] if repository else []
