import json
import os
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from maskclip.clip.checkpoint import WeightsError
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import StudentConfig, StudentError
from maskclip.plus.files import read_student
from maskclip.plus.released import CLIPS, config_of, published_name, vocabulary_of, without_teacher
from maskclip.plus.student import build_student
from tests.golden import networks

VOC = list(Vocabulary.builtin("voc20").names)
DECODERS = {"ASPPHeadV2": "deeplabv2", "DepthwiseSeparableASPPHead": "deeplabv3plus"}
CONFIGS = [
    StudentConfig(depth=50, width=4, embed_dim=8),
    StudentConfig(depth=101, width=2, embed_dim=6, background=True),
    StudentConfig(decoder="deeplabv3plus", depth=50, width=4, skip=5, embed_dim=8, background=True),
]
TEACHERS = {
    "none": {},
    "resnet": {
        "clip.layer1.0.conv1.weight": torch.zeros(2, 2, 1, 1),
        **{f"{part}_proj.weight": torch.zeros(2, 2, 1, 1) for part in "qkvc"},
        **{f"{part}_proj.bias": torch.zeros(2) for part in "qkvc"},
        "_iter_counter": torch.tensor(7),
    },
    "vit": {"clip.cls_token": torch.zeros(1, 1, 4), "proj.weight": torch.zeros(2, 2, 1, 1)},
}


def published(config=CONFIGS[0], teacher="resnet"):
    """Return a small student, and its state_dict as the authors' code would write it."""
    rows = F.normalize(torch.rand(5, config.embed_dim), dim=1)
    student = build_student(config, rows)
    state = {published_name(key): value for key, value in student.state_dict().items()}
    state |= {f"decode_head.{key}": value for key, value in TEACHERS[teacher].items()}
    return student, state


def written(content, path, **options):
    torch.save(content, path, **options)
    return path


class TestGolden:
    def test_a_checkpoint_is_the_student_that_it_holds(self, golden_checkpoint):
        released = read_student(golden_checkpoint)
        raw = torch.load(golden_checkpoint, weights_only=True)
        for key, value in released.student.state_dict().items():
            assert torch.equal(value, raw["state_dict"][published_name(key)]), key
        assert released.step == raw["meta"]["iter"]
        start = golden_checkpoint.with_name(f"{golden_checkpoint.stem}_init.safetensors")
        if start.is_file():
            same = networks.build_student(load_file(start), source=start.name).state_dict()
            trained = int(raw["state_dict"]["decode_head._iter_counter"]) > 0
            for key, value in released.student.state_dict().items():
                assert (key != "rows" and trained) or torch.equal(value, same[key]), key

    def test_every_published_layout_is_a_student(self, golden_layout):
        layout = json.loads(golden_layout.read_text())
        state = {
            key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for key, (shape, dtype) in layout["keys"].items()
        }
        with torch.device("meta"):
            student = networks.build_student(state, source=golden_layout.stem)
        names = {published_name(key) for key in student.state_dict()}
        assert names == set(without_teacher(state))
        head = layout["decode_head"]
        assert student.config.decoder == DECODERS[head["decode_module_cfg"]["type"]]
        assert student.config.embed_dim == head["text_channels"]
        assert student.config.background == head["cls_bg"]
        assert student.rows.shape[0] == head["text_categories"]


