import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import StudentConfig, StudentError
from maskclip.plus.files import (
    StudentMetadata,
    TrainedStudent,
    is_student_file,
    read_student,
    save_student,
    student_file,
)
from maskclip.plus.released import published_name
from maskclip.plus.student import build_student
from maskclip.tasks.segmenter import load

CONFIGS = {
    "v2": StudentConfig(depth=50, width=8, embed_dim=8),
    "v3plus": StudentConfig(
        decoder="deeplabv3plus", depth=50, width=8, skip=5, embed_dim=8, background=True
    ),
}
WORDS = {
    "plain": Vocabulary.parse(["dog", "person=man,woman", "red car"]),
    "words": Vocabulary.parse(["dog", "cat"]).with_background(["sky", "wall"]),
    "threshold": Vocabulary.parse(["dog", "cat"]).with_background(0.25),
}


def made(config=CONFIGS["v2"], classes=3):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(classes - config.background, config.embed_dim, generator=generator)
    return build_student(config, F.normalize(rows, dim=1)).eval()


def lightning(student, vocabulary, path, **changes):
    content = {
        "maskclip": TrainedStudent(student, vocabulary).metadata.to_dict(),
        "global_step": 40,
        "state_dict": {
            **{f"student.{key}": value for key, value in student.state_dict().items()},
            "teacher.weight": torch.zeros(2),
        },
        "optimizer_states": [{"state": {}}],
        **changes,
    }
    torch.save(content, path)
    return path


def assert_same(found, student):
    assert found.config == student.config
    assert not found.training
    theirs = found.state_dict()
    assert theirs.keys() == student.state_dict().keys()
    assert all(torch.equal(theirs[key], value) for key, value in student.state_dict().items())


