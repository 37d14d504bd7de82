import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from maskclip.clip.checkpoint import MissingWeightsError
from maskclip.clip.prompts import PromptError, check_lengths, encode_names, text_rows
from maskclip.clip.tokenizers import TokenizerError, TokenizerSource, text_config
from maskclip.clip.weights import load_clip
from tests import tokenizer_folders

pytest.importorskip("transformers", reason="tokenizers of text towers need maskclip[hf]")

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
OF = {  # a family's folder -> an architecture of open_clip that has such a tokenizer
    "siglip": "ViT-B-16-SigLIP",
    "gemma": "ViT-B-16-SigLIP2",
    "bert": "ViT-L-14-CLIPA",
    "nllb": "nllb-clip-base",
    "xlm_roberta": "xlm-roberta-base-ViT-B-32",
    "roberta": "roberta-ViT-B-32",
    "mt5": "mt5-base-ViT-B-32",
}
WITH_ENCODER = ("nllb", "xlm_roberta", "roberta", "mt5")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test here may reach the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def source(tmp_path):
    """Return the source of a family's tokenizer, from a folder made for it."""

    def make(family, **changes):
        folder = getattr(tokenizer_folders, family)(tmp_path / family)
        text = open_clip.get_model_config(OF[family])["text_cfg"]
        return TokenizerSource(**{"model": OF[family], "text": text, "given": folder, **changes})

    return make


@pytest.fixture
def tiny(monkeypatch):
    """Make open_clip know a small architecture with the text tower of a family."""

    def make(family):
        text = open_clip.get_model_config(OF[family])["text_cfg"]
        if family not in WITH_ENCODER:
            text = {**text, "width": 32, "heads": 1, "layers": 1, "vocab_size": 128}
        config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
        if family in ("siglip", "gemma", "bert"):
            config["init_logit_bias"] = -10
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
        return "tiny"

    return make


class TestTokens:
    @pytest.mark.parametrize("family", OF)
    def test_are_those_of_the_folders_file(self, family, source):
        from tokenizers import Tokenizer

        made = source(family)
        tokenizer = made.load()
        assert tokenizer.context_length == made.context_length
        alone = Tokenizer.from_file(str(made.given / "tokenizer.json"))
        for text in ("a dog", "a photo of the cat", ""):
            tokens = alone.encode(text).ids
            found = tokenizer([text])[0].tolist()
            if family == "bert":  # CLIPA strips the separator
                tokens = [0 if token == 3 else token for token in tokens]
            assert found[: len(tokens)] == tokens
            assert len(set(found[len(tokens) :])) == 1
            assert tokenizer.encode(text) == alone.encode(text, add_special_tokens=False).ids
            assert tokenizer.special_tokens == len(tokens) - len(tokenizer.encode(text))

    def test_of_a_sentencepiece_model_are_its_own(self, source, tmp_path):
        spm = pytest.importorskip("sentencepiece")
        folder = tokenizer_folders.sentencepiece(tmp_path / "alone")
        tokenizer = source("mt5", given=folder).load()
        alone = spm.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        for text in ("a photo of the dog", "a large cat in the sky"):
            tokens = [*alone.encode(text), 1]
            assert tokenizer([text])[0].tolist() == tokens + [0] * (77 - len(tokens))

    @pytest.mark.parametrize("family", ["siglip", "gemma"])
    def test_of_siglip_are_64_in_lower_case_without_punctuation(self, family, source):
        tokenizer = source(family).load()
        assert (
            tokenizer(["A  Photo, of_the DOG!"]).tolist()
            == tokenizer(["a photo of the dog"]).tolist()
        )
        assert tokenizer(["a dog"]).shape == (1, 64)

    @pytest.mark.parametrize(
        ("architecture", "length"),
        [
            ("ViT-B-16", 77),
            ("coca_ViT-B-32", 76),
            ("MobileCLIP-S1", 77),
            ("PE-Core-B-16", 32),
            ("PE-Core-bigG-14-448", 72),
            ("EVA02-B-16", 77),
        ],
    )
    def test_of_clips_own_tokenizer_are_as_many_as_the_tower_reads(self, architecture, length):
        text = open_clip.get_model_config(architecture)["text_cfg"]
        made = TokenizerSource(model=architecture, text=text)
        tokens = made.load()(["a dog"])
        assert tokens.shape == (1, length)
        assert tokens[0, :4].tolist() == [49406, 320, 1929, 49407]
        assert made.identity() == ""