class TestFiles:
    @pytest.mark.parametrize("teacher", TEACHERS)
    @pytest.mark.parametrize("config", CONFIGS, ids=["v2", "v2-101-background", "v3plus"])
    def test_architecture_and_weights_are_read(self, config, teacher, tmp_path):
        student, state = published(config, teacher)
        path = written({"meta": {}, "state_dict": state, "optimizer": {}}, tmp_path / "a.pth")
        released = read_student(path)
        assert released.student.config == config
        assert not released.student.training
        assert released.clip == CLIPS.get(config.embed_dim)
        ours = released.student.state_dict()
        assert all(torch.equal(ours[key], value) for key, value in student.state_dict().items())
        picture = torch.rand(2, 3, 40, 24)
        with torch.no_grad():
            assert torch.equal(released.student(picture), student.eval()(picture))

    @pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
    def test_a_bare_state_dict_is_read(self, form, tmp_path):
        student, state = published()
        path = tmp_path / f"bare.{'safetensors' if form == 'safetensors' else 'pth'}"
        if form == "safetensors":
            save_file(state, path)
        else:
            written(OrderedDict(state), path, _use_new_zipfile_serialization=form == "zip")
        released = read_student(path)
        assert torch.equal(released.student.rows, student.rows)
        assert (released.vocabulary, released.step) == (None, None)

    @pytest.mark.parametrize(
        ("meta", "classes", "builtin"),
        [
            ({"CLASSES": tuple(VOC)}, 20, "voc20"),
            ({"CLASSES": [name.replace(" ", "").upper() for name in VOC]}, 20, "voc20"),
            ({"CLASSES": ["aeroplane", *VOC[1:]]}, 20, "voc20"),
            ({"CLASSES": VOC}, 21, None),
            ({"CLASSES": VOC[::-1]}, 20, None),
            ({"CLASSES": 3}, 20, None),
            ({}, 20, None),
            (None, 20, None),
        ],
    )
    def test_a_built_in_class_set_is_found_by_its_names(self, meta, classes, builtin):
        expected = None if builtin is None else Vocabulary.builtin(builtin)
        assert vocabulary_of(meta, classes=classes) == expected

    def test_the_step_is_read(self, tmp_path):
        _, state = published()
        content = {"meta": {"CLASSES": ("background", "a"), "iter": 2000}, "state_dict": state}
        found = read_student(written(content, tmp_path / "a.pth"))
        assert (found.vocabulary, found.step) == (None, 2000)

    def test_numpy_in_meta_is_read(self, tmp_path):
        _, state = published()
        meta = {
            "PALETTE": np.arange(15).reshape(5, 3),
            "hook_msgs": {"best_score": np.float64(0.5), "more": np.float32(1), "ok": np.bool_(1)},
            "iter": np.int64(3),
        }
        path = written({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
        assert read_student(path).step == 3


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestRefusals:
    def refused(self, content, tmp_path, *parts):
        path = written(content, tmp_path / "refused.pth")
        with pytest.raises(MaskCLIPError) as error:
            read_student(path)
        message = str(error.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        for part in parts:
            assert part in message

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(StudentError, match="no such student file"):
            read_student(tmp_path / "nothing.pth")

    def test_other_contents(self, tmp_path, make_clip):
        self.refused(make_clip("vit").state_dict(), tmp_path, "not a MaskCLIP+ checkpoint")
        self.refused({}, tmp_path, "not a MaskCLIP+ checkpoint", "0 other keys")
        self.refused([1, 2], tmp_path, "expected a state_dict")
        self.refused({"state_dict": {"a": 1}}, tmp_path, "expected a state_dict")

    @pytest.mark.parametrize(
        ("key", "axes"),
        [
            ("decode_head.text_embeddings", 2),
            ("backbone.layer1.0.conv1.weight", 4),
            ("decode_head.decode_module.c1_bottleneck.conv.weight", 4),
        ],
    )
    def test_weights_that_do_not_tell_the_architecture(self, key, axes, tmp_path):
        _, state = published(CONFIGS[2])
        state[key] = torch.zeros(())
        self.refused(state, tmp_path, f"expected {key} with {axes} axes, found 0")

    @pytest.mark.parametrize(
        "key",
        [
            "backbone.stem.7.running_var",
            "backbone.layer4.1.conv2.weight",
            "decode_head.decode_module.aspp_modules.3.bn.bias",
        ],
    )
    def test_missing_weights_are_named_as_the_file_would(self, key, tmp_path):
        _, state = published()
        del state[key]
        self.refused(state, tmp_path, "1 missing", key)

    @pytest.mark.parametrize(
        "key",
        ["decode_head.conv_seg.weight", "decode_head.clips", "auxiliary_head.conv_seg.bias"],
    )
    def test_leftovers_are_named(self, key, tmp_path):
        _, state = published()
        self.refused({**state, key: torch.zeros(1)}, tmp_path, "1 extra", key)

    def test_other_shapes_are_named(self, tmp_path):
        _, state = published()
        key = "backbone.stem.0.weight"
        self.refused({**state, key: torch.zeros(3, 3, 3, 3)}, tmp_path, key, "(3, 3, 3, 3)")

    def test_another_depth(self, tmp_path):
        _, state = published()
        shallow = {k: v for k, v in state.items() if not k.startswith("backbone.layer3.5.")}
        self.refused(shallow, tmp_path, "expected 6 or 23 blocks in backbone.layer3", "found 5")

    @pytest.mark.parametrize("place", ["meta", "optimizer", "state_dict"])
    @pytest.mark.parametrize("legacy", [False, True])
    def test_pickled_code_is_not_run(self, place, legacy, tmp_path):
        _, state = published()
        content = {"meta": {}, "state_dict": state, "optimizer": {}}
        content[place] = {**content[place], "x": Payload(tmp_path / "ran")}
        path = written(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(WeightsError, match="run code"):
            read_student(path)
        assert not (tmp_path / "ran").exists()

    def test_unknown_classes_are_refused(self, tmp_path):
        _, state = published()
        content = {"meta": {"config": SimpleNamespace(a=1)}, "state_dict": state}
        self.refused(content, tmp_path, "run code")

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
    def test_a_file_that_ends_early(self, share, legacy, tmp_path):
        _, state = published()
        path = tmp_path / "a.pth"
        written({"meta": {}, "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(WeightsError, match="weights file") as error:
            read_student(path)
        assert "\n" not in str(error.value)


def test_the_architecture_is_read_without_weights():
    _, state = published(CONFIGS[2])
    meta = {key: value.to("meta") for key, value in state.items()}
    assert config_of(meta, source="a file") == CONFIGS[2]
