"""`maskclip emoji`: the embedded world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def _main() -> None:
    """The embedded world: drawn scenes with exact masks, to try everything offline.

    **Example**

    `maskclip emoji scenes --out scenes --count 8`
    """


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the data set goes.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many scenes.")] = 8,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Of the first scene.")] = 0,
    size: Annotated[int, typer.Option(metavar="PX", min=1, help="Side of a scene.")] = 256,
) -> None:
    """Write scenes, masks and captions as a small data set in the layout of VOC.

    **Example**

    `maskclip emoji scenes --out scenes --count 8 --seed 0`
    """
    from maskclip.cli.console import console, track
    from maskclip.core.files import check_writable
    from maskclip.emoji.scenes import write_scenes

    check_writable(out)
    written = write_scenes(out, count=count, seed=seed, size=size)
    for _ in track(written, what="scenes", total=count):
        pass
    console().print(f"{count} scenes -> {out}", markup=False, soft_wrap=True)
