import json
import math
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

import maskclip
from maskclip.cli import main
from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.methods import METHODS
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene
from maskclip.export.files import ExportedModel, halve, read_description, save_program
from maskclip.export.graph import ExportError, export_program
from maskclip.tasks import export as task
from maskclip.tasks.export import DisagreementError, Export, export, label_graph

ROOT = Path(__file__).resolve().parents[2]
WORDS = Vocabulary.parse(["pet=dog,cat", "grass", "sky"]).with_background(0.5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The file of an embedded model, and what its exporter said of it."""
    out = tmp_path_factory.mktemp("export") / "model.onnx"
    what = Export(
        model=ModelConfig(name="emoji-vit", method="naclip"),
        vocabulary=WORDS,
        out=out,
        options=Options(prompt_denoising=0.3, refine=("pamr",)),
    )
    return out, export(what)


def scenes(count, size):
    return np.stack([draw_scene(seed, size=size).image for seed in range(count)])


def test_a_file_is_compared_at_two_sizes_and_says_what_it_is(exported):
    out, done = exported
    (short, long), (side, same) = (one.size for one in done.agreements)
    assert short != long
    assert long % 16
    assert side == same
    assert all(one.share >= 0.999 for one in done.agreements)
    found = {p.key: json.loads(p.value) for p in onnx.load(out).metadata_props}
    assert found["classes"] == ["background", "pet", "grass", "sky"]
    assert found["prompts"] == [[], ["dog", "cat"], ["grass"], ["sky"]]
    assert found["palette"] == [list(color) for color in WORDS.colors]
    assert (found["background"], found["ignore"], found["short_side"]) == (0.5, 255, 256)
    assert (found["model"], found["method"]) == ("emoji-vit", "naclip")
    assert (found["license"], found["templates"]) == ("apache-2.0", "published")
    assert found["maskclip"] == version("maskclip")
    assert len(found["fingerprint"]) == 16
    assert read_description(out).vocabulary == WORDS


@pytest.mark.parametrize("name", ["emoji", "emoji-vit", "photo"])
def test_the_licence_of_weights_that_come_with_a_package_is_known(name):
    assert task._license(None, ModelConfig(name=name)) == "apache-2.0"


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 100, 171), (1, 203, 48)])
def test_batches_and_sizes_are_free(exported, shape):
    pixels = scenes(shape[0], shape[1:])
    found = ExportedModel(exported[0]).run(pixels.transpose(0, 3, 1, 2).copy())
    model = maskclip.load("emoji-vit", method="naclip", precision="float32")
    options = {"prompt_denoising": 0.3, "refine": "none", "short_side": 0}
    for index, image in enumerate(pixels):
        expected = model.segment(image, WORDS, **options)
        assert (found["labels"][index] == expected.labels).mean() >= 0.999
        close = np.isclose(found["scores"][index], expected.scores, atol=1e-4)
        assert close.mean() >= 0.999
    assert found["maps"].shape == (len(pixels), 3, -(-shape[1] // 16), -(-shape[2] // 16))


def test_it_labels_photos_as_its_model_does(exported):
    image = scenes(1, (150, 310))[0]
    opened = maskclip.load(exported[0])
    model = maskclip.load("emoji-vit", method="naclip", precision="float32")
    for options in ({}, {"window": 128}, {"refine": "tlp+pamr"}, {"short_side": 100}):
        found = opened.segment(image, **options)
        expected = model.segment(
            image, WORDS, **{"refine": "pamr", **options}, prompt_denoising=0.3
        )
        assert found.vocabulary == WORDS
        assert (found.labels == expected.labels).mean() >= 0.999
        assert found.coverage() == pytest.approx(expected.coverage(), abs=1e-3)


def test_label_takes_the_file_with_its_words(exported, tmp_path):
    image = scenes(1, (96, 128))[0]
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    command = ["label", str(tmp_path / "photos"), "--model", str(exported[0])]
    assert main([*command, "--out", str(tmp_path / "labels")]) == 0
    found = np.asarray(Image.open(tmp_path / "labels" / "png" / "a.png"))
    assert (found == maskclip.load(exported[0]).segment(image).labels).mean() >= 0.999


def test_what_is_frozen_is_refused_in_one_line(exported):
    image, opened = scenes(1, (64, 64))[0], maskclip.load(exported[0])
    for classes, options in ((["dog"], {}), (None, {"background": 0.4})):
        with pytest.raises(MaskCLIPError, match=r"its words are frozen: background, pet, grass"):
            opened.segment(image, classes, **options)
    for options in ({"prompt_denoising": 0.5}, {"key_smoothing": 1.0}, {"refine": "surgery"}):
        with pytest.raises(MaskCLIPError, match="makes its maps as it was exported"):
            opened.segment(image, **options)
    for settings in ({"method": "naclip"}, {"templates": "plain"}, {"precision": "float16"}):
        with pytest.raises(MaskCLIPError, match=next(iter(settings))):
            maskclip.load(exported[0], **settings)


def test_the_example_needs_no_torch(exported, tmp_path):
    Image.fromarray(scenes(1, (90, 120))[0]).save(tmp_path / "photo.png")
    (tmp_path / "torch.py").write_text("raise ImportError('this example imports torch')")
    script = ROOT / "examples" / "onnx_without_torch.py"
    command = [sys.executable, script, exported[0], tmp_path / "photo.png", tmp_path / "out.png"]
    place = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=place, check=False)
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout
    with Image.open(tmp_path / "out.png") as labels:
        assert labels.size == (120, 90)
        assert set(np.unique(labels)) <= {0, 1, 2, 3}


def test_the_example_says_what_to_install(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('x', name='onnxruntime')")
    script = ROOT / "examples" / "onnx_without_torch.py"
    place = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=place)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "onnxruntime is not installed: pip install numpy pillow onnxruntime"
    ]


def test_a_file_whose_labels_are_others_is_not_kept(tmp_path, monkeypatch):
    class Other(torch.nn.Module):
        def forward(self, images):
            labels = images[:, 0].to(torch.int32) * 0 + 2
            return labels, labels.float(), images[:, :, ::16, ::16].float()

    monkeypatch.setattr(task, "label_graph", lambda *_: Other())
    what = Export(
        model=ModelConfig(name="emoji-vit"),
        vocabulary=WORDS,
        out=tmp_path / "other.onnx",
        pixels="float32",
    )
    with pytest.raises(DisagreementError, match=r"was not written: its labels are PyTorch's on"):
        export(what)
    assert not list(tmp_path.iterdir())
    assert export(what, no_verify=True).agreements == ()
    maps = maskclip.load(what.out).encode(scenes(1, (64, 64))[0], short_side=0).dense.features
    assert 0 < maps.max() <= 1  # the file takes what is in [0, 1], and is given that


def test_half_precision_halves_the_file_and_keeps_the_labels(exported, tmp_path):
    model = onnx.load(exported[0])
    halve(model)
    path = tmp_path / "half.onnx"
    path.write_bytes(model.SerializeToString())
    assert path.stat().st_size < 0.55 * exported[0].stat().st_size
    pixels = scenes(2, (128, 171)).transpose(0, 3, 1, 2).copy()
    whole, half = (ExportedModel(each).run(pixels)["labels"] for each in (exported[0], path))
    assert (whole == half).mean() >= 0.995


def test_a_program_of_torch_export_needs_nothing_of_maskclip(tmp_path):
    what = Export(model=ModelConfig(name="emoji-vit"), vocabulary=WORDS, out=tmp_path / "m.pt2")
    done = export(what)
    assert all(one.share >= 0.999 for one in done.agreements)
    entries = {"maskclip.json": ""}
    program = torch.export.load(what.out, extra_files=entries)
    kinds = {type(n.target).__module__ for n in program.graph.nodes if n.op == "call_function"}
    assert not any(kind.startswith("maskclip") for kind in kinds)
    assert json.loads(json.loads(entries["maskclip.json"])["classes"])[1] == "pet"
    assert b"site-packages" not in what.out.read_bytes()


def test_where_nothing_can_be_written_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "load", None)
    (tmp_path / "d.onnx").mkdir()
    (tmp_path / "file").touch()
    for out, message in (("d.onnx", "is a folder"), ("file/m.onnx", "cannot be written")):
        with pytest.raises(MaskCLIPError, match=message):
            export(Export(model=ModelConfig(name="emoji"), vocabulary=WORDS, out=tmp_path / out))


def test_a_program_that_torch_cannot_store_is_refused_in_one_line(tmp_path, exported):
    class Rounds(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.pad(images, (0, math.ceil(images.shape[3] / 2)))

    with pytest.raises(
        ExportError, match=r"cannot store this as \.pt2: .*ends in \.onnx"
    ) as caught:
        save_program(export_program(Rounds()), tmp_path / "m.pt2", exported[1].description)
    assert "\n" not in str(caught.value)


def test_a_program_that_does_not_run_on_some_size_is_not_kept(tmp_path, monkeypatch):
    def write_other(program, path, description):
        torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.rand(1, 3, 8, 8),)), path)

    monkeypatch.setattr(task, "export_program", lambda graph, *, pixels: None)
    monkeypatch.setattr(task, "save_program", write_other)
    out = tmp_path / "m.pt2"
    with pytest.raises(ExportError, match=r"not written: it does not run on \d+x\d+ px") as caught:
        export(Export(model=ModelConfig(name="emoji-vit"), vocabulary=WORDS, out=out))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"out": Path("model.pb")}, "expected a name that ends in .onnx"),
        ({"precision": "fp8"}, "`precision`: expected one of fp32, fp16, got fp8"),
        ({"pixels": "int8"}, "`pixels`: expected one of uint8, float32, got int8"),
        ({"out": Path("m.pt2"), "precision": "fp16"}, "has float32 weights"),
        ({"options": Options(window=64)}, "`window` is not exported"),
    ],
)
def test_what_is_no_export_is_refused_before_anything_is_loaded(fields, message):
    given = {"model": ModelConfig(name="emoji"), "vocabulary": WORDS, "out": Path("m.onnx")}
    with pytest.raises(MaskCLIPError, match=message):
        Export(**{**given, **fields})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feedback": METHODS["resclip"].feedback}, "reads a photo again"),
        ({"upsample": "prompts"}, "all prompts compete"),
        ({"kernels": (("aligned", 1.0),), "alignment": "svd"}, "singular value decomposition"),
    ],
)
def test_methods_that_no_graph_does_are_refused(change, message):
    from dataclasses import replace

    from maskclip.core.method import Alignment

    if "alignment" in change:
        change = {**change, "alignment": Alignment(solver="svd")}
    model = maskclip.load("emoji-vit")
    model.method = replace(model.method, **change)
    with pytest.raises(ExportError, match=message):
        label_graph(model, model.prepare(WORDS), Options())


def crafted(path, *, metadata=None, node=None, initializer=None, inputs=None):
    """Write a small file of ONNX, of parts that a stranger might choose."""
    image = inputs or helper.make_tensor_value_info("images", TensorProto.UINT8, [None, 3, 9, 9])
    nodes = [
        node or helper.make_node("Identity", ["images"], ["labels"]),
        helper.make_node("Identity", ["labels"], ["scores"]),
        helper.make_node("Identity", ["labels"], ["maps"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, None)
        for name in ("labels", "scores", "maps")
    ]
    graph = helper.make_graph(nodes, "g", [image], outputs, initializer=initializer or [])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.stranger", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def external(place):
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


class TestStrangersFiles:
    """Whatever a file holds: one line, and no other file is opened."""

    @pytest.fixture
    def own(self, exported):
        return {
            p.key: p.value for p in onnx.load(exported[0], load_external_data=False).metadata_props
        }

    @pytest.mark.parametrize("data", [b"", b"onnx", b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x0f"])
    def test_no_onnx(self, tmp_path, data):
        (tmp_path / "m.onnx").write_bytes(data)
        self.refused(tmp_path / "m.onnx", "no ONNX file, or damaged|does not name its classes")

    @pytest.mark.parametrize("field", [b"\0\0", b"\x08\x01"])
    def test_a_file_of_nothing_is_not_read_to_its_end(self, tmp_path, field):
        (tmp_path / "m.onnx").write_bytes(field * 100_000)
        self.refused(tmp_path / "m.onnx", "its fields are not those of ONNX")

    def test_cut_short(self, tmp_path, exported):
        data = exported[0].read_bytes()
        (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
        self.refused(tmp_path / "m.onnx", "no ONNX file, or damaged|does not name its classes")

    def test_no_metadata(self, tmp_path):
        self.refused(crafted(tmp_path / "m.onnx"), "does not name its classes")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("classes", '["a", "a", "b", "c"]', "named twice"),
            ("classes", "[", "not valid JSON"),
            ("palette", "[[0, 0, 900]]", "colou?r"),
            ("short_side", "100000", "short_side: expected px from 1 to 2,048"),
            ("reading", "{}", "reading: expected a table"),
            ("method", "7", "method: expected text"),
        ],
    )
    def test_other_metadata(self, tmp_path, own, key, value, message):
        path = crafted(tmp_path / "m.onnx", metadata={**own, key: value})
        self.refused(path, message)

    @pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname", "beside.bin"])
    def test_weights_in_another_file(self, tmp_path, own, place):
        path = crafted(tmp_path / "m.onnx", metadata=own, initializer=[external(place)])
        self.refused(path, "keeps weights in another file")

    def test_operations_of_others(self, tmp_path, own):
        node = helper.make_node("Run", ["images"], ["labels"], domain="com.stranger")
        path = crafted(tmp_path / "m.onnx", metadata=own, node=node)
        self.refused(path, "not ONNX's own: 'com.stranger.Run'")

    def test_other_inputs_and_outputs(self, tmp_path, own):
        info = helper.make_tensor_value_info("images", TensorProto.INT64, [1])
        path = crafted(tmp_path / "m.onnx", metadata=own, inputs=info)
        self.refused(path, "expected one input images|cannot run it")

    def test_other_maps(self, tmp_path, own):
        node = helper.make_node("Identity", ["images"], ["labels"])
        opened = maskclip.load(crafted(tmp_path / "m.onnx", metadata=own, node=node))
        with pytest.raises(MaskCLIPError, match="maps"):
            opened.segment(scenes(1, (9, 9))[0], short_side=0)

    def refused(self, path, message):
        with pytest.raises(MaskCLIPError, match=message) as caught:
            maskclip.load(path)
        assert "\n" not in str(caught.value)
