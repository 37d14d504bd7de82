"""`maskclip convert`: any checkpoint of a student -> one safe file with its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskclip.cli import options as opt
from maskclip.cli.inputs import read_vocabulary
from maskclip.core.errors import MaskCLIPError

_SHOWN = 6  # names of classes that are printed


def convert(
    file: Annotated[
        Path,
        typer.Argument(
            help="A student: the authors' .pth, a .ckpt of a training, or .safetensors."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The file to write, .safetensors.")],
    names: opt.ClassNames = None,
    classes: opt.ClassFile = None,
    vocabulary: opt.ClassSet = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Convert a trained student to .safetensors, with its classes, for `segment` and `eval`.

    The classes are those that FILE names, unless you give them.

    **Examples**

    `maskclip convert maskclip_plus_voc.pth student.safetensors --vocabulary voc20`

    `maskclip convert runs/a/last.ckpt student.safetensors`

    `maskclip convert old.pth student.safetensors --classes classes.txt --force`
    """
    from maskclip.cli.console import print_line, print_path, working

    if out.suffix != ".safetensors":
        raise MaskCLIPError(f"{out}: students are written as .safetensors; choose such a name")
    if out.exists() and not force:
        raise MaskCLIPError(f"{out} is there already: choose another name, or add --force")
    words = None
    if names or classes is not None or vocabulary is not None:
        words = read_vocabulary(names or [], classes, vocabulary)

    from dataclasses import replace

    from maskclip.plus.files import read_student, save_student

    with working(f"reading {file}"):
        trained = read_student(file)
    if words is not None:
        trained = replace(trained, vocabulary=words)
    try:
        save_student(trained, out)
    except OSError as error:
        raise MaskCLIPError(f"{out} cannot be written ({error.strerror or error})") from error
    known = trained.vocabulary
    shown = ("without names",) if known is None else known.names
    carried = ", ".join(shown[:_SHOWN]) + (" ..." if len(shown) > _SHOWN else "")
    print_line(f"{len(trained)} classes: {carried}")
    print_path(out)