class TestSettings:
    """What a configuration says of the tokenizer of CLIP's own kind."""

    def test_of_training_are_left_out(self):
        text = {"tokenizer_kwargs": {"reduction_mask": "syntax", "clean": "whitespace"}}
        tokens = TokenizerSource(model="tiny", text=text).load()(["a dog"])
        assert tokens[0, :4].tolist() == [49406, 320, 1929, 49407]

    @pytest.mark.parametrize("settings", [{"clean": "with care"}, {"strip_sep_token": True}])
    def test_that_cannot_be_are_one_line(self, settings):
        made = TokenizerSource(model="tiny", text={"tokenizer_kwargs": settings})
        with pytest.raises(TokenizerError, match=r"^tiny: tokenizer_kwargs [^\n]*$"):
            made.load()


class TestLanguage:
    def test_stands_before_the_words_and_is_english_if_none_is_named(self, source):
        english, german = source("nllb").load(), source("nllb", language="deu_Latn").load()
        named = source("nllb", language="eng_Latn").load()
        assert english(["a cat"]).tolist() == named(["a cat"]).tolist()
        assert english(["a cat"])[0, 0] != german(["a cat"])[0, 0]
        assert english(["a cat"])[0, 1:].tolist() == german(["a cat"])[0, 1:].tolist()

    def test_has_rows_of_its_own(self, source):
        assert source("nllb").identity() != source("nllb", language="deu_Latn").identity()

    def test_unknown_ones_say_what_is_expected(self, source):
        with pytest.raises(TokenizerError, match=r"`language`: .*3 codes.*eng_Latn.*'german'"):
            source("nllb", language="german").load()

    @pytest.mark.parametrize("family", ["siglip", "xlm_roberta"])
    def test_is_refused_where_the_tokenizer_has_none(self, family, source):
        with pytest.raises(TokenizerError, match="takes no language: leave `language` out"):
            source(family, language="deu_Latn").load()


class TestTowers:
    @pytest.mark.parametrize("family", OF)
    def test_run_with_a_folder_and_without_a_connection(self, family, tiny, tmp_path):
        folder = getattr(tokenizer_folders, family)(tmp_path / family)
        clip = load_clip(tiny(family), weights="random", tokenizer=str(folder))
        rows = encode_names(clip, ["dog", "cat"], ["a photo of a {}.", "{}"])
        assert rows.shape == (2, 8)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
        assert not torch.equal(rows[0], rows[1])
        assert clip.context_length == clip.tokenizer.context_length

    def test_of_transformers_need_the_configuration_beside_the_tokenizer(self, source):
        made = source("nllb")
        (made.given / "config.json").unlink()
        with pytest.raises(TokenizerError, match=r"config\.json of facebook/nllb-200"):
            text_config(made)

    def test_of_other_kinds_are_refused(self, source):
        made = source("nllb")
        (made.given / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(TokenizerError, match=r"expected a text tower of the kinds .*'gpt2'"):
            text_config(made)


class TestWeights:
    """Files of text towers of their own class, in the layouts that there are."""

    @pytest.fixture
    def trained(self, tiny, tmp_path):
        """Return the name and the folder of a small model, and its weights."""
        name, folder = tiny("bert"), tokenizer_folders.bert(tmp_path / "bert")
        model = load_clip(name, weights="random", tokenizer=str(folder)).model
        return name, str(folder), {k: v.clone() for k, v in model.state_dict().items()}

    @pytest.mark.parametrize("layout", ["own", "shape of one", "before text.", "of transformers"])
    def test_are_known(self, layout, trained, tmp_path):
        name, folder, state = trained
        given = dict(state)
        if layout == "shape of one":
            given |= {key: state[key][None] for key in ("logit_scale", "logit_bias")}
        elif layout == "before text.":
            given = {key.removeprefix("text."): value for key, value in state.items()}
        elif layout == "of transformers":
            given["text.transformer.embeddings.position_ids"] = torch.arange(8)[None]
        path = tmp_path / "mine.safetensors"
        save_file(given, path)
        clip = load_clip(name, weights=str(path), tokenizer=folder)
        assert clip.bias == -10
        found = clip.model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in state.items())


