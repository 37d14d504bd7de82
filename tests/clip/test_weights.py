import json
import math
import socket
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from maskclip.clip import open_clip_models, published
from maskclip.clip.checkpoint import Checkpoint, WeightsError
from maskclip.clip.hub import DownloadError
from maskclip.clip.model import OPENAI_MEAN, OPENAI_STD
from maskclip.clip.published import architectures, cached_path, locate, tags
from maskclip.clip.weights import load_clip, remembering

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture
def tiny(monkeypatch):
    """Make open_clip know a small architecture, with weights of two kinds."""
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny-16", config)
    known = {
        "openai": {"hf_hub": "someone/tiny.openai/", "quick_gelu": True, "mean": MEAN, "std": STD},
        "laion": {"hf_hub": "someone/tiny.laion/"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "vit-tiny-16", known)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-tiny-16", known)
    return "ViT-tiny-16"


@pytest.fixture
def tiny_file(tiny, tmp_path):
    path = tmp_path / "mine.safetensors"
    state = load_clip(tiny, weights="random").model.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def uses_quick_gelu(clip):
    kinds = {type(block.mlp.gelu) for block in clip.model.visual.transformer.resblocks}
    kinds |= {type(block.mlp.gelu) for block in clip.model.transformer.resblocks}
    assert len(kinds) == 1
    return kinds == {QuickGELU}


class TestNames:
    @pytest.mark.parametrize(
        ("name", "near"),
        [("ViT-B-61", "ViT-B-16"), ("RN51", "RN50"), ("emojy", "emoji"), ("vit-b-16", "ViT-B-16")],
    )
    def test_unknown_ones_get_the_nearest(self, name, near):
        with pytest.raises(WeightsError, match=rf"unknown model '{name}'.*nearest: .*{near}"):
            load_clip(name)

    def test_of_nothing_like_any_say_where_to_look(self):
        with pytest.raises(WeightsError, match=r"unknown model.*maskclip models"):
            load_clip("zzzzzzzzzz")

    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("timm/ViT-B-16-SigLIP", "ViT-B-16-SigLIP:webli"),
            ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "ViT-H-14:laion2b_s32b_b79k"),
            ("VIT-L-14-336:openai", "ViT-L-14-336"),
        ],
    )
    def test_repositories_and_other_cases_get_the_name_that_they_have_here(self, name, near):
        with pytest.raises(WeightsError, match=rf"nearest: (.*, )?{near}(,|;)"):
            load_clip(name)

    def test_a_tag_gets_the_nearest(self):
        with pytest.raises(WeightsError, match=r"'LAION2B_s34b_b88k' \(did you mean laion2b_s34b"):
            load_clip("ViT-B-16:LAION2B_s34b_b88k")

    def test_several_tags_are_listed(self):
        with pytest.raises(WeightsError, match=r"laion2b_s12b_b42k, laion2b_s34b_b88k"):
            load_clip("ViT-g-14")

    def test_unknown_tags_list_the_known(self):
        with pytest.raises(WeightsError, match=r"'opnai'.*openai, yfcc15m, cc12m"):
            load_clip("RN50:opnai")

    def test_an_architecture_without_weights_asks_for_a_file(self):
        with pytest.raises(WeightsError, match="`weights=FILE`"):
            load_clip("ViT-M-32")

    def test_weights_for_an_embedded_model_are_refused(self):
        with pytest.raises(WeightsError, match="brings its own weights"):
            load_clip("emoji", weights="random")

    def test_tags_are_open_clips(self):
        assert "openai" in tags("ViT-B-16")
        assert tags("ViT-M-32") == []

    def test_a_slash_is_a_dash(self, tiny):
        assert load_clip("ViT/tiny-16", weights="random").name == f"{tiny}:random"


