"""The verbs, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from maskclip.cli import convert, data, evaluate, label, lists, segment, train

app = typer.Typer(
    name="maskclip",
    help="Free dense labels from CLIP: words and images in, a label for every pixel out.",
    epilog="Try it offline: maskclip emoji scenes --out scenes --count 4, then "
    "maskclip segment scenes/JPEGImages --vocabulary emoji --model emoji",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"maskclip {version('maskclip')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


app.command("segment")(segment.segment)
app.command("label")(label.label)
app.command("eval")(evaluate.evaluate)
app.command("train")(train.train)
app.command("convert")(convert.convert)
app.command("recipes")(lists.recipes)
app.command("models")(lists.models)
app.command("vocabularies")(lists.vocabularies)
app.command("doctor")(lists.doctor)
app.add_typer(data.app, name="data")
app.add_typer(data.emoji_app, name="emoji")
