"""`maskclip download`: weights and tokenizers, ahead of their use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from maskclip.clip.ahead import Part


def download(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Names of `maskclip models`, or `hf-hub:org/name@revision`."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write each model as a folder in this one as well: copied to any machine, it is a "
            "model there by its path. Default: the hub's cache alone.",
        ),
    ] = None,
    only_list: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Download nothing and ask nobody: say which files there are, where they come "
            "from, and where they lie.",
        ),
    ] = False,
) -> None:
    """Download models ahead, or say what to copy to a machine without a connection.

    What is on this machine is not downloaded again, a broken download goes on where it stopped,
    and every file is compared with the hash that the hub says. The hub's own variables hold:
    HF_HUB_CACHE is the folder, HF_ENDPOINT a mirror, HF_TOKEN the token for gated repositories.

    **Examples**

    `maskclip download ViT-B-16:openai ViT-L-14:laion2b_s32b_b82k`

    `maskclip download hf-hub:laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K --out models`

    `maskclip download ViT-B-16-SigLIP2:webli --list`
    """
    from maskclip.cli.console import print_line, print_path
    from maskclip.clip import ahead
    from maskclip.core.errors import MaskCLIPError

    if only_list and out is not None:
        raise MaskCLIPError("--list writes nothing: leave --out out, or --list")
    if out is not None and out.exists() and not out.is_dir():
        raise MaskCLIPError(f"--out: {out} is a file: expected a folder, or a new name for one")
    for name in models:  # unknown ones are refused before anything is downloaded
        parts = ahead.parts_of(name)
        if only_list:
            _list(name, parts)
        elif not parts:
            print_line(f"{name} needs no download")
    if only_list:
        return
    for name in models:
        if not ahead.parts_of(name):
            continue
        print_line(_announced(name), errors=True)
        with _waiting(name):
            found = ahead.fetch(name)
        for path in found:
            print_path(path)
        if out is not None:
            print_path(ahead.write_folder(name, out / _folder(ahead.full_name(name))))


@contextmanager
def _waiting(name: str) -> Iterator[None]:
    """Say where there is no terminal that it takes its time; on one, the hub's client has a bar."""
    from maskclip.cli.console import working

    with nullcontext() if sys.stderr.isatty() else working(f"downloading {name}"):
        yield


def _announced(name: str) -> str:
    """Return the line of what is about to be downloaded: its size and licence."""
    from maskclip.clip.ahead import full_name, parts_of
    from maskclip.clip.catalog import COMMERCIAL, license_of, published_weights

    weights = {each.name: each for each in published_weights()}.get(full_name(name))
    repository = next(part.repository for part in parts_of(name) if part.what == "weights")
    license = license_of(repository)[0]
    size = "" if weights is None or not weights.size else f", about {weights.size / 1e6:,.0f} MB"
    free = "" if license in COMMERCIAL else ", not known to allow commercial use"
    return f"{full_name(name)}: {repository}{size}; licence: {license}{free}"


def _folder(name: str) -> str:
    """Return a model's name as one of a folder."""
    return name.removeprefix("hf-hub:").replace("/", "--").replace(":", "--").replace("@", "--")


def _list(name: str, parts: list[Part]) -> None:
    """Print the files of a model, where each is from, and where it lies or has to lie."""
    from maskclip.cli.console import print_line, print_path
    from maskclip.clip.ahead import full_name

    if not parts:
        print_line(f"{name} needs no download")
        return
    print_line(full_name(name), style="bold")
    absent = []
    for part in parts:
        if here := part.here():
            print_line(f"  {part.what}: here")
            for path in here:
                print_path(path)
            continue
        if part.what != "model card":
            absent.append(part)
        print_line(f"  {part.what}: {_which(part)}")
        for address in part.addresses():
            print_line(f"    {address}")
    if any(part.what == "configuration" for part in absent):
        print_line("  tokenizer: its configuration names it, if it is not CLIP's own")
    if not absent:
        print_line("  To a machine without a connection, copy with the links in them:")
        for folder in dict.fromkeys(part.place().parents[1] for part in parts):
            print_line(f"    {folder}")
        return
    print_line("  For a machine without a connection, put these files there into:")
    for part in {each.place(): each for each in absent}.values():
        print_line(f"    {part.place()}")
        reference = part.reference()
        if reference is not None and not reference.is_file():
            print_line(f"    and the word {part.revision} into the text file {reference}")


def _which(part: Part) -> str:
    """Return how many of the files of a part are needed."""
    if part.what == "tokenizer":
        return "those of these files that there are"
    if part.what == "model card":
        return "for its licence alone"
    return "the first of these that there is" if len(part.files) > 1 else "this file"
