"""The other verbs, and what all verbs share."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from maskclip.cli import console, main
from maskclip.clip import acceleration
from maskclip.core import probe
from maskclip.core.methods import COSTS, METHODS, SOURCES, for_any_tower, needed_blocks
from maskclip.core.vocabulary import Vocabulary, builtin_names
from tests.conftest import ROOT

VERBS = [
    (),
    ("segment",),
    ("eval",),
    ("convert",),
    ("models",),
    ("download",),
    ("recipes",),
    ("methods",),
    ("vocabularies",),
    ("doctor",),
    ("data",),
    ("data", "convert"),
    ("data", "check"),
    ("emoji",),
    ("emoji", "scenes"),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_help_text_carries_an_example(verb, capsys):
    assert main([*verb, "--help"]) == 0
    printed = capsys.readouterr().out
    command = " ".join(("maskclip", *verb))
    # The usage line is the first mention; an example is another.
    assert printed.replace("│", " ").count(command) >= 2


def test_help_does_not_import_torch():
    code = (
        "import sys; from maskclip.cli import main; main(['--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("maskclip ")


def test_unknown_verbs_and_missing_arguments_are_usage_errors():
    assert main(["segmnt"]) == 2
    assert main(["segment"]) == 2


def test_vocabularies_lists_every_set_and_the_classes_of_one(capsys):
    assert main(["vocabularies"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in builtin_names())
    assert main(["vocabularies", "context459"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 + 459


def test_models_lists_embedded_and_open_clip_models_without_cutting(capsys):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for name in ("emoji-rn", "emoji-vit", "RN50x64:openai", "ViT-B-16:laion2b_s34b_b88k"):
        assert f"\n{name} " in f"\n{listed}"
    assert "No published weights, for --weights FILE: " in listed
    assert "`maskclip models --students`" in listed
    assert all(line == line.rstrip() for line in listed.splitlines())


def test_models_lists_the_networks_of_students(capsys):
    assert main(["models", "--students"]) == 0
    listed = capsys.readouterr().out
    for part in ("deeplabv2-r101", "deeplabv2:BACKBONE", "decoders: unet, "):
        assert part in listed


def listed_as_json(capsys, *arguments):
    assert main(["models", "--json", *arguments]) == 0
    return {each["name"]: each for each in json.loads(capsys.readouterr().out)}


def test_models_are_filtered_by_name_family_size_and_licence(capsys, isolated):
    found = listed_as_json(capsys)
    one = found["ViT-B-16:openai"]
    assert (one["family"], one["image_size"], one["parameters"]) == ("vit", 224, 149_620_737)
    assert (one["bytes"], one["bytes_are_estimated"]) == (4 * 149_620_737, True)
    assert (one["license"], one["commercial"], one["path"]) == ("mit", True, None)
    assert one["license_source"].startswith("https://")
    assert set(listed_as_json(capsys, "ViT-H-14*")) < set(found)
    assert "ViT-H-14:laion2b_s32b_b79k" in listed_as_json(capsys, "laion/clip-vit-h")
    resnets = listed_as_json(capsys, "--family", "ResNet", "--max-size", "500MB")
    assert all(each["family"] == "resnet" for each in resnets.values())
    assert "RN50:openai" in resnets
    assert "RN50x16:openai" not in resnets
    commercial = listed_as_json(capsys, "--commercial")
    assert all(each["license"] in ("mit", "apache-2.0") for each in commercial.values())
    assert "ViT-B-16:metaclip_400m" not in commercial
    assert "ViT-B-16:dfn2b" not in commercial  # research only
    assert found["ViT-B-32:laion2b_e16"]["license"] == "unknown"
    assert "ViT-B-32:laion2b_e16" not in commercial
    assert main(["models", "ViT-B-32:laion2b_e16", "--commercial"]) == 0
    printed = capsys.readouterr().out
    assert "left out, since their licence is unknown here: 1" in printed
    assert "\\n" not in printed
    only = listed_as_json(capsys, "--license", "cc-by-nc-4.0")
    assert "ViT-B-16:metaclip_400m" in only
    assert not any(each["commercial"] for each in only.values())
    assert listed_as_json(capsys, "--cached") == {}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--family", "vitt"), "--family: no 'vitt' (did you mean vit"),
        (("--license", "MITT"), "--license: no 'mitt' (did you mean mit"),
        (("--max-size", "huge"), "--max-size: expected a size such as 600MB or 2GB, got 'huge'"),
    ],
)
def test_filters_of_models_that_there_are_not_are_one_line(arguments, line, capsys):
    assert main(["models", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--methods", "siglip2"), "--methods prints a list of its own, whole: expected it"),
        (("--methods", "--family", "vit", "--cached"), "without --family and --cached"),
        (("--students", "--commercial"), "--students prints a list of its own"),
        (("--students", "--methods"), "without --methods"),
        (("--students", "--json"), "without --json"),
    ],
)
def test_options_of_models_that_would_do_nothing_are_refused(arguments, line, capsys):
    assert main(["models", *arguments]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("resnt",), "no published weights are called like 'resnt' (did you mean resnet"),
        (("--family", "swin"), "--family swin leaves none of "),
        (
            ("RN50*", "--family", "eva", "--commercial"),
            "none of 12 published weights, which",
        ),
        (("RN50*", "--family", "eva"), "which are of resnet; `maskclip models` lists all"),
        (("MobileCLIP*", "--license", "mit"), "weights, which are under apple-amlr; "),
        (("MobileCLIP*", "--commercial"), "--commercial leaves none of "),
        (("RN101:openai", "--max-size", "9MB"), "the one called RN101:openai, the smallest of"),
        (("RN*", "--max-size", "9MB"), "the smallest of which is RN50:openai of ~408 MB; "),
        (("--cached",), "none of which is on this machine: `maskclip download NAME`"),
    ],
)
def test_the_filter_that_leaves_no_models_is_named_with_what_is_near(
    arguments, line, capsys, isolated
):
    assert main(["models", *arguments]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert line in said
    assert main(["models", "--json", *arguments]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("[]\n", f"{said}\n")


def test_the_list_of_models_needs_neither_torch_nor_open_clip():
    code = (
        "import sys; from maskclip.cli import main; main(['models']); "
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_doctor_says_what_a_bug_report_needs(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("python", "torch", "open_clip_torch", "cpu", "cache of weights", "emoji-rn"):
        assert part in printed


def test_doctor_measures_what_is_faster_here(capsys):
    assert main(["doctor", "--benchmark"]) == 0
    printed = capsys.readouterr().out
    recorded = json.loads(probe.record_path().read_text())
    for found in acceleration.PROBES:
        assert f"{recorded[next(iter(recorded))][found.name]:.2f}" in printed
        assert found.way.split()[0] in printed


def test_scenes_are_a_data_set_in_the_layout_of_voc(tmp_path, capsys):
    arguments = ["emoji", "scenes", "--out", str(tmp_path), "--count", "2", "--size", "64"]
    assert main(arguments) == 0
    names = (tmp_path / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert list(captions) == names
    classes = (tmp_path / "classes.txt").read_text().splitlines()
    assert tuple(classes) == Vocabulary.builtin("emoji").names
    for name in names:
        assert Image.open(tmp_path / "JPEGImages" / f"{name}.jpg").size == (64, 64)
        mask = Image.open(tmp_path / "SegmentationClass" / f"{name}.png")
        assert mask.mode == "P"
        assert np.asarray(mask).max() < len(classes)


def test_methods_are_listed_with_what_is_known_of_each_as_in_the_docs(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out.splitlines()
    header, *rows = printed[: 1 + len(METHODS)]
    assert header.split() == ["method", "published", "time", "needs", "from"]
    for row, (name, method) in zip(rows, METHODS.items(), strict=True):
        assert row.startswith(f"{name} ")
        source = SOURCES[name]
        parts = [f"{COSTS[name]:.2f}", source.paper, source.note]
        parts += [] if source.mean is None else [f"{source.mean:.1f}"]
        parts += ["any CLIP" if for_any_tower(method) else "a ViT"]
        parts += [f"{needed_blocks(method)} blocks"] * (needed_blocks(method) > 1)
        parts += ["31 patches"] * (name == "scclip")
        assert all(part in row for part in parts)
    docs = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    begin, end = "<!-- maskclip methods -->", "<!-- end of maskclip methods -->"
    listed = docs[docs.index(begin) + len(begin) : docs.index(end)]
    same = [line.removeprefix("    ") for line in listed.strip("\n").splitlines()]
    assert same == printed, "put what `maskclip methods` prints into docs/methods.md"
    for name in METHODS:
        assert f"\n| `{name}` | " in docs, f"no row of fields for {name} in docs/methods.md"


def test_methods_are_listed_for_programs(capsys):
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in listed] == list(METHODS)
    by_name = {method["name"]: method for method in listed}
    assert by_name["scclip"]["needs"] == {"vit": True, "blocks": 10, "patches": 31}
    assert by_name["clean"]["needs"] == {"vit": False, "blocks": 1, "patches": 1}
    assert by_name["naclip"]["published"] == 39.4
    assert by_name["naclip"]["fields"]["window"] == 5


@pytest.mark.parametrize(
    ("verb", "width", "left_out"),
    [
        ("models", 80, "px, family, parameters"),
        ("models", 100, "px, family"),
        ("models", 120, ""),
        ("recipes", 80, "teacher, network"),
    ],
)
def test_names_are_whole_in_a_terminal_and_a_pipe_has_all(
    verb, width, left_out, capsys, monkeypatch
):
    def screen(*, errors=False):
        return Console(file=sys.stdout, width=width, force_terminal=True, color_system=None)

    assert main([verb]) == 0
    piped = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    monkeypatch.setattr(console, "console", screen)
    assert main([verb]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert piped <= {line.split()[0] for line in lines}
    notes = ("No published weights", "* is the data set")  # lines of prose
    assert max(len(line) for line in lines if not line.startswith(notes)) <= width
    said = f"Left out, as the terminal is narrow: {left_out}. A pipe has all."
    assert (said in lines) == bool(left_out)
    if verb == "models":
        (line,) = (line for line in lines if line.startswith("ViT-B-16:openai "))
        assert " ".join(line.split()).endswith("~598 MB mit")


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_methods_fits_a_terminal(width, capsys, monkeypatch):
    def screen(*, errors=False):
        return Console(file=sys.stdout, width=width, force_terminal=True, color_system=None)

    monkeypatch.setattr(console, "console", screen)
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    for name in METHODS:  # names and figures are not broken
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        assert f"{COSTS[name]:.2f}" in line
