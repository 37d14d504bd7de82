"""Models whose network ONNX Runtime or OpenVINO runs give PyTorch's labels."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import maskclip
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import PUBLISHED, Alignment
from maskclip.core.methods import METHODS
from maskclip.emoji.scenes import draw_scene
from maskclip.export import runtimes as opened
from maskclip.tasks import runtimes
from maskclip.tasks.runtimes import Runner, run_by
from maskclip.tasks.segmenter import CLIPSegmenter

WORDS = ["dog", "red car", "grass", "sky", "house"]
SIZES = ((75, 53), (64, 64))
BOTH = ("onnx", "openvino")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The graphs that tests share: each takes a second to make."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def keeps(graphs, monkeypatch):
    for module in (opened, runtimes):
        monkeypatch.setattr(module, "kept_folder", lambda: graphs)


@pytest.fixture(scope="module")
def make(make_model):
    """`make(method, precision)`: a segmenter of a tiny ViT."""

    def segmenter(method=PUBLISHED, precision="float32"):
        how = {"device": torch.device("cpu"), "templates": "plain", "method": method}
        return CLIPSegmenter(make_model("vit", short_side=48), precision=precision, **how)

    return segmenter


def labels(segmenter, sizes=SIZES, **how):
    images = [draw_scene(seed, size=size).image for seed, size in enumerate(sizes)]
    found = segmenter.segment(images, WORDS, short_side=0, **how)
    return np.concatenate([one.labels.ravel() for one in found])


@pytest.mark.parametrize("runtime", BOTH)
@pytest.mark.parametrize("how", [{}, {"key_smoothing": 1.0}], ids=str)
def test_labels_are_those_of_pytorch(make, keeps, runtime, how):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    segmenter = make()
    expected = labels(segmenter, **how)
    run_by(segmenter, runtime)
    assert (segmenter.runtime, segmenter.runtime_why) == (runtime, "")
    assert len(np.unique(expected)) > 1
    assert (labels(segmenter, **how) == expected).mean() >= 0.999
    # A grid of 2 x 8 positions, as many as the table's 4 x 4, is read in raster order (V6).
    wide = labels(make(), [(16, 64)])
    np.testing.assert_array_equal(labels(segmenter, [(16, 64)]), wide)
    # Ctrl-C still comes to Python: OpenVINO's own stack for signals is too small for its handler.
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert seen == [True]


class Graph:
    """What a graph is to those that keep it."""

    def __init__(self, content):
        self.content = content

    def SerializeToString(self):  # noqa: N802  # as ONNX calls it
        return self.content


def test_a_graph_is_kept_and_a_damaged_one_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setattr(opened, "kept_folder", lambda: tmp_path)
    made = []

    def make():
        made.append(1)
        return Graph(b"graph" * 100)

    identity = {"weights": "abc", "outputs": ("features",)}
    for _ in range(2):
        assert opened.kept_graph(identity, make) == b"graph" * 100
    (path,) = tmp_path.iterdir()
    assert len(made) == 1
    for damaged in (b"", b"graph", b"Graph" * 100):
        path.write_bytes(damaged)
        assert opened.kept_graph(identity, make) == b"graph" * 100
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == b"graph" * 100
    assert len(made) == 4
    opened.kept_graph({**identity, "weights": "other"}, make)
    assert len(made) == 5
    monkeypatch.setattr(opened, "_MOST_BYTES", 500)
    opened.kept_graph({**identity, "weights": "third"}, make)
    assert len(list(tmp_path.iterdir())) == 1  # the latest


def test_what_a_runtime_cannot_do_is_refused_in_one_line(make, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    aligned = replace(METHODS["pearl"], alignment=Alignment(solver="svd"))
    for how, said in (
        ({"method": aligned}, "singular value decomposition; leave it out"),
        ({"precision": "bfloat16"}, "ONNX Runtime does not compute in bfloat16 here"),
    ):
        with pytest.raises(MaskCLIPError, match=said) as found:
            run_by(make(**how), "onnx")
        assert "\n" not in str(found.value)
    segmenter = make()
    segmenter.method = METHODS["resclip"]
    with pytest.raises(MaskCLIPError, match="`runtime=onnx`: the method 'resclip' reads a photo"):
        run_by(segmenter, "onnx")
    segmenter = make()
    segmenter.device = torch.device("cuda")
    with pytest.raises(MaskCLIPError, match="on the CPU, and the device is cuda"):
        run_by(segmenter, "onnx")
    monkeypatch.setattr(opened, "_MODULES", {"onnx": ("no_such_module", "export")})
    with pytest.raises(MaskCLIPError, match=r"needs no_such_module.*\[export\]"):
        run_by(make(), "onnx")


def test_an_unknown_runtime_is_refused_before_a_model_is_loaded():
    with pytest.raises(MaskCLIPError, match="`runtime`: expected one of torch, onnx, openvino"):
        maskclip.load("nobody-loads-this", runtime="tensorrt")


def test_a_kept_graph_of_other_weights_is_made_again(make, monkeypatch):
    """Whole, under the right name, and yet not this network: the first look at it tells."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = []

    def keep(identity, graph, *, anew=False):
        made.append(anew)
        return b"right" if anew else b"wrong"

    class Session:
        name = "ONNX Runtime"

        def __init__(self, runtime, data, outputs, precision):
            self.right = data == b"right"

        def __call__(self, images):
            features = segmenter._encode(torch.from_numpy(images), keys=False, image=False).features
            return {"features": (features if self.right else features.flip(1)).numpy()}

    monkeypatch.setattr(runtimes, "kept_graph", keep)
    monkeypatch.setattr(runtimes, "Session", Session)
    segmenter = make()
    run_by(segmenter, "onnx")
    assert made == [False, True]