class TestQuickGELU:
    @pytest.mark.parametrize(
        ("name", "quick"),
        [
            ("ViT-B-16:openai", True),
            ("ViT-B-16", True),
            ("ViT-B/32:openai", True),
            ("RN50", True),
            ("ViT-L-14-336:openai", True),
            ("ViT-B-16:laion2b_s34b_b88k", False),
            ("ViT-B-16:datacomp_xl_s13b_b90k", False),
            ("ViT-B-16-quickgelu:dfn2b", True),
            ("ViT-H-14:dfn5b", True),
            ("ViT-H-14:laion2b_s32b_b79k", False),
        ],
    )
    def test_the_tag_decides_for_real_models(self, name, quick, monkeypatch):
        class BuiltError(Exception):
            pass

        def build(config):
            raise BuiltError(config["quick_gelu"])

        monkeypatch.setattr(open_clip_models, "locate", lambda *_: Path("file.safetensors"))
        monkeypatch.setattr(open_clip_models, "read_checkpoint", lambda _: Checkpoint({}, None, {}))
        monkeypatch.setattr(open_clip_models, "_build", build)
        with pytest.raises(BuiltError) as built:
            load_clip(name)
        assert built.value.args == (quick,)

    @pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion", False)])
    def test_it_reaches_the_network(self, tag, quick, tiny, tiny_file, monkeypatch):
        monkeypatch.setattr(open_clip_models, "locate", lambda *_: tiny_file)
        clip = load_clip(f"{tiny}:{tag}")
        assert clip.name == f"{tiny}:{tag}"
        assert uses_quick_gelu(clip) == quick
        expected = (MEAN, STD) if tag == "openai" else (OPENAI_MEAN, OPENAI_STD)
        assert (clip.mean, clip.std) == expected

    @pytest.mark.parametrize(
        ("suffix", "quick"), [("", False), (":openai", True), (":laion", False)]
    )
    def test_a_tag_beside_a_file_says_how_it_was_trained(self, suffix, quick, tiny, tiny_file):
        clip = load_clip(tiny + suffix, weights=str(tiny_file))
        assert uses_quick_gelu(clip) == quick

    def test_open_clips_own_configurations_stay_as_they_are(self, tiny, tiny_file):
        load_clip(f"{tiny}:openai", weights=str(tiny_file))
        assert "quick_gelu" not in open_clip.get_model_config(tiny)


class TestRandom:
    def test_is_deterministic_and_leaves_the_generator_alone(self, tiny):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        first = load_clip(tiny, weights="random")
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(8)
        second = load_clip(tiny, weights="random")
        assert first.fingerprint == second.fingerprint
        assert not first.model.training
        for key, value in first.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[key])

    def test_is_never_what_comes_instead_of_missing_weights(self, tiny):
        with pytest.raises(WeightsError, match=r"tiny\.openai"):
            load_clip(tiny)


class TestFiles:
    def test_fill_their_architecture(self, tiny, tiny_file):
        clip = load_clip(tiny, weights=str(tiny_file))
        assert clip.name == f"{tiny}:mine.safetensors"
        assert clip.fingerprint == load_clip(tiny, weights="random").fingerprint

    def test_alone_find_their_architecture(self, tiny, tiny_file):
        clip = load_clip(str(tiny_file))
        assert clip.fingerprint == load_clip(tiny, weights="random").fingerprint

    def test_of_another_architecture_do_not_fit(self, tiny_file):
        with pytest.raises(WeightsError, match=r"mine\.safetensors does not fit.*missing"):
            load_clip("ViT-S-32", weights=str(tiny_file))

    def test_missing_ones_are_named(self, tiny):
        with pytest.raises(WeightsError, match=r"nowhere\.pt: no such"):
            load_clip(tiny, weights="nowhere.pt")


class TestEmbedded:
    """A file that carries its configuration, and only the token rows it was trained on."""

    @pytest.fixture
    def file(self, tiny, tmp_path):
        state = dict(load_clip(tiny, weights="random").model.state_dict())
        table = state.pop("token_embedding.weight")
        ids = torch.tensor([320, 1929, 49406, 49407])
        state["token_embedding.ids"], state["token_embedding.rows"] = ids, table[ids]
        config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
        metadata = {
            "format": "maskclip-embedded-1",
            "config": json.dumps(config),
            "short_side": "96",
        }
        path = tmp_path / "small.safetensors"
        tensors = {key: value.contiguous() for key, value in state.items()}
        save_file(tensors, path, metadata=metadata)
        return path, table, ids

    def test_brings_all_it_needs(self, file):
        path, table, ids = file
        clip = load_clip(str(path))
        assert (clip.name, clip.short_side) == ("small", 96)
        assert clip.known_tokens == set(ids.tolist())
        rows = clip.model.token_embedding.weight
        assert torch.equal(rows[ids], table[ids])
        assert rows.any(dim=1).sum() == len(ids)


class TestSelfDescription:
    """What a loaded model says of its own training."""

    @pytest.mark.parametrize("bias", [None, -7.5])
    def test_temperature_bias_and_length_are_those_of_the_weights(self, bias, tiny, tmp_path):
        config = open_clip.factory._MODEL_CONFIGS[tiny]
        config["text_cfg"] = {**TEXT, "context_length": 20}
        if bias is not None:
            config["init_logit_bias"] = 0.0
        state = dict(load_clip(tiny, weights="random").model.state_dict())
        state["logit_scale"] = torch.tensor(3.0)
        if bias is not None:
            state["logit_bias"] = torch.tensor(bias)
        path = tmp_path / "trained.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        clip = load_clip(f"{tiny}:laion", weights=str(path))
        assert clip.temperature == pytest.approx(math.exp(3))
        assert (clip.bias, clip.context_length) == (bias, 20)

    @pytest.mark.parametrize(("name", "temperature"), [("emoji-rn", 23.03), ("emoji-vit", 30.33)])
    def test_embedded_models_take_theirs_from_their_file(self, name, temperature):
        clip = load_clip(name)
        assert clip.temperature == pytest.approx(temperature, abs=0.01)
        assert clip.temperature == float(clip.model.logit_scale.detach().exp())
        assert (clip.bias, clip.context_length) == (None, 32)


