"""`maskclip compare`: a table of cells that can be resumed, on a few small scenes."""

import csv
import json
import shutil
import subprocess
import sys

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip.cli import main
from maskclip.cli.inputs import default_evaluation
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, save_student
from maskclip.plus.student import build_student
from maskclip.tasks.evaluation import compare as task
from maskclip.tasks.evaluation import tables
from maskclip.tasks.evaluation.predictors import ModelPredictor

SCENES = ["emoji", "--size", "64", "--limit", "2", "--templates", "plain"]
GRID = ["--models", "emoji-rn,emoji-vit", "--methods", "clean,naclip", "--refine", "none,dominant"]
MEASURED = [
    *("emoji-rn_clean_none", "emoji-rn_clean_dominant"),
    *(
        f"emoji-vit_{method}_{name}"
        for method in ("clean", "naclip")
        for name in ("none", "dominant")
    ),
]
OF_THE_MACHINE = ("seconds", "memory_mib")


def compare(out, *arguments):
    return main(["compare", *SCENES, *(arguments or GRID), "--out", str(out)])


def figures(out):
    """Return the cells of a table, without what hangs on the machine."""
    table = json.loads((out / "compare.json").read_text())
    return [
        {key: value for key, value in cell.items() if key not in OF_THE_MACHINE}
        for cell in table["cells"]
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison, to be read alone."""
    out = tmp_path_factory.mktemp("compared")
    assert compare(out) == 0
    return out


def test_the_table_has_every_cell_and_why_one_cannot_be(done):
    table = json.loads((done / "compare.json").read_text())
    cells = {(c["model"], c["method"], c["refinement"]): c for c in table["cells"]}
    assert len(cells) == 8
    assert (table["protocol"], table["images"], table["official_images"]) == ("segment", 2, 300)
    assert table["machines"][0]["threads"] >= 1
    for key, cell in cells.items():
        if key[:2] == ("emoji-rn", "naclip"):
            assert "this model is a ResNet" in cell["reason"]
            assert cell["miou"] is None
            assert cell["seconds"] is None
        else:
            assert cell["reason"] is None
            assert 0 < cell["miou"] < 100
            assert cell["seconds"] > 0
            assert (cell["memory_mib"] or 1) > 0
    first = cells["emoji-vit", "clean", "none"]  # of the same model
    other = cells["emoji-vit", "naclip", "none"]
    assert first["difference"] is None
    assert cells["emoji-rn", "clean", "none"]["difference"] is None
    assert other["difference"] == pytest.approx(other["miou"] - first["miou"])
    assert other["margin"] is None  # of two images
    rows = list(csv.DictReader((done / "compare.csv").read_text().splitlines()))
    assert float(rows[4]["miou"]) == pytest.approx(first["miou"])
    text = (done / "compare.md").read_text()
    assert r"\*" not in text  # of so few images none is the best
    assert "| emoji-rn: naclip | the method reads the blocks of a ViT" in text
    assert Image.open(done / "compare.png").width > 600


def same_as_eval(cell, folder, *arguments):
    assert main(["eval", *SCENES, "--model", "emoji-vit", *arguments, "--out", str(folder)]) == 0
    alone = json.loads((folder / "result.json").read_text())
    del alone["published"]
    assert {key: cell[key] for key in alone} == alone


def test_a_cell_scores_what_eval_does(done, tmp_path):
    cell = json.loads((done / "cells" / "emoji-vit_naclip_dominant.json").read_text())
    same_as_eval(cell, tmp_path, "--method", "naclip", "--refine", "dominant")


def test_superpixels_are_a_refinement_like_others(tmp_path):
    pytest.importorskip("skimage")
    arguments = ["--models", "emoji-vit", "--methods", "clean", "--refine", "slic,dominant+slic"]
    assert compare(tmp_path, *arguments) == 0
    cell = json.loads((tmp_path / "cells" / "emoji-vit_clean_dominant+slic.json").read_text())
    same_as_eval(cell, tmp_path / "alone", "--refine", "dominant", "--regions", "slic")


def test_a_stopped_comparison_goes_on_and_a_changed_one_is_refused(
    done, tmp_path, monkeypatch, capsys
):
    score, calls = ModelPredictor.score, []

    def stopped(self, encoded):
        calls.append(1)
        if len(calls) == 6:  # four are those of the first reading
            raise KeyboardInterrupt
        return score(self, encoded)

    monkeypatch.setattr(ModelPredictor, "score", stopped)
    assert compare(tmp_path) == 130
    assert sorted(path.stem for path in (tmp_path / "cells").iterdir()) == sorted(MEASURED[:2])
    assert not (tmp_path / "compare.json").exists()
    capsys.readouterr()
    assert compare(tmp_path) == 0
    assert len(calls) == 6 + 8
    printed = capsys.readouterr().out
    assert printed.count("(kept)") == 2
    assert "best: " not in printed
    assert figures(tmp_path) == figures(done)
    assert compare(tmp_path, *GRID, "--protocol", "published") == 2
    assert "protocol: 'segment' there, 'published' wanted" in capsys.readouterr().err


def test_another_limit_replaces_what_was_of_some_images(tmp_path, capsys):
    arguments = ["--models", "emoji-vit", "--methods", "clean", "--refine", "none"]
    assert compare(tmp_path, *arguments) == 0
    for limit in ("3", "1"):
        capsys.readouterr()
        assert compare(tmp_path, *arguments, "--limit", limit) == 0
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if "another number" in line]
        assert line.endswith("are of another number of images are measured again: 1")
        assert "(kept)" not in captured.out
        assert json.loads((tmp_path / "compare.json").read_text())["images"] == int(limit)
    assert compare(tmp_path, *arguments, "--limit", "2", "--protocol", "published") == 2
    assert "made with other settings" in capsys.readouterr().err


def test_a_model_that_cannot_be_had_leaves_the_others(tmp_path, capsys):
    arguments = ["--models", "RN50:openai,emoji-vit", "--methods", "clean,baseline"]
    assert compare(tmp_path, *arguments) == 1
    printed = capsys.readouterr().out
    assert "emoji-vit_baseline_none: mIoU" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("not measured: ")]
    assert line.startswith("not measured: RN50:openai: clean, baseline: the weights of RN50:openai")
    assert line.endswith("Give a local file for RN50:openai with --weights MODEL=FILE")
    assert "with --weights MODEL=FILE" in (tmp_path / "compare.md").read_text()
    assert compare(tmp_path, *arguments[:1], "RN50:openai", *arguments[2:]) == 2
    assert "nothing could be measured" in capsys.readouterr().err


def test_weights_may_be_random(monkeypatch, tmp_path):
    tiny, width = "ViT-tiny-16", {"width": 64, "layers": 2}
    vision, text = {"image_size": 32, "patch_size": 16, **width}, {"heads": 1, **width}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, tiny, config)
    arguments = ["--models", tiny, "--methods", "clean", "--limit", "1"]
    assert compare(tmp_path, *arguments, "--weights", f"{tiny}=random") == 0
    (cell,) = json.loads((tmp_path / "compare.json").read_text())["cells"]
    assert cell["miou"] is not None
    assert cell["published"] is None


def test_differences_are_to_the_first_of_a_model_and_the_best_is_of_enough_images():
    def content(miou, images=50):
        rest = {"pixel_accuracy": 1.0, "seconds": 1.0, "memory_mib": None, "method": "clean"}
        return {**rest, "miou": miou, "images": images, "influences": [miou / 100] * images}

    called = {name: (name[0], "clean", "none" if name[1] == "1" else "pamr") for name in CELLS}
    lines = tables.make_lines(dict(zip(CELLS, map(content, range(4)), strict=True)), called, {})
    assert [line.difference for line in lines] == [None, 1.0, None, 1.0]
    assert lines[1].margin == pytest.approx(1.96 * 50**0.5 / 100)
    assert tables.best_line(lines) is lines[3]
    few = tables.make_lines({name: content(1.0, 49) for name in CELLS}, called, {})
    assert tables.best_line(few) is None
    assert few[1].margin is None


CELLS = ("a1", "a2", "b1", "b2")


def test_of_a_changed_method_only_the_fields_that_differ_are_named(tmp_path, capsys):
    method = tmp_path / "mine.toml"
    method.write_text('base = "clean"\n')
    arguments = ["--models", "emoji-vit", "--methods", str(method), "--refine", "none"]
    assert compare(tmp_path / "out", *arguments) == 0
    method.write_text('base = "clean"\ntemperature = 30.0\n')
    capsys.readouterr()
    assert compare(tmp_path / "out", *arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "arithmetic.temperature: None there, 30.0 wanted; temperature: 30.3" in line
    assert "kernels" not in line


def test_a_damaged_cell_is_refused_in_one_line(done, tmp_path, capsys):
    shutil.copytree(done / "cells", tmp_path / "cells")
    cell = tmp_path / "cells" / f"{MEASURED[0]}.json"
    content = json.loads(cell.read_text())
    cell.write_text(json.dumps({key: content[key] for key in content if key != "seconds"}))
    assert compare(tmp_path) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "is damaged: expected a number or null as seconds, got nothing: delete it" in line


def test_auto_is_shown_as_what_it_became(tmp_path, capsys):
    assert compare(tmp_path, "--models", "emoji-vit", "--methods", "auto") == 0
    assert "emoji-vit  auto (clean)  none" in capsys.readouterr().out


def test_a_student_is_one_line_whatever_the_methods(tmp_path, capsys):
    vocabulary = Vocabulary.builtin("emoji")
    rows = F.normalize(torch.randn(len(vocabulary), 8), dim=1)
    student = build_student(StudentConfig(depth=50, width=8, embed_dim=8), rows).eval()
    path = tmp_path / "student.safetensors"
    save_student(TrainedStudent(student, vocabulary, 5), path)
    scenes = ["emoji", "--size", "64", "--limit", "1"]
    arguments = ["--models", str(path), "--methods", "clean,naclip", "--refine", "none,surgery"]
    assert main(["compare", *scenes, *arguments, "--out", str(tmp_path / "out")]) == 0
    table = json.loads((tmp_path / "out" / "compare.json").read_text())
    measured, refused = table["cells"]
    assert measured["method"] is None
    assert measured["miou"] is not None
    assert refused["refinement"] == "surgery"
    assert "trained student" in refused["reason"]
    assert "student with surgery" in capsys.readouterr().out


def test_warnings_are_said_once(tmp_path, capsys):
    root = tmp_path / "own"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        Image.new("L", (48, 48)).save(root / kind / "one.png")
    (root / "classes.txt").write_text("dog\nsomething that emojis never were\n")
    folders = [word for kind in ("images", "masks") for word in (f"--{kind}", str(root / kind))]
    command = ["compare", "folder", *folders, "--classes", str(root / "classes.txt")]
    options = ["--models", "emoji-vit", "--methods", "clean,naclip", "--templates", "plain"]
    assert main([*command, *options, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.count("never saw: ") == 1


def test_what_fails_while_measuring_is_a_reason_and_tried_again(tmp_path, monkeypatch, capsys):
    score, failing = ModelPredictor.score, [True]

    def short_of_memory(self, encoded):
        if self.options.refine and failing[0]:
            raise RuntimeError("CUDA out of memory")
        return score(self, encoded)

    monkeypatch.setattr(ModelPredictor, "score", short_of_memory)
    arguments = ["--models", "emoji-vit", "--methods", "clean", "--refine", "none,dominant"]
    assert compare(tmp_path, *arguments) == 0
    assert "not measured: emoji-vit: clean with dominant: memory ran out" in capsys.readouterr().out
    failing[0] = False
    assert compare(tmp_path, *arguments) == 0
    assert "not measured" not in capsys.readouterr().out

    def broken(self, encoded):
        raise AttributeError("a bug")

    monkeypatch.setattr(ModelPredictor, "score", broken)
    assert compare(tmp_path / "other", *arguments) == 1


def test_two_processes_share_whole_readings(done, tmp_path):
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["-m", "maskclip", "compare", *SCENES, *GRID, "--out", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, *launch, *command], capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("emoji val, 2 images") == 1
    assert figures(tmp_path) == figures(done)
    assert sorted(path.stem for path in (tmp_path / "cells").iterdir()) == sorted(MEASURED)


def test_all_methods_are_those_that_the_model_can_compute(tmp_path, monkeypatch, capsys):
    opened = []

    def listed(predictors, samples, run, *, progress):
        opened.extend(predictors)
        return iter([(name, {"reason": "not asked for"}) for name in predictors])

    monkeypatch.setattr(task, "measure", listed)
    assert compare(tmp_path, "--models", "emoji-vit") == 2
    assert "emoji-vit_pearl_none" in opened
    assert "emoji-vit_gem_none" not in opened
    captured = capsys.readouterr()
    assert "emoji-vit: gem, surgery: the method needs 6 blocks" in captured.out
    assert "nothing could be measured" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "clean,nacilp"], "unknown method 'nacilp' (did you mean naclip?)"),
        (["--methods", ","], "--methods is empty"),
        (["--refine", "none,pmar"], "unknown refinement 'pmar' (did you mean pamr?)"),
        (["--refine", "none,"], "--refine none,: a name is missing beside a comma"),
        (["--models", "nothing"], "unknown model 'nothing'"),
        (["--models", ""], "--models is empty"),
        (["--weights", "RN50:openai=nothing.pt"], "expected MODEL=FILE, and the file to be there"),
        (["--weights", "RN50:openai=random"], "no model is 'RN50:openai' here: there are emoji"),
        (["--protocol", "x"], "unknown protocol 'x'"),
        (["--data", "x"], "emoji is drawn"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, message, tmp_path, capsys):
    assert compare(tmp_path, *arguments) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")
    ]
    assert message in line


def test_an_unreadable_sample_ends_it(tmp_path, monkeypatch, capsys):
    from maskclip.emoji.scenes import EmojiScenes

    def fail(self, index):
        raise MaskCLIPError("scene 0 is damaged")

    monkeypatch.setattr(EmojiScenes, "__getitem__", fail)
    assert compare(tmp_path, "--methods", "clean") == 2
    assert "scene 0 is damaged" in capsys.readouterr().err


def test_previews_are_measured_as_segment_shows_them():
    assert default_evaluation("voc20", model="photo").protocol == "segment"
    assert default_evaluation("voc20", "windows", model="photo").protocol == "windows"
    assert default_evaluation("voc20").protocol == "published"
