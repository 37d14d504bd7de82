"""What open_clip publishes: architectures, their tags, and where the weights of a tag lie."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import open_clip

from maskclip.clip.checkpoint import MissingWeightsError, WeightsError
from maskclip.clip.families import traits_of_config, why_not
from maskclip.clip.hub import (
    DownloadError,
    cache_folder,
    cached_file,
    fetch_address,
    hub_file,
    hub_files,
    url_cache,
)
from maskclip.clip.model import OPENAI_MEAN, OPENAI_STD, Statistics
from maskclip.clip.towers import UnsupportedTowerError, adapter_for
from maskclip.core.errors import did_you_mean
from maskclip.core.text import brief

_log = logging.getLogger(__name__)


def architectures() -> list[str]:
    """Return open_clip's architectures that have a dense reading."""
    return [name for name in open_clip.list_models() if _is_read_densely(model_config(name))]


def tags(architecture: str) -> list[str]:
    """Return the pretrained tags of an architecture."""
    return list(open_clip.list_pretrained_tags_by_model(architecture))


def model_config(architecture: str) -> dict[str, Any]:
    """Return the configuration of one of open_clip's architectures."""
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    return config


def known_config(name: str, other_names: Collection[str]) -> dict[str, Any]:
    """Return the configuration of an architecture that has a dense reading.

    `name` may have slashes, as OpenAI's have (ViT-B/16), and a tag, which does not matter here;
    `other_names` are models of another kind, for the hint that an unknown name gets.

    Raises:
        WeightsError: open_clip does not know it.
        UnsupportedTowerError: it has no dense reading.
    """
    given = name.partition(":")[0]
    architecture = given.replace("/", "-")
    if architecture not in open_clip.list_models():
        path = "" if architecture == given else ", and no file or folder of this name"
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", given):
            path += f" (a repository of the hub is written hf-hub:{given})"
        raise WeightsError(
            f"unknown model {brief(given)}{path}{_nearest(architecture, other_names)}; "
            "`maskclip models` lists them"
        )
    config = model_config(architecture)
    check_read(config, architecture)
    return config


def _nearest(name: str, other_names: Collection[str]) -> str:
    """Return the names that an unknown one may mean, as the end of a line: of all there are."""
    known = {each.casefold(): each for each in (*other_names, *architectures())}
    for architecture in open_clip.list_models():
        for tag in tags(architecture):
            repository = hub_files(published_config(architecture, tag))[0]
            # Names have lost their slashes by now. The first tag of a repository is the plain one.
            known.setdefault(repository.replace("/", "-").casefold(), f"{architecture}:{tag}")
    near = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.4)
    found = dict.fromkeys(known[each] for each in near)
    return f"; nearest: {', '.join(found)}" if found else ""


def check_read(config: dict[str, Any], name: str) -> None:
    """Refuse a configuration whose image tower has no dense reading; `name` says whose it is.

    Raises:
        UnsupportedTowerError: as said.
    """
    if not _is_read_densely(config):
        reason = why_not(traits_of_config(config))
        raise UnsupportedTowerError(f"{name} has no dense reading here: {reason}")


def _is_read_densely(config: dict[str, Any]) -> bool:
    return adapter_for(traits_of_config(config)) is not None


def default_tag(architecture: str) -> str:
    """Return the tag of an architecture that is named without one.

    Raises:
        WeightsError: it has none, or several and none of OpenAI's.
    """
    known = tags(architecture)
    if "openai" in known:
        return "openai"
    if len(known) == 1:
        return known[0]
    if not known:
        raise WeightsError(f"{architecture} has no published weights: give `weights=FILE`")
    raise WeightsError(
        f"{architecture} has several weights: say {architecture}:TAG with one of {', '.join(known)}"
    )


def published_config(architecture: str, tag: str) -> dict[str, Any]:
    """Return what open_clip says of the weights of a tag: where they are, how they were trained.

    Raises:
        WeightsError: there is no such tag.
    """
    if tag not in tags(architecture):
        near = did_you_mean(tag.casefold(), tags(architecture))
        raise WeightsError(
            f"{architecture} has no weights tagged {brief(tag)}{near}: expected one of "
            f"{', '.join(tags(architecture)) or 'none; give `weights=FILE`'}"
        )
    pretrained: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    return pretrained


def statistics_of(architecture: str, tag: str) -> tuple[Statistics, Statistics]:
    """Return the RGB mean and std of a training, for pixels in [0, 1].

    Without a tag, those that all published weights of the architecture share; OpenAI's where they
    share none, or there are none.

    Raises:
        WeightsError: there is no such tag.
    """
    found = {
        (tuple(each.get("mean") or OPENAI_MEAN), tuple(each.get("std") or OPENAI_STD))
        for name in ([tag] if tag else tags(architecture))
        for each in [published_config(architecture, name)]
    }
    return found.pop() if len(found) == 1 else (OPENAI_MEAN, OPENAI_STD)


def cached_path(architecture: str, tag: str) -> Path | None:
    """Return where the weights lie on this machine, or None when they were never downloaded."""
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    repository, files = hub_files(pretrained)
    for file in files:
        found = cached_file(repository, file)
        if found is not None:
            return found
    legacy = url_cache(pretrained)
    return legacy if legacy is not None and legacy.is_file() else None


def locate(architecture: str, tag: str) -> Path:
    """Return the weights' path; download them first, from the hub or else from their own address.

    Raises:
        MissingWeightsError: they are not on this machine and cannot be downloaded.
    """
    cached = cached_path(architecture, tag)
    if cached is not None:
        return cached
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    repository, files = hub_files(pretrained)
    try:
        if files:
            return hub_file(repository, *files)
        return _from_address(pretrained)
    except DownloadError as error:
        try:
            if files and pretrained.get("url"):
                return _from_address(pretrained)
        except DownloadError as second:
            _log.debug("nor from its own address: %s", second)
        reason = _cannot_download(architecture, tag, pretrained, str(error))
        raise MissingWeightsError(reason, _EMBEDDED) from error


_EMBEDDED = (
    "try what needs no download: `model=photo` for photographs, `model=emoji` for drawn scenes"
)


def _cannot_download(architecture: str, tag: str, pretrained: dict[str, Any], why: str) -> str:
    repository, files = hub_files(pretrained)
    if files:
        what = f"{repository}/{files[0]}"
        where: Path | None = cache_folder(repository)
    else:
        what, where = pretrained["url"], url_cache(pretrained)
    return (
        f"the weights of {architecture}:{tag} ({what}) are not on this machine and cannot be "
        f"downloaded ({why}); they would be cached in {where}. Give a local file for "
        f"{architecture}:{tag} with `weights=FILE`"
    )


def _from_address(pretrained: dict[str, Any]) -> Path:
    """Download weights that have an address of their own, which may hold their hash."""
    url, target = pretrained["url"], url_cache(pretrained)
    assert target is not None
    parts = urlparse(url).path.split("/")
    digest = ""
    if "openaipublic" in url:
        digest = parts[-2]
    elif "mlfoundations" in url:
        digest = Path(parts[-1]).stem.rpartition("-")[2]
    fetch_address(url, target, digest=digest)
    return target
