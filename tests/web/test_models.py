"""What is said of the models that are offered."""

import pytest
import torch

from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, save_student
from maskclip.plus.student import build_student


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
