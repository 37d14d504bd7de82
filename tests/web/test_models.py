"""What is said of the models that are offered."""

import pytest
import torch

from maskclip.core.config import DEFAULT_OPTIONS
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.export.runtimes import RuntimeRefusalError
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, save_student
from maskclip.plus.student import build_student
from maskclip.web import models as module
from maskclip.web.models import Models


@pytest.mark.parametrize(
    ("clip", "named", "trained_rows", "takes"),
    [
        ("emoji", True, False, True),
        ("emoji", True, True, False),
        ("photo", True, False, False),
        (None, True, False, False),
        (None, False, False, True),
    ],
)
def test_students_of_a_clip_take_words_and_need_none(
    serve, tmp_path, clip, named, trained_rows, takes
):
    config = StudentConfig(depth=50, width=8, embed_dim=16, trained_rows=trained_rows)
    student = build_student(config, torch.eye(2, 16)).eval()
    words = Vocabulary.parse(["cow", "grass"]) if named else None
    file = tmp_path / "student.safetensors"
    save_student(TrainedStudent(student, words, clip=clip), file)
    found = serve(models=("emoji", str(file))).get("/v1/models").json()
    said = [(one["kind"], one["takes_words"], one["needs_words"]) for one in found]
    assert said == [("embedded", True, True), ("student", takes, False)]


def test_another_runtime_runs_the_networks_of_a_service():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    offered = Models(["emoji-vit"], runtime="onnx")
    assert {name: one.runtime for name, one in offered.warm_up().items()} == {"emoji-vit": "onnx"}
    assert offered.get("emoji-vit", "clean", DEFAULT_OPTIONS).runtime == "onnx"


def test_methods_that_a_runtime_cannot_run_are_left_to_pytorch(monkeypatch):
    """But not the first: a runtime that runs nothing is no use, and an error at the start."""
    asked = []

    def load(config, *, device, options, runtime="torch"):
        asked.append((config.method, runtime))
        if runtime != "torch":
            raise RuntimeRefusalError("`runtime=onnx`: not this one; leave it out")
        return "a segmenter"

    monkeypatch.setattr(module, "load", load)
    offered = Models(["emoji-vit"], runtime="onnx")
    assert offered.get("emoji-vit", "gem", DEFAULT_OPTIONS) == "a segmenter"
    assert asked == [("gem", "onnx"), ("gem", "torch")]
    with pytest.raises(MaskCLIPError, match="not this one"):
        offered.warm_up()