class TestDownload:
    def place_in_cache(self, home, repository, file):
        folder = home / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        path = folder / "snapshots" / "abc" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        return path

    @pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
    def test_what_was_downloaded_is_found(self, isolated, file):
        assert cached_path("ViT-B-16", "openai") is None
        path = self.place_in_cache(isolated, "timm/vit_base_patch16_clip_224.openai", file)
        assert cached_path("ViT-B-16", "openai") == path
        assert locate("ViT-B-16", "openai") == path

    def test_so_is_what_openais_client_cached(self, isolated):
        path = isolated / ".cache" / "clip" / "ViT-B-16.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        assert locate("ViT-B-16", "openai") == path

    @pytest.mark.parametrize("offline", [True, False])
    def test_offline_the_error_tells_the_way_out(self, isolated, offline, monkeypatch):
        import huggingface_hub.constants

        asked = []

        def no_network(host, *_, **__):
            asked.append(host)
            raise socket.gaierror("Name or service not known")

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(socket, "getaddrinfo", no_network)
        with pytest.raises(WeightsError) as error:
            load_clip("ViT-B-16")
        message = str(error.value)
        assert "timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors" in message
        assert str(isolated / "hub" / "models--timm--vit_base_patch16_clip_224.openai") in message
        assert "ViT-B-16:openai with `weights=FILE`" in message
        assert "\n" not in message
        assert bool(asked) != offline

    def test_a_download_that_breaks_off_is_the_same_error(self, monkeypatch):
        def broken(*_, **__):
            raise DownloadError("connection reset")

        monkeypatch.setattr(published, "hub_file", broken)
        monkeypatch.setattr(published, "fetch_address", broken)
        with pytest.raises(
            WeightsError, match=r"cannot be downloaded \(connection reset\).*weights=FILE"
        ):
            locate("RN50", "openai")

    def test_weights_that_the_hub_does_not_give_come_from_their_own_address(
        self, isolated, monkeypatch
    ):
        fetched = []

        def refused(*_, **__):
            raise DownloadError("blocked")

        monkeypatch.setattr(published, "hub_file", refused)
        monkeypatch.setattr(
            published, "fetch_address", lambda url, target, digest: fetched.append((url, digest))
        )
        target = isolated / ".cache" / "clip" / "RN50.pt"
        assert locate("RN50", "openai") == target
        assert locate("RN50", "yfcc15m").name == "rn50-quickgelu-yfcc15m-455df137.pt"
        (openai, sha256), (_, start) = fetched
        assert openai.endswith(f"/{sha256}/RN50.pt")
        assert len(sha256) == 64
        assert start == "455df137"

    def test_every_listed_tag_can_tell_where_it_would_lie(self):
        for architecture in architectures():
            for tag in tags(architecture):
                assert cached_path(architecture, tag) is None
                pretrained = open_clip.get_pretrained_cfg(architecture, tag)
                message = published._cannot_download(architecture, tag, pretrained, "")
                assert "cached in None" not in message
                assert f"{architecture}:{tag} (" in message


def test_the_last_model_is_remembered_and_what_failed_is_not_tried_again(monkeypatch):
    tried = []

    def unreachable(*_):
        tried.append(1)
        raise OSError("no net")

    monkeypatch.setattr("maskclip.clip.hub.check_reachable", unreachable)
    with remembering():
        first = load_clip("emoji")
        assert load_clip("emoji-rn") is first
        for _ in range(2):
            with pytest.raises(WeightsError, match="cannot be downloaded"):
                load_clip("RN50:openai")
        assert len(tried) == 2  # the hub, and the weights' own address
        assert load_clip("emoji-vit") is load_clip("emoji-vit")
    assert load_clip("emoji") is not first


def test_a_hub_that_does_not_answer_is_given_up_soon(monkeypatch):
    def silent(address, timeout):
        assert address[1] == 443
        assert timeout <= 10
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(
        WeightsError,
        match=r"are not on this machine and cannot be downloaded.*`model=photo` for photo",
    ):
        locate("RN50", "openai")