class Fake(Runner):
    """PyTorch under the name of another runtime."""

    def __init__(self, segmenter, runtime):
        if runtime == "onnx":
            raise MaskCLIPError("it cannot")
        self.segmenter = segmenter

    def __call__(self, crops, /, *, keys, image):
        return self.segmenter._encode(crops, keys=keys, image=image)


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Make `auto` quick: what it measures is in `seconds`."""
    seconds = {"torch": 1.0, "openvino": 0.5}
    measured = []
    monkeypatch.setattr(runtimes, "Runner", Fake)
    monkeypatch.setattr(runtimes, "kept_folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(runtimes, "is_installed", lambda runtime: True)
    monkeypatch.setattr(runtimes, "computes", lambda runtime, precision: True)

    def measure(segmenter, runners):
        measured.append(sorted(runners))
        return dict(seconds)

    monkeypatch.setattr(runtimes, "_measured", measure)
    return seconds, measured


def test_auto_takes_what_is_faster_as_it_was_measured_once(make, fakes, tmp_path):
    seconds, measured = fakes
    for _ in range(2):
        segmenter = make()
        run_by(segmenter, "auto")
        assert segmenter.runtime == "openvino"
        assert segmenter.runtime_why == "which takes 0.50 of PyTorch's time here"
    assert measured == [["openvino"]]
    (probe,) = (tmp_path / "kept").iterdir()
    for damaged in ("{", "[]", '{"torch": 1.0}', '{"torch": 1.0, "openvino": "fast"}'):
        probe.write_text(damaged)
        run_by(make(), "auto")
    assert len(measured) == 5
    assert json.loads(probe.read_text()) == seconds
    seconds["openvino"] = 0.97
    probe.unlink()
    segmenter = make()
    run_by(segmenter, "auto")
    assert segmenter.runtime == "torch"
    assert segmenter.runtime_why == "as OpenVINO takes 0.97 of its time here"


def test_auto_stays_with_pytorch_where_others_cannot(make, fakes, monkeypatch):
    segmenter = make()
    segmenter.method = METHODS["resclip"]
    run_by(segmenter, "auto")
    assert segmenter.runtime == "torch"
    assert segmenter.runtime_why.startswith("as the method 'resclip' reads a photo again")
    monkeypatch.setattr(runtimes, "computes", lambda runtime, precision: runtime == "onnx")
    segmenter = make()
    run_by(segmenter, "auto")
    assert segmenter.runtime_why == "as it cannot"
    monkeypatch.setattr(runtimes, "computes", lambda *_: False)
    run_by(segmenter, "auto")
    assert segmenter.runtime_why.endswith("which is installed, does not compute in float32")
    monkeypatch.setattr(runtimes, "is_installed", lambda runtime: False)
    run_by(segmenter, "auto")
    assert segmenter.runtime_why == "as no other runtime is installed"
