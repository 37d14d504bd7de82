"""Verbs that take words, with a model whose words are read by a tokenizer of transformers."""

import json
import shutil
from dataclasses import replace

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

import maskclip
from maskclip.cli import main
from maskclip.core.config import DEFAULT_OPTIONS
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import EmojiScenes, draw_scene
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, read_student, save_student
from maskclip.plus.student import build_student
from maskclip.tasks.label.finished import open_labels
from maskclip.tasks.photos import score_photo
from maskclip.tasks.run_folder import begin, compare, run_config
from maskclip.trainings import own_training
from tests import tokenizer_folders

pytest.importorskip("transformers", reason="tokenizers of text towers need maskclip[hf]")

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 8}
VISION = {
    "image_size": 32,
    "timm_model_name": "vit_base_patch16_siglip_224",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
}
LIKE_SIGLIP = {
    "context_length": 64,
    "vocab_size": 128,
    "hf_tokenizer_name": "someone/siglip",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 32,
    "heads": 1,
    "layers": 1,
    "pool_type": "last",
    "no_causal_mask": True,
    "proj_bias": True,
}
LIKE_NLLB = {
    "hf_model_name": "someone/nllb",
    "hf_tokenizer_name": "someone/nllb",
    "hf_proj_type": "linear",
    "hf_pooler_type": "cls_pooler",
}
RANDOM = ("--weights", "random", "--templates", "plain", "--short-side", "64", "--device", "cpu")
WORDS = ("-c", "dog", "-c", "grass")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Make open_clip know two small architectures, with SigLIP's image tower."""
    create = timm.create_model

    def smaller(name, **given):
        return create(name, **{**given, **(SMALL if "siglip" in name else {})})

    monkeypatch.setattr(timm, "create_model", smaller)
    for name, text in (("like-siglip", LIKE_SIGLIP), ("like-nllb", LIKE_NLLB)):
        config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
        if name == "like-siglip":
            config["init_logit_bias"] = -10.0
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(draw_scene(7, size=(48, 64)).image).save(path)
    return path


@pytest.fixture
def siglip(tmp_path):
    return tokenizer_folders.siglip(tmp_path / "siglip")


@pytest.fixture
def nllb(tmp_path):
    return tokenizer_folders.nllb(tmp_path / "nllb")


def run(*arguments):
    return main([*map(str, arguments)])


