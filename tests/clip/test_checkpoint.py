import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from maskclip.clip.checkpoint import WeightsError, read_checkpoint
from maskclip.clip.fitting import build_fitting, fit, text_config, vision_config
from maskclip.clip.weights import load_clip
from maskclip.core.errors import MaskCLIPError

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}


@pytest.fixture(scope="module")
def openai_like(make_clip):
    """CLIPs whose heads are 64 wide, as OpenAI's are, by family."""
    return {
        "vit": make_clip("vit", quick_gelu=True, text=TEXT, width=64, head_width=64),
        "resnet": make_clip("resnet", quick_gelu=True, text=TEXT),
    }


class Archive(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript(state, path):
    """Write a state_dict as OpenAI's files are: a TorchScript archive, half precision."""
    root = Archive()
    for key, value in state.items():
        *parents, name = key.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Archive())
            module = getattr(module, parent)
        module.register_buffer(name, value.half() if value.is_floating_point() else value)
    for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; OpenAI's files stay as they are
        torch.jit.save(torch.jit.script(root), str(path))


def write(state, path, form):
    if form == "torchscript":
        torchscript(state, path)
    elif form == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif form == "nested":
        nested = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": nested, "name": "run"}, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, path)
    return path


FORMS = {
    "plain": "weights.pt",
    "legacy": "weights.pth",
    "nested": "weights.bin",
    "safetensors": "weights.safetensors",
    "torchscript": "weights.pt",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_every_form_gives_the_same_weights(form, family, openai_like, tmp_path):
    state = openai_like[family].state_dict()
    found = read_checkpoint(write(state, tmp_path / FORMS[form], form))
    assert set(found.state) == set(state)
    assert found.quick_gelu == (True if form == "torchscript" else None)
    for key, value in found.state.items():
        expected = state[key].half() if form == "torchscript" else state[key]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_an_openai_archive_alone_gives_openais_network(family, openai_like, tmp_path):
    clip = openai_like[family]
    loaded = load_clip(str(write(clip.state_dict(), tmp_path / "RN.pt", "torchscript"))).model
    assert any(isinstance(module, QuickGELU) for module in loaded.transformer.modules())
    side = 64 if family == "resnet" else 32
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[49406, 320, 1929, 49407] + [0] * 73])
    with torch.inference_mode():
        for run, entry in (("encode_image", images), ("encode_text", tokens)):
            expected, found = getattr(clip, run)(entry), getattr(loaded, run)(entry)
            assert torch.cosine_similarity(expected, found).item() > 0.9999
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert not loaded.training


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_state_dict_alone_gives_its_network(family, make_clip, tmp_path):
    clip = make_clip(
        family, text=TEXT, **({"width": 64, "head_width": 64} if family == "vit" else {})
    )
    loaded = load_clip(str(write(clip.state_dict(), tmp_path / "mine.pt", "plain")))
    assert loaded.name == "mine"
    side = 64 if family == "resnet" else 32
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model.encode_image(images), clip.encode_image(images))


def test_shapes_tell_the_configuration(openai_like):
    vit, resnet = (openai_like[family].state_dict() for family in ("vit", "resnet"))
    assert vision_config(vit) == {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}
    assert vision_config(resnet) == {"layers": (1, 1, 1, 1), "width": 8, "image_size": 64}
    assert text_config(vit) == TEXT


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
def test_pickled_code_never_runs(tmp_path, suffix, legacy, hidden):
    marker = tmp_path / "it ran"
    bomb = Bomb(marker)
    path = tmp_path / f"weights{suffix}"
    content = {"state_dict": {"a": torch.zeros(1)}, "extra": bomb} if hidden else bomb
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"run code.*safetensors"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_bomb_dressed_as_torchscript_never_runs(tmp_path):
    marker, path = tmp_path / "it ran", tmp_path / "weights.pt"
    torch.save(Bomb(marker), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights/constants.pkl", b"\x80\x02).")
    with pytest.raises(WeightsError):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_files_that_end_early_are_refused(form, share, tmp_path):
    state = {f"layer{i}.weight": torch.randn(64, 8) for i in range(4)}
    path = write(state, tmp_path / FORMS[form], form)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=path.name) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"not weights\n",
        b"<html><body>404</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        bytes(100),
        b"\xff" * 100,
        b"PK\x03\x04" + bytes(60),
        "grüße".encode(),
        b"\x80\x02}q\x00.",
    ],
    ids=lambda content: repr(content[:8]),
)
def test_other_files_are_refused_in_one_line(suffix, content, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=path.name) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.zeros(3), {"a": 1}, {"state_dict": {"a": 1}}, {1: torch.zeros(1)}]
)
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="state_dict"):
        read_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "."])
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_checkpoint(tmp_path / name)
    if name != ".":
        with pytest.raises(MaskCLIPError, match=f"{name}: no such model file"):
            load_clip(str(tmp_path / name))


class TestFit:
    STATE = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}  # noqa: RUF012 - constant

    def test_fitting_weights_are_loaded(self):
        model = nn.Linear(2, 3)
        fit(model, self.STATE, source="x")
        assert (model.weight == 1).all()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"bias": None}, r"1 missing \(bias\)"),
            ({"other": torch.ones(1)}, r"1 extra \(other\)"),
            ({"weight": torch.ones(2, 3)}, r"weight \(2, 3\), expected \(3, 2\)"),
            ({f"e{i}": torch.ones(1) for i in range(9)}, r"9 extra \(e0; e1; e2; \.\.\.\)"),
            ({"bias": None, "b": torch.ones(1)}, r"1 missing \(bias\), 1 extra \(b\)"),
        ],
    )
    def test_others_are_refused_by_name(self, change, message):
        model = nn.Linear(2, 3)
        before = model.weight.detach().clone()
        state = {key: value for key, value in {**self.STATE, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=message) as error:
            fit(model, state, source="some/file.pt")
        assert str(error.value).startswith("some/file.pt does not fit")
        assert torch.equal(model.weight, before)

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_the_logit_scale_fits_as_scalar_or_list_of_one(self, shape, make_clip):
        clip = make_clip("vit")
        state = {**clip.state_dict(), "logit_scale": torch.full(shape, 4.5)}
        fit(clip, state, source="x")
        assert clip.logit_scale.item() == 4.5

    def test_memory_is_taken_once_shapes_fit(self):
        devices = []

        def build(outputs=3):
            model = nn.Linear(2, outputs)
            devices.append(model.weight.device.type)
            return model

        with pytest.raises(WeightsError, match="2 of another shape"):
            build_fitting(lambda: build(4), self.STATE, source="x")
        assert devices == ["meta"]
        assert (build_fitting(build, self.STATE, source="x").weight == 1).all()
        assert devices == ["meta", "meta", "cpu"]


def test_a_file_of_another_family_says_what_is_supported(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"resnet\.safetensors.*VisionTransformer.*`model=NAME`"):
        load_clip(str(path))


def test_paths_may_be_of_any_letters(openai_like, tmp_path):
    folder = tmp_path / "gewichte ä 重み"
    folder.mkdir()
    path = write(openai_like["resnet"].state_dict(), folder / "ü.safetensors", "safetensors")
    assert load_clip(str(path)).name == Path("ü").name
