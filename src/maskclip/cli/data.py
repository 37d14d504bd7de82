"""`maskclip data`: the data sets of the field."""

from __future__ import annotations

import typer

from maskclip.cli import check, convert

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def _main() -> None:
    """Data sets: make the masks that they are scored by, and check that they are whole.

    **Examples**

    `maskclip data convert cocostuff --data ~/data`

    `maskclip data check cocostuff171 --data ~/data`
    """


app.command("convert")(convert.convert)
app.command("check")(check.check)