def error_of(captured):
    lines = [line for line in captured.err.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


class TestSegment:
    def test_runs_with_a_folder_and_without_a_connection(self, photo, siglip, tmp_path, capsys):
        of_model = ("--model", "like-siglip", *RANDOM, "--tokenizer", siglip)
        assert run("segment", photo, *WORDS, *of_model, "--out", tmp_path / "out") == 0
        assert (tmp_path / "out" / "photo_labels.png").is_file()
        assert "dog" in capsys.readouterr().out

    def test_gives_what_python_gives(self, photo, siglip):
        model = maskclip.load("like-siglip", weights="random", templates="plain", tokenizer=siglip)
        found = model.segment(photo, ["dog", "grass"], short_side=64)
        assert found.labels.shape == (48, 64)
        assert model.clip.bias == -10.0

    def test_scores_are_the_softmax_of_the_models_own_logits(self, photo, siglip):
        model = maskclip.load("like-siglip", weights="random", templates="plain", tokenizer=siglip)
        words = model.prepare(["dog", "grass", "sky"])
        encoded = model.encode(photo, short_side=64)
        maps = score_photo(encoded.encoded, model.scoring(words, DEFAULT_OPTIONS)).maps
        clip = model.clip.model
        with torch.inference_mode():
            tokens = model.clip.tokenizer([f"a photo of a {name}." for name in words.names])
            rows = clip.encode_text(tokens, normalize=True)
            features = F.normalize(encoded.dense.features, dim=1)
            cosines = torch.einsum("bdhw,kd->bkhw", features, rows)
            logits = clip.logit_scale.exp() * cosines + clip.logit_bias
        torch.testing.assert_close(maps, logits.softmax(dim=1))

    def test_offline_without_a_folder_one_line_tells_the_way_out(self, photo, capsys):
        assert run("segment", photo, *WORDS, "--model", "like-siglip", *RANDOM) == 2
        line = error_of(capsys.readouterr())
        for part in (
            "someone/siglip",
            "tokenizer.json",
            "is not on this machine",
            "--tokenizer DIR",
        ):
            assert part in line

    def test_without_the_extra_one_line_has_its_command(self, photo, siglip, capsys, monkeypatch):
        monkeypatch.setattr("maskclip.core.errors.find_spec", lambda name: None)
        of_model = ("--model", "like-siglip", *RANDOM, "--tokenizer", siglip)
        assert run("segment", photo, *WORDS, *of_model) == 2
        line = error_of(capsys.readouterr())
        assert "transformers" in line
        assert "[hf]" in line

    def test_a_folder_that_would_run_code_is_one_line(self, photo, siglip, capsys):
        (siglip / "evil.py").write_text("raise SystemExit('it ran')")
        settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
        (siglip / "tokenizer_config.json").write_text(json.dumps(settings))
        of_model = ("--model", "like-siglip", *RANDOM, "--tokenizer", siglip)
        assert run("segment", photo, *WORDS, *of_model) == 2
        assert "auto_map" in error_of(capsys.readouterr())

    def test_a_clip_with_its_own_tokenizer_takes_none(self, photo, siglip, capsys):
        assert run("segment", photo, *WORDS, "--model", "emoji", "--tokenizer", siglip) == 2
        assert "leave --tokenizer out" in error_of(capsys.readouterr())

    def test_a_long_word_is_refused_by_the_length_of_the_tower(self, photo, siglip, capsys):
        of_model = ("--model", "like-siglip", *RANDOM, "--tokenizer", siglip)
        assert run("segment", photo, "-c", "dog " * 70, "-c", "cat", *of_model) == 2
        assert "reads 64" in error_of(capsys.readouterr())

    def test_a_language_is_of_nllb_alone(self, photo, siglip, nllb, tmp_path, capsys):
        german = ("--model", "like-nllb", *RANDOM, "--tokenizer", nllb, "--language", "deu_Latn")
        alone = ("--templates", "word")
        assert run("segment", photo, *WORDS, *german, *alone, "--out", tmp_path / "out") == 0
        assert "English" not in capsys.readouterr().err
        with pytest.warns(MaskCLIPWarning, match="plain are English .* `templates=word`"):
            maskclip.load(
                "like-nllb",
                weights="random",
                tokenizer=nllb,
                language="deu_Latn",
                templates="plain",
            )
        of_model = ("--model", "like-siglip", *RANDOM, "--tokenizer", siglip)
        assert run("segment", photo, *WORDS, *of_model, "--language", "deu_Latn") == 2
        assert "leave --language out" in error_of(capsys.readouterr())


class TestLabel:
    def test_goes_on_with_the_same_tokenizer_and_language_alone(
        self, photo, nllb, tmp_path, capsys
    ):
        out = tmp_path / "labels"
        begun = ("label", photo.parent, *WORDS, "--model", "like-nllb", *RANDOM, "--out", out)
        german = ("--tokenizer", nllb, "--language", "deu_Latn")
        assert run(*begun, *german) == 0
        settings = json.loads((out / "report.json").read_text())["settings"]
        assert settings["language"] == "deu_Latn"
        assert len(settings["tokenizer"]) == 16
        opened = open_labels(out).model(weights="random", tokenizer=str(nllb))  # as tune does
        assert (opened.language, opened.tokenizer) == ("deu_Latn", str(nllb))
        assert run(*begun, *german) == 0
        capsys.readouterr()
        assert run(*begun, "--tokenizer", nllb, "--language", "fra_Latn") == 2
        assert "language" in error_of(capsys.readouterr())
        other = tokenizer_folders.nllb(tmp_path / "other", ["eng_Latn", "fra_Latn", "deu_Latn"])
        assert run(*begun, "--tokenizer", other, "--language", "deu_Latn") == 2
        assert "tokenizer" in error_of(capsys.readouterr())


def test_eval_records_the_tokenizer(siglip, tmp_path):
    pytest.importorskip("torchmetrics")
    of_model = ("--model", "like-siglip", *RANDOM[:-4], "--tokenizer", siglip)
    out = tmp_path / "run"
    size = ("--short-side", "32", "--device", "cpu")
    assert run("eval", "emoji", *of_model, *size, "--limit", "1", "--size", "32", "--out", out) == 0
    recorded = json.loads((out / "result.json").read_text())["tokenizer"]
    assert len(recorded) == 16


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("like-siglip", "expected MODEL=DIR"),
        ("like-siglip=nowhere", "expected MODEL=DIR"),
        ("other=.", "no model is 'other' here"),
    ],
)
def test_compare_and_serve_take_a_folder_for_each_model(given, part, capsys):
    pytest.importorskip("torchmetrics")
    assert run("compare", "emoji", "--models", "like-siglip", "--tokenizer", given) == 2
    assert part in error_of(capsys.readouterr())
    pytest.importorskip("fastapi")
    assert run("serve", "--model", "like-siglip", "--port", "0", "--tokenizer", given) == 2
    assert part in error_of(capsys.readouterr())


def test_a_students_new_words_are_read_by_its_clips_tokenizer(photo, nllb, tmp_path, monkeypatch):
    of_clip = {"weights": "random", "tokenizer": nllb}
    clip = maskclip.load("like-nllb", **of_clip, language="deu_Latn", templates="word")
    own = Vocabulary.parse(["dog", "grass"])
    rows = clip.scoring(clip.prepare(own), DEFAULT_OPTIONS).rows
    config = StudentConfig(depth=50, width=8, embed_dim=rows.shape[1])
    student = build_student(config, rows).eval()
    path = tmp_path / "student.safetensors"
    about = {"clip": "like-nllb", "templates": "word", "language": "deu_Latn"}
    save_student(TrainedStudent(student, own, short_side=64, **about), path)
    assert read_student(path).language == "deu_Latn"
    found = maskclip.load(path, **of_clip).segment(photo, ["dog", "cat"])
    assert found.vocabulary.names == ("dog", "cat")
    with pytest.raises(MaskCLIPError, match="language belongs to CLIP"):
        maskclip.load(path, language="deu_Latn")
    with pytest.raises(MaskCLIPError, match="`tokenizer`: all of these are"):
        maskclip.load(path, tokenizer=nllb).segment(photo, ["dog"])


def test_a_training_goes_on_with_the_same_tokenizer_wherever_it_lies(nllb, tmp_path):
    samples = EmojiScenes(size=32, seeds=range(2))
    own = own_training("emoji", "like-nllb", classes=len(samples.vocabulary))

    def config(folder, **teacher):
        given = replace(own.teacher, tokenizer=str(folder), **teacher)
        return run_config(replace(own, teacher=given), samples)

    run = tmp_path / "run"
    run.mkdir()
    begin(run, config(nllb), samples)
    moved = shutil.copytree(nllb, tmp_path / "moved")
    assert not compare(run, config(moved), samples).changes
    (moved / "tokenizer.json").write_text("{}")
    with pytest.raises(MaskCLIPError, match=r"another training: files\.teacher\.tokenizer"):
        compare(run, config(moved), samples)
    with pytest.raises(MaskCLIPError, match=r"another training: teacher\.language"):
        compare(run, config(nllb, language="deu_Latn"), samples)