class TestLongWords:
    @pytest.mark.parametrize("family", OF)
    def test_are_refused_where_they_would_be_cut_and_nowhere_else(self, family, source):
        tokenizer = source(family).load()
        templates = ["a photo of a {}", "{}"]

        def cut(name):
            longest = max(len(tokenizer.encode(text.format(name))) for text in templates)
            return longest + tokenizer.special_tokens > tokenizer.context_length

        clip = SimpleNamespace(name="tiny", tokenizer=tokenizer)
        names = [" ".join(["dog"] * count) for count in range(5, 80)]
        assert cut(names[-1])
        assert not cut(names[0])
        for name in names:
            if cut(name):
                with pytest.raises(PromptError, match=f"tiny reads {tokenizer.context_length}"):
                    check_lengths(clip, [name], templates)
            else:
                check_lengths(clip, [name], templates)


class TestRows:
    def test_of_two_tokenizers_are_never_shared(self, tiny, tmp_path):
        one = tokenizer_folders.siglip(tmp_path / "one")
        other = tokenizer_folders.siglip(tmp_path / "other")
        written = json.loads((other / "tokenizer.json").read_text())
        written["model"]["vocab"] = [*written["model"]["vocab"], ["▁do", -9.0]]
        (other / "tokenizer.json").write_text(json.dumps(written))
        name, path = tiny("siglip"), tmp_path / "rows.sqlite"
        clips = [
            load_clip(name, weights="random", tokenizer=str(folder)) for folder in (one, other)
        ]
        assert clips[0].fingerprint == clips[1].fingerprint
        assert clips[0].tokenizer_identity() != clips[1].tokenizer_identity()
        made = [0]
        for clip in clips:
            text_rows(
                clip, ["dog"], templates="plain", path=path, on_word=lambda *_: made.append(1)
            )
        assert sum(made) == 2

    def test_of_a_copied_folder_are(self, source, tmp_path):
        made = source("siglip")
        copied = source("siglip", given=tokenizer_folders.siglip(tmp_path / "copy"))
        assert made.identity() == copied.identity()


