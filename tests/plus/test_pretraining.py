"""From which weights a backbone starts: timm's own, the preview's, a file's, or random ones."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from maskclip.clip.proxy import load_proxy
from maskclip.core.errors import MaskCLIPError
from maskclip.imagenet import classifier
from maskclip.plus import pretraining
from maskclip.plus.config import StudentConfig, StudentError, parse_student
from maskclip.plus.student import build_student

LITE = "tf_efficientnet_lite0"
LIGHT = {  # student -> timm's name of its backbone
    f"unet:{LITE}": LITE,
    f"deeplabv2:{LITE}": LITE,
    "deeplabv2:resnet10t": "resnet10t",
    "fpn:mobilenetv3_small_050": "mobilenetv3_small_050",
    "dpt:vit_tiny_patch16_224": "vit_tiny_patch16_224",
}
NARROW = StudentConfig(depth=50, width=4, skip=4, embed_dim=8)
ROWS = torch.eye(5, 8)


def built(name, weights):
    config = name if isinstance(name, StudentConfig) else parse_student(name, embed_dim=8)
    return build_student(config, ROWS, weights=str(weights))


def network_of(name, **options):
    torch.manual_seed(1)
    return timm.create_model(name, **options)


def assert_taken(student, network):
    """Each weight of the backbone is that of the network which has its name, up to a prefix."""
    plain = {key.replace(".", "_"): value for key, value in network.state_dict().items()}
    taken = student.backbone.state_dict()
    for key, value in taken.items():
        name = key.removeprefix("encoder.").removeprefix("model.").removeprefix("model.")
        if not name.startswith("head."):  # the classifier of a ViT, which nothing uses
            assert torch.equal(value, plain[name.replace(".", "_")]), key
    assert taken


def write(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def state_of(name):
    if name == "deeper":
        more = {"layer1.1.conv1.weight": torch.zeros(64, 64, 3, 3)}
        return network_of("resnet10t").state_dict() | more
    return network_of(name).state_dict()


def in_other_words(state):
    """Return a state_dict as the package of the preview has it: in order, under its own names."""
    plain = (key.rpartition(".") for key in state)
    names = (f"_{i}.{kind}" for i, (_, _, kind) in enumerate(plain))
    return dict(zip(names, state.values(), strict=True))


class TestFiles:
    @pytest.mark.parametrize("name", LIGHT)
    def test_weights_of_timm_are_taken(self, name, tmp_path):
        network = network_of(LIGHT[name])
        file = write(network.state_dict(), tmp_path / "w.safetensors")
        assert_taken(built(name, file), network)

    def test_of_the_published_backbone_too(self, tmp_path):
        network = network_of("resnet50c", stem_width=2, channels=(4, 8, 16, 32))
        for suffix in (".safetensors", ".pth"):
            file = write(network.state_dict(), tmp_path / f"w{suffix}")
            assert_taken(built(NARROW, file), network)

    @pytest.mark.parametrize(
        "change",
        [
            in_other_words,
            lambda state: {"state_dict": {f"module.{key}": v for key, v in state.items()}},
            lambda state: {k: v for k, v in state.items() if not k.startswith("classifier")},
            lambda state: in_other_words({k: v for k, v in state.items() if v.ndim}),
            lambda state: {k: v[:9] if "classifier" in k else v for k, v in state.items()},
            lambda state: {k: v.double() if v.ndim else v for k, v in state.items()},
        ],
        ids=["in order", "of a training", "no classifier", "no counts", "21 classes", "double"],
    )
    def test_as_other_programs_write_them(self, change, tmp_path):
        network = network_of(LITE)
        file = write(change(network.state_dict()), tmp_path / "w.pth")
        assert_taken(built(f"unet:{LITE}", file), network)

    def test_a_file_in_the_order_of_names_is_not_one_in_the_order_of_layers(self, tmp_path):
        state = in_other_words(network_of(LITE).state_dict())
        file = write({key: state[key] for key in sorted(state)}, tmp_path / "w.pth")
        with pytest.raises(StudentError, match=r"does not fit the architecture: .* missing"):
            built(f"unet:{LITE}", file)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("unet:resnet14t", "resnet10t", r"missing \(.*expected weights of timm's resnet14t"),
            ("unet:resnet10t", "deeper", r": 1 extra \(layer1\.1.*take the `student` whose"),
            ("unet:resnet18", "resnet50", r"of another shape \(layer1\.0\.conv1\.weight"),
            ("deeplabv2-r50", "resnet10t", r"expected weights of timm's resnet50c"),
            (f"unet:{LITE}", b"PK", r"not a readable weights file|not a weights file"),
            (f"unet:{LITE}", {"a": "b"}, r"expected a state_dict"),
        ],
    )
    def test_others_are_refused_in_a_line(self, name, content, message, tmp_path):
        file = tmp_path / "w.pth"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content if isinstance(content, dict) else state_of(content), file)
        with pytest.raises(MaskCLIPError, match=message) as error:
            built(name, file)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)

    def test_weights_that_are_not_finite_are_refused(self, tmp_path):
        state = network_of("resnet10t").state_dict()
        state["conv1.0.weight"][0] = torch.nan
        file = write(state, tmp_path / "w.safetensors")
        with pytest.raises(MaskCLIPError, match=r"w\.safetensors: conv1\.0\.weight .* not finite"):
            built("unet:resnet10t", file)

    def test_a_file_that_is_not_there(self):
        with pytest.raises(StudentError, match=r"no file 'imagnet' \(did you mean imagenet\?\)"):
            built("unet:resnet10t", "imagnet")


class TestPreview:
    def test_a_package_has_the_weights_of_one_backbone(self, monkeypatch, tmp_path):
        network = network_of(LITE)
        file = write(network.state_dict(), tmp_path / "w.pth")
        monkeypatch.setattr(
            pretraining,
            "load_classifier",
            lambda name: classifier.read_classifier(file, LITE, name=name),
        )
        for name in (f"unet:{LITE}", f"deeplabv2:{LITE}"):
            assert_taken(built(name, "photo"), network)
        with pytest.raises(StudentError, match=f"for the backbone {LITE}, got resnet10t"):
            built("unet:resnet10t", "photo")


class TestImagenet:
    @pytest.mark.parametrize("depth", [50, 101])
    def test_offline_the_error_tells_the_ways_out(self, depth):
        with pytest.raises(StudentError, match=r"`student_weights=FILE`.*=photo.*=random") as error:
            built(StudentConfig(depth=depth, embed_dim=8), "imagenet")
        configured = timm.get_pretrained_cfg(f"resnet{depth}c").hf_hub_id
        assert f"{configured}/model.safetensors" in str(error.value)
        assert "\n" not in str(error.value)

    def test_other_widths_have_none(self):
        with pytest.raises(StudentError, match="expected width 64, got 4"):
            built(NARROW, "imagenet")

    @pytest.mark.parametrize(
        ("load", "name"),
        [
            (lambda name: built(f"dpt:{name}", "imagenet"), "vit_tiny_patch16_224"),
            (load_proxy, "vit_small_patch14_dinov2"),
        ],
        ids=["backbone", "proxy"],
    )
    def test_files_that_could_run_code_are_not_fetched_for_timm(self, load, name, monkeypatch):
        config = replace(timm.get_pretrained_cfg(name), hf_hub_filename="a.bin")
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_: config)
        wanted = []

        def hub_file(_, *files):
            wanted.extend(files)
            raise OSError("offline")

        monkeypatch.setattr(pretraining, "hub_file", hub_file)
        monkeypatch.setattr("maskclip.clip.hub.hub_file", hub_file)
        with pytest.raises(MaskCLIPError, match=r"model\.safetensors"):
            load(name)
        assert wanted == ["model.safetensors"]

    @pytest.mark.parametrize("name", [f"unet:{LITE}", f"deeplabv2:{LITE}"])
    def test_weights_on_this_machine_are_taken(self, name, tmp_path, monkeypatch):
        network = network_of(LITE)
        file = write(network.state_dict(), tmp_path / "model.safetensors")
        monkeypatch.setattr(pretraining, "hub_file", lambda *_: file)
        assert_taken(built(name, "imagenet"), network)


def test_without_a_connection_all_ways_that_need_none_are_named(monkeypatch):
    def hub_file(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(pretraining, "hub_file", hub_file)
    ways = (
        r"student_weights=FILE.*`student=teacher`.*tf_efficientnet_lite0 with "
        r"`student_weights=photo`.*`student_weights=random`"
    )
    with pytest.raises(StudentError, match=rf"no route to host.*{ways}"):
        built("unet:mobilenetv3_small_050", "imagenet")
