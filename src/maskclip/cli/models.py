"""`maskclip models`: what `--model` and `--student` can name."""

from __future__ import annotations


def models() -> None:
    """List the models and their weights, and the students; * marks weights on this machine.

    Students are networks for `maskclip train --student`. Their backbones start from ImageNet's
    weights, or from a file of timm's with `--student-weights FILE`.

    **Examples**

    `maskclip models`

    `maskclip segment photo.jpg -c dog --model RN50:openai`
    """
    from maskclip.cli.console import print_line, print_table
    from maskclip.clip.embedded import ALIASES, EMBEDDED
    from maskclip.clip.published import architectures, cached_path, tags
    from maskclip.core.config import PREVIEWS

    other_names = {name: alias for alias, name in ALIASES.items()}
    rows = [
        (name, f"embedded, ready offline; also called {other_names[name]}")
        if name in other_names
        else (name, "embedded, ready offline")
        for name in EMBEDDED
    ]
    rows += [(name, "a preview without CLIP, of everyday words on photos") for name in PREVIEWS]
    for architecture in architectures():
        known = [f"{tag}*" if cached_path(architecture, tag) else tag for tag in tags(architecture)]
        rows.append((architecture, " ".join(known) or "none published: use --weights FILE"))
    print_table("model", "weights (use as MODEL:TAG; * is on this machine)", rows=rows)
    print_line()
    print_table("student", "network (use with `maskclip train --student`)", rows=_students())


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