class TestFolders:
    def test_that_are_none_are_refused_before_weights_are_read(self, tiny, tmp_path):
        with pytest.raises(TokenizerError, match="expected a folder, got nothing"):
            load_clip(tiny("siglip"), weights="nowhere.pt", tokenizer=str(tmp_path / "none"))

    @pytest.mark.parametrize("name", ["emoji", "ViT-B-16"])
    def test_are_refused_by_models_with_a_tokenizer_of_their_own(self, name, tmp_path):
        folder = tokenizer_folders.bert(tmp_path)
        weights = None if name == "emoji" else "random"
        with pytest.raises(Exception, match="leave `tokenizer` out"):
            load_clip(name, weights=weights, tokenizer=str(folder))

    def test_without_a_vocabulary_say_what_is_missing(self, source, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(TokenizerError, match=r"not the folder of a tokenizer.*tokenizer\.json"):
            source("siglip", given=tmp_path / "empty").load()

    def test_of_another_text_tower_are_refused(self, source):
        made = source("nllb")
        text = {**open_clip.get_model_config("ViT-B-16-SigLIP")["text_cfg"], "vocab_size": 40}
        with pytest.raises(TokenizerError, match="knows 40 tokens"):
            TokenizerSource(model="tiny", text=text, given=made.given).load()(["a cat"])

    def test_that_mark_no_end_of_a_text_are_refused(self, source):
        made = source("gemma")
        path = made.given / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "add_eos_token": False}))
        file = made.given / "tokenizer.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
        with pytest.raises(TokenizerError, match=r"neither the start nor the end.*SigLIP2"):
            made.load()

    def test_that_fill_up_on_the_left_fill_up_on_the_right(self, source):
        made = source("gemma")
        path = made.given / "tokenizer_config.json"
        expected = made.load()(["a dog"])
        path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
        assert torch.equal(made.load()(["a dog"]), expected)

    @pytest.mark.parametrize("key", ["tokenizer_config.json", "config.json"])
    @pytest.mark.parametrize(
        "written",
        [
            '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "model_type": "bert"}',
            '{"tokenizer_class": "AutoModel", "model_type": "bert"}',
            '{"tokenizer_class": "os.system"}',
            '{"tokenizer_class": 3}',
            '{"extra_ids": 1000000000000}',
            '{"extra_ids": "many"}',
            "[]",
            "{",
            "[" * 2000,
        ],
    )
    def test_that_name_code_or_are_damaged_give_one_line(self, key, written, source, capfd):
        made = source("siglip")
        (made.given / "evil.py").write_text("raise SystemExit('it ran')")
        (made.given / key).write_text(written)
        with pytest.raises(TokenizerError) as raised:
            made.load()
        assert "\n" not in str(raised.value)
        assert str(made.given) in str(raised.value)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "",
            lambda text: "{}",
            lambda text: text.replace("Unigram", "Nothing"),
            lambda text: text.replace('"unk_id": 2', '"unk_id": 99999'),
            lambda text: "\0" * 100,
        ],
    )
    def test_with_a_damaged_vocabulary_give_one_line(self, damage, source):
        made = source("siglip")
        path = made.given / "tokenizer.json"
        path.write_text(damage(path.read_text()))
        with pytest.raises(TokenizerError, match=r"^[^\n]*$") as raised:
            made.load()
        assert str(made.given) in str(raised.value)


class TestHub:
    def test_what_it_has_cached_is_found_without_a_connection(self, source, tmp_path, monkeypatch):
        from huggingface_hub import constants, file_download

        made = source("siglip")
        cache = tmp_path / "hub"
        snapshot = cache / "models--timm--ViT-B-16-SigLIP" / "snapshots" / ("0" * 40)
        snapshot.parent.mkdir(parents=True)
        made.given.rename(snapshot)
        refs = snapshot.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache), raising=False)
        found = TokenizerSource(model=made.model, text=made.text)
        assert found.folder() == snapshot
        assert found.load()(["a dog"]).shape == (1, 64)

    def test_offline_the_error_tells_the_way_out(self, source, isolated):
        with pytest.raises(MissingWeightsError) as raised:
            source("siglip", given=None).load()
        for part in (
            "tokenizer of ViT-B-16-SigLIP",
            "timm/ViT-B-16-SigLIP",
            "tokenizer.json",
            "models--timm--ViT-B-16-SigLIP",
            "`tokenizer=DIR`",
        ):
            assert part in str(raised.value)

    def test_without_the_extra_the_error_has_its_command(self, source, monkeypatch):
        from maskclip.core import errors

        monkeypatch.setattr(errors, "find_spec", lambda name: None)
        with pytest.raises(Exception, match=r"needs transformers.*\[hf\]"):
            source("siglip").load()


@pytest.mark.parametrize(
    "changed",
    [
        {"d_model": "wide"},
        {"d_model": -1},
        {"encoder_attention_heads": 3},
        {"encoder_layers": None},
        {"activation_function": "os.system"},
    ],
)
def test_text_towers_of_a_damaged_configuration_give_one_line(changed, tiny, tmp_path):
    folder = tokenizer_folders.nllb(tmp_path / "nllb")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(TokenizerError, match=r"^[^\n]*not a configuration of a text tower[^\n]*$"):
        load_clip(tiny("nllb"), weights="random", tokenizer=str(folder))


@pytest.mark.parametrize("changed", [{"encoder_layers": 10**9}, {"d_model": 10**9}])
def test_text_towers_too_large_for_any_memory_are_refused(changed, tiny, tmp_path):
    folder = tokenizer_folders.nllb(tmp_path / "nllb")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(TokenizerError, match="expected at most"):
        load_clip(tiny("nllb"), weights="random", tokenizer=str(folder))