class TestRoundTrips:
    @pytest.mark.parametrize("words", [*WORDS.values(), None], ids=[*WORDS, "none"])
    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_safetensors(self, config, words, tmp_path):
        student = made(config)
        path = tmp_path / "a.safetensors"
        save_student(TrainedStudent(student, words, 7, short_side=384), path)
        found = read_student(path)
        assert_same(found.student, student)
        assert (found.vocabulary, found.step, found.short_side) == (words, 7, 384)
        assert is_student_file(path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]

    def test_lightning(self, tmp_path):
        student = made()
        path = lightning(student, WORDS["plain"], tmp_path / "a.ckpt")
        found = read_student(path)
        assert_same(found.student, student)
        assert (found.vocabulary, found.step) == (WORDS["plain"], 40)
        assert is_student_file(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_released(self, legacy, tmp_path):
        student = made(classes=20)
        names = [name.replace(" ", "") for name in Vocabulary.builtin("voc20").names]
        names[0] = "aeroplane"
        path = tmp_path / "a.pth"
        state = {published_name(key): value for key, value in student.state_dict().items()}
        content = {"meta": {"CLASSES": names, "iter": 9}, "state_dict": state}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        found = read_student(path)
        assert_same(found.student, student)
        assert (found.vocabulary, found.step) == (Vocabulary.builtin("voc20"), 9)
        assert is_student_file(path)
        content["meta"]["CLASSES"] = names[::-1]
        torch.save(content, path)
        assert read_student(path).vocabulary is None
        bare = tmp_path / "bare.safetensors"
        save_file(state, bare)
        assert is_student_file(bare)
        assert_same(read_student(bare).student, student)

    def test_golden(self, golden_checkpoint, tmp_path):
        assert is_student_file(golden_checkpoint)
        trained = read_student(golden_checkpoint)
        save_student(trained, tmp_path / "a.safetensors")
        again = read_student(tmp_path / "a.safetensors")
        assert_same(again.student, trained.student)
        assert (again.vocabulary, again.step) == (trained.vocabulary, trained.step)

    @pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
    def test_metadata_are_json(self, words):
        metadata = TrainedStudent(made(), words, 3).metadata
        values = metadata.to_dict()
        assert json.loads(json.dumps(values)) == values
        assert StudentMetadata.from_dict(values, source="a file") == metadata


def run_alone(code, *arguments):
    """Run code in a fresh interpreter."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestImports:
    def test_configuration_and_recognition_need_no_torch(self, tmp_path):
        save_student(TrainedStudent(made()), tmp_path / "a.safetensors")
        code = """
import sys
from pathlib import Path
import maskclip.plus.config
from maskclip.plus.files import is_student_file
assert is_student_file(Path(sys.argv[1]))
sys.exit(bool({"torch", "timm"} & sys.modules.keys()))
"""
        run_alone(code, tmp_path / "a.safetensors")

    def test_a_student_is_used_without_the_packages_of_training(self, tmp_path):
        save_student(TrainedStudent(made(), WORDS["plain"]), tmp_path / "a.safetensors")
        code = """
import sys
for name in ("lightning", "tensorboard", "torchmetrics", "matplotlib", "scipy"):
    sys.modules[name] = None  # importing it fails
import numpy as np
import maskclip
segmenter = maskclip.load(sys.argv[1], device="cpu")
found = segmenter.segment(np.zeros((32, 32, 3), np.uint8), short_side=32)
assert found.labels.shape == (32, 32)
"""
        run_alone(code, tmp_path / "a.safetensors")


class TestRecognition:
    def test_other_files_are_none(self, tmp_path, make_clip):
        clip = tmp_path / "clip.pt"
        torch.save(make_clip("vit").state_dict(), clip)
        assert not is_student_file(clip)
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        assert not is_student_file(tmp_path / "a.safetensors")
        for content in (b"", b"PK\x03\x04", b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]"):
            for name in ("b.pt", "b.safetensors"):
                (tmp_path / name).write_bytes(content)
                assert not is_student_file(tmp_path / name)
        assert not is_student_file(tmp_path)
        assert not is_student_file(tmp_path / "RN50")

    def test_a_missing_checkpoint_is_one(self, tmp_path):
        assert is_student_file(tmp_path / "a.ckpt")


class TestWrappers:
    """What torch.compile and DistributedDataParallel put before names is taken off."""

    @pytest.mark.parametrize("outer", ["", "_orig_mod.", "module._orig_mod.", "model."])
    @pytest.mark.parametrize("inner", ["", "_orig_mod.", "module._orig_mod."])
    def test_of_a_training(self, outer, inner, tmp_path):
        student = made()
        state = {f"{outer}student.{inner}{k}": v for k, v in student.state_dict().items()}
        path = lightning(student, WORDS["plain"], tmp_path / "a.ckpt", state_dict=state)
        assert is_student_file(path)
        assert_same(read_student(path).student, student)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    def test_of_the_authors_layout(self, prefix, name, tmp_path):
        student, path = made(), tmp_path / name
        state = {f"{prefix}{published_name(k)}": v for k, v in student.state_dict().items()}
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        assert is_student_file(path)
        assert_same(read_student(path).student, student)


class TestRunFolders:
    def test_the_best_that_a_training_reached_is_taken(self, tmp_path):
        run = tmp_path / "mine"
        run.mkdir()
        (run / "config.json").write_text("{}")
        assert not is_student_file(run)
        with pytest.raises(StudentError, match=r"mine: a folder without a student.*best\.ckpt"):
            read_student(run)
        (run / "last.ckpt").touch()  # torn
        for name in ("previous.ckpt", "last.ckpt", "best.ckpt"):
            lightning(made(), WORDS["plain"], run / name)
            assert (is_student_file(run), student_file(run)) == (True, run / name)
        save_student(TrainedStudent(made(), WORDS["plain"], 41), run / "student.safetensors")
        assert student_file(run) == run / "student.safetensors"
        assert read_student(run).step == 41
        assert student_file(run / "last.ckpt") == run / "last.ckpt"

    def test_a_run_folder_is_a_model(self, tmp_path):
        lightning(made(), WORDS["plain"], tmp_path / "last.ckpt")
        with pytest.warns(MaskCLIPWarning, match=r"has not finished: its last\.ckpt is taken"):
            segmenter = load(str(tmp_path), device="cpu")
        assert segmenter.name == str(tmp_path / "last.ckpt")
        found = segmenter.segment(np.zeros((40, 40, 3), np.uint8), short_side=32)
        assert found.vocabulary == WORDS["plain"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestRefusals:
    def refused(self, path, *parts):
        with pytest.raises(MaskCLIPError) as error:
            read_student(path)
        message = str(error.value)
        assert str(path) in message
        assert "\n" not in message
        for part in parts:
            assert part in message

    def test_missing(self, tmp_path):
        self.refused(tmp_path / "a.ckpt", "no such student file")

    def test_another_suffix(self, tmp_path):
        with pytest.raises(StudentError, match=r"written as \.safetensors"):
            save_student(TrainedStudent(made()), tmp_path / "a.pt")

    def test_another_number_of_classes(self):
        with pytest.raises(StudentError, match="has 3 classes, the vocabulary has 2"):
            TrainedStudent(made(), Vocabulary.parse(["a", "b"]))

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ({"version": 2}, "file version 2"),
            ({"config": None}, "no architecture"),
            ({"config": {"width": "8"}}, "width: expected a value such as 64"),
            ({"config": {"width": True}}, "width: expected a value such as 64"),
            ({"config": {"width": 7}}, "width: expected an even number"),
            ({"config": {"wide": 8}}, "unknown field 'wide'"),
            ({"config": {**asdict(CONFIGS["v2"]), "width": 16}}, "of another shape"),
            ({"config": {**asdict(CONFIGS["v2"]), "width": 2**40}}, ""),
            ({"config": {**asdict(CONFIGS["v2"]), "embed_dim": 9}}, "text rows"),
            ({"vocabulary": [1]}, "not the description of a vocabulary"),
            ({"vocabulary": {"names": ["a"]}}, "not the description of a vocabulary"),
            ({"vocabulary": {**WORDS["plain"].to_dict(), "more": 1}}, "description of a vocab"),
            ({"vocabulary": {**WORDS["plain"].to_dict(), "names": ["a"] * 3}}, "named twice"),
            ({"vocabulary": {**WORDS["plain"].to_dict(), "threshold": 0.5}}, "background by"),
            ({"vocabulary": Vocabulary.parse(["a", "b"]).to_dict()}, "the vocabulary has 2"),
            ({"step": -1}, "number of training steps"),
            ({"step": "x"}, "number of training steps"),
            ({"short_side": 0}, "short_side: expected px from 1 to 2,048, got 0"),
            ({"short_side": "512"}, "short_side: expected px"),
        ],
    )
    def test_impossible_metadata(self, change, part, tmp_path):
        student = made()
        metadata = {
            **TrainedStudent(student, WORDS["plain"]).metadata.to_dict(),
            "step": 1,
            **change,
        }
        path = tmp_path / "a.safetensors"
        save_file(student.state_dict(), path, metadata={"maskclip": json.dumps(metadata)})
        self.refused(path, part)

    @pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null"])
    def test_damaged_metadata(self, text, tmp_path):
        path = tmp_path / "a.safetensors"
        save_file(made().state_dict(), path, metadata={"maskclip": text})
        self.refused(path, "damaged")

    def test_weights_that_do_not_fit(self, tmp_path):
        path = tmp_path / "a.safetensors"
        save_student(TrainedStudent(made()), path)
        state, metadata = load_file(path), json.dumps(TrainedStudent(made()).metadata.to_dict())
        key = "backbone.layer1.0.conv1.weight"
        save_file(
            {k: v for k, v in state.items() if k != key}, path, metadata={"maskclip": metadata}
        )
        self.refused(path, "1 missing", key)
        save_file({**state, "extra": torch.zeros(1)}, path, metadata={"maskclip": metadata})
        self.refused(path, "1 extra (extra)")
        save_file({"a": torch.zeros(1)}, path, metadata={"maskclip": metadata})
        self.refused(path, "the text rows are missing")

    def test_lightning_without_metadata_or_with_code(self, tmp_path):
        path = lightning(made(), None, tmp_path / "a.ckpt", maskclip=None)
        self.refused(path, "no description of one under the key 'maskclip'")
        path = lightning(made(), None, tmp_path / "a.ckpt", x=Payload(tmp_path / "ran"))
        self.refused(path, "run code")
        assert not (tmp_path / "ran").exists()
