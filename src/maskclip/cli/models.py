"""`maskclip models`: what `--model` and `--student` can name."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maskclip.clip.catalog import Filter, Weights


def models(
    pattern: Annotated[
        str,
        typer.Argument(
            help="Only weights with this in their name or repository, as laion, or of a pattern, "
            "as `ViT-L-*:*`; default: all."
        ),
    ] = "",
    family: Annotated[
        list[str] | None,
        typer.Option(help="Only of this family, as siglip2; repeat it for more. Default: all."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Only downloads up to this size, as 600MB or 2GB; default: all."
        ),
    ] = None,
    license: Annotated[
        list[str] | None,
        typer.Option(help="Only under this licence, as mit; repeat it for more. Default: all."),
    ] = None,
    commercial: Annotated[
        bool,
        typer.Option(
            "--commercial",
            help="Only under licences that allow commercial use, as far as they are known.",
        ),
    ] = False,
    cached: Annotated[bool, typer.Option("--cached", help="Only what is on this machine.")] = False,
    students: Annotated[
        bool, typer.Option("--students", help="List the networks for `maskclip train` instead.")
    ] = False,
    methods: Annotated[
        bool,
        typer.Option("--methods", help="List families, and which methods read each, instead."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the list as JSON, for programs.")
    ] = False,
) -> None:
    """List the models with their sizes and licences, or the networks of students.

    Weights are downloaded when they are first used, or ahead by `maskclip download`. Sizes after
    a ~ are of 4 bytes a parameter; licences are those of model cards, and `unknown` where none
    was found. Beside these, --model takes any `hf-hub:org/name`, folders and files.

    With --students, those for `maskclip train --student`. Their backbones start from ImageNet's
    weights, or from a file of timm's with `--student-weights FILE`.

    **Examples**

    `maskclip models`

    `maskclip models --commercial --max-size 1GB`

    `maskclip models "ViT-B-16*" --family vit --license mit`

    `maskclip models --methods`

    `maskclip segment photo.jpg -c dog --model RN50:openai`
    """
    from maskclip.cli.console import print_json, print_line, print_table
    from maskclip.clip import catalog

    if students or methods:
        others = {
            "a pattern": pattern,
            "--family": family,
            "--max-size": max_size,
            "--license": license,
            "--commercial": commercial,
            "--cached": cached,
            "--methods": students and methods,
            "--json": students and as_json,
        }
        _check_alone("--students" if students else "--methods", others)
    if students:
        print_table("student", "network (use with `maskclip train --student`)", rows=_students())
        return
    if methods:
        _print_methods(as_json=as_json)
        return
    wanted = catalog.Filter(
        pattern=pattern,
        families=catalog.check_names(family or (), catalog.families(), "family"),
        licenses=catalog.check_names(license or (), catalog.licenses(), "license"),
        max_size=None if max_size is None else catalog.read_size(max_size),
        commercial=commercial,
        here=cached,
    )
    published = catalog.published_weights()
    found = [each for each in published if wanted.passes(each)]
    if not found:
        print_line(_none_found(wanted, published), errors=as_json)
    if as_json:
        print_json([_as_json(each) for each in found])
        return
    if wanted == catalog.Filter():
        _print_own()
    if found:
        _print_weights(found)
    if commercial:
        unlicensed = replace(wanted, commercial=False, licenses=("unknown",))
        left_out = sum(map(unlicensed.passes, published))
        if left_out and not license:
            print_line(f"left out, since their licence is unknown here: {left_out}")
    if wanted == catalog.Filter():
        _print_rest()


def _check_alone(option: str, others: Mapping[str, object]) -> None:
    """Refuse what would do nothing beside an option that prints another list."""
    from maskclip.core.errors import MaskCLIPError

    if given := [name for name, value in others.items() if value]:
        raise MaskCLIPError(
            f"{option} prints a list of its own, whole: expected it without {' and '.join(given)}"
        )


def _print_own() -> None:
    """Print the models that need no download."""
    from maskclip.cli.console import print_line, print_table
    from maskclip.core.config import ALIASES, EMBEDDED, PREVIEWS

    other_names = {name: alias for alias, name in ALIASES.items()}
    rows = [
        (name, f"embedded, ready offline; also called {other_names[name]}")
        if name in other_names
        else (name, "embedded, ready offline")
        for name in EMBEDDED
    ]
    rows += [(name, "a preview without CLIP, of everyday words on photos") for name in PREVIEWS]
    print_table("model", "what it is", rows=rows)
    print_line()


def _print_weights(found: list[Weights]) -> None:
    from maskclip.cli.console import print_table

    rows = [
        (
            each.name,
            each.family,
            str(each.image_size),
            "" if each.parameters is None else f"{each.parameters / 1e6:,.0f} M",
            _size(each),
            each.license,
            "yes" if each.path is not None else "",
        )
        for each in found
    ]
    columns = ("model", "family", "px", "parameters", "download", "licence", "here")
    print_table(
        *columns,
        rows=rows,
        right=("px", "parameters", "download"),
        spare=("px", "family", "parameters"),
    )


def _size(weights: Weights) -> str:
    if weights.size is None:
        return ""
    about = "" if weights.path is not None else "~"
    if weights.size >= 10**9:
        return f"{about}{weights.size / 1e9:.1f} GB"
    return f"{about}{weights.size / 1e6:.0f} MB"


def _none_found(wanted: Filter, published: list[Weights]) -> str:
    """Say which filter leaves none of the weights that those before it let pass, and what is near.

    Args:
        wanted: the filters, which together let no weights pass.
        published: all weights.
    """
    left = published
    for name in (field.name for field in fields(wanted)):
        one = replace(type(wanted)(), **{name: getattr(wanted, name)})
        rest = [each for each in left if one.passes(each)]
        if not rest:
            break
        left = rest
    if name == "pattern":
        return _no_such_name(wanted.pattern)
    return f"{_emptying(name, wanted, left)}; `maskclip models` lists all"


def _no_such_name(pattern: str) -> str:
    from maskclip.clip.catalog import families, published_weights
    from maskclip.core.errors import did_you_mean

    names = families() + [
        name for each in published_weights() for name in (each.name, each.repository)
    ]
    near = did_you_mean(pattern.strip("*"), names)
    return f"no published weights are called like {pattern!r}{near}: `maskclip models` lists all"


def _emptying(name: str, wanted: Filter, left: list[Weights]) -> str:
    """Say what a filter has left of some weights, which is nothing, and what they are instead."""
    licenses = f"which are under {', '.join(sorted({each.license for each in left}))}"
    families = f"which are of {', '.join(sorted({each.family for each in left}))}"
    smallest = min(left, key=lambda each: each.size or math.inf)
    option, instead = {
        "families": (f"--family {' or '.join(wanted.families)}", families),
        "licenses": (f"--license {' or '.join(wanted.licenses)}", licenses),
        "max_size": (
            "--max-size",
            f"the smallest of which is {smallest.name} of {_size(smallest)}",
        ),
        "commercial": ("--commercial", licenses),
        "here": (
            "--cached",
            "none of which is on this machine: `maskclip download NAME` fetches one",
        ),
    }[name]
    count = f"{len(left)} published weights" if len(left) > 1 else f"the one called {left[0].name}"
    return f"{option} leaves none of {count}, {instead}"


def _print_rest() -> None:
    """Print what has no published weights, and where the students are."""
    from maskclip.cli.console import print_line
    from maskclip.clip.catalog import not_read, without_weights

    print_line()
    print_line(f"No published weights, for --weights FILE: {', '.join(without_weights())}")
    if unread := not_read():
        print_line(f"No dense reading: {', '.join(unread)}")
    print_line("Networks of students: `maskclip models --students`")


def _as_json(weights: Weights) -> dict[str, object]:
    architecture, _, tag = weights.name.partition(":")
    return {
        "name": weights.name,
        "architecture": architecture,
        "tag": tag,
        "family": weights.family,
        "image_size": weights.image_size,
        "parameters": weights.parameters,
        "bytes": weights.size,
        "bytes_are_estimated": weights.size is not None and weights.path is None,
        "license": weights.license,
        "license_source": weights.source,
        "commercial": weights.commercial,
        "repository": weights.repository,
        "path": None if weights.path is None else str(weights.path),
    }


def _print_methods(*, as_json: bool) -> None:
    """Print which methods read which families of image towers."""
    from maskclip.cli.console import print_json, print_table
    from maskclip.clip.readings import families

    if as_json:
        print_json([{"family": family, **asdict(reading)} for family, reading in families()])
        return

    rows = [
        (family, reading.architecture, f"{reading.cell} px", _named(reading.methods()))
        for family, reading in families()
    ]
    print_table("family", "such as", "grid cell", "methods", rows=rows, right=("grid cell",))


def _named(methods: list[str]) -> str:
    from maskclip.core.methods import METHODS

    missing = [name for name in METHODS if name not in methods]
    if not missing:
        return f"all {len(METHODS)}"
    return ", ".join(methods) if len(methods) <= len(missing) else f"all but {', '.join(missing)}"


def _students() -> list[tuple[str, str]]:
    from maskclip.plus.config import PUBLISHED_NAMES, TEACHER
    from maskclip.plus.networks import DECODERS

    return [
        *((name, "as published, on ResNet-v1c") for name in PUBLISHED_NAMES),
        (TEACHER, "the teacher's own, and a decoder to stride 4 that adds nothing at first"),
        ("deeplabv2:BACKBONE", "DeepLabv2 on any backbone that timm dilates to stride 8"),
        ("DECODER:BACKBONE", "of segmentation-models-pytorch on any backbone of timm"),
        ("", f"decoders: {', '.join(name for name in DECODERS if name != 'deeplabv2')}"),
        ("", "light backbones: tf_efficientnet_lite0, mobilenetv4_conv_small, resnet18"),
    ]
