from dataclasses import replace

import pytest
import torch

from maskclip.clip.model import fingerprint
from maskclip.clip.prompts import (
    PromptError,
    cache_folder,
    check_lengths,
    encode_names,
    template_set,
    text_rows,
    unknown_words,
)

NAMES = ("dog", "red car", "{}", "grüße")


@pytest.fixture(scope="module")
def clip(make_model):
    return make_model()


def forbid(clip, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the text tower ran")

    monkeypatch.setattr(clip.model, "encode_text", refuse)


@pytest.fixture
def runs(clip, monkeypatch):
    """Count the forwards of the text tower."""
    counted = []
    encode = clip.model.encode_text

    def counting(tokens, **options):
        counted.append(len(tokens))
        return encode(tokens, **options)

    monkeypatch.setattr(clip.model, "encode_text", counting)
    return counted


@pytest.mark.parametrize(("name", "count"), [("published", 85), ("open_clip", 80), ("plain", 1)])
def test_template_sets(name, count):
    found = template_set(name)
    assert len(found) == len(set(found)) == count
    assert all(template.count("{}") == 1 for template in found)
    assert all(template.format("dog").count("dog") == 1 for template in found)


def test_the_published_set_extends_open_clips():
    assert set(template_set("open_clip")) < set(template_set("published"))
    assert template_set("plain") == ("a photo of a {}.",)


def test_unknown_template_sets_list_the_known():
    with pytest.raises(PromptError, match="published, open_clip, plain"):
        template_set("imagenet")


@pytest.mark.parametrize("templates", ["plain", "published"])
def test_rows_are_normalised_means_of_normalised_rows(clip, templates, tmp_path):
    found = text_rows(clip, NAMES, templates=templates, folder=tmp_path).rows
    assert (found.shape, found.dtype, found.device.type) == ((4, 16), torch.float32, "cpu")
    for row, name in zip(found, NAMES, strict=True):
        sentences = [template.replace("{}", name) for template in template_set(templates)]
        with torch.inference_mode():
            each = clip.model.encode_text(clip.tokenizer(sentences))
        expected = (each / each.norm(dim=1, keepdim=True)).mean(dim=0)
        expected = expected / expected.norm()
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))


def test_large_vocabularies_run_in_pieces(clip, runs, tmp_path):
    names = [f"thing {i}" for i in range(300)]
    found = text_rows(clip, names, templates="plain", folder=tmp_path).rows
    assert sum(runs) == 300
    assert max(runs) < 300
    alone = text_rows(clip, names[270:271], templates="plain", folder=tmp_path).rows
    torch.testing.assert_close(found[270:271], alone, rtol=1e-4, atol=1e-5)


class TestCache:
    def test_known_words_never_run_the_text_tower(self, clip, make_model, monkeypatch):
        first = text_rows(clip, NAMES, templates="plain").rows
        assert [path.suffix for path in cache_folder().iterdir()] == [".safetensors"]
        forbid(clip, monkeypatch)
        assert torch.equal(text_rows(clip, NAMES, templates="plain").rows, first)
        again = make_model()  # the same weights, loaded again
        forbid(again, monkeypatch)
        assert torch.equal(text_rows(again, NAMES, templates="plain").rows, first)

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"name": "other"},
            {"names": ("dog", "red car")},
            {"names": NAMES[::-1]},
            {"templates": "open_clip"},
        ],
        ids=str,
    )
    def test_other_models_words_or_templates_miss(self, clip, make_model, change, tmp_path):
        text_rows(clip, NAMES, templates="plain", folder=tmp_path)
        seed, name = change.get("seed", 0), change.get("name", clip.name)
        other = make_model(seed=seed, name=name)
        names = change.get("names", NAMES)
        templates = change.get("templates", "plain")
        found = text_rows(other, names, templates=templates, folder=tmp_path).rows
        assert len(list(tmp_path.iterdir())) == 2
        expected = encode_names(other, names, template_set(templates))
        assert torch.equal(found, expected)

    def test_the_same_weights_with_another_activation_miss(self, make_model, make_clip, tmp_path):
        exact = make_model()
        whole = exact.whole()._replace(model=make_clip("vit", quick_gelu=True))
        quick = replace(exact, whole=lambda: whole, fingerprint=fingerprint(whole.model))
        rows = text_rows(exact, NAMES, templates="plain", folder=tmp_path).rows
        others = text_rows(quick, NAMES, templates="plain", folder=tmp_path).rows
        assert not torch.equal(rows, others)

    @pytest.mark.parametrize("content", [b"", b"\x00" * 50, b"not safetensors", None])
    def test_damaged_files_are_made_again(self, clip, runs, content, tmp_path):
        first = text_rows(clip, NAMES, templates="plain", folder=tmp_path).rows
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:-7] if content is None else content)
        assert torch.equal(text_rows(clip, NAMES, templates="plain", folder=tmp_path).rows, first)
        before = len(runs)
        text_rows(clip, NAMES, templates="plain", folder=tmp_path)
        assert len(runs) == before

    def test_a_folder_that_cannot_be_written_costs_only_time(self, clip, runs, tmp_path):
        (tmp_path / "file").write_text("in the way")
        for _ in range(2):
            rows = text_rows(clip, NAMES, templates="plain", folder=tmp_path / "file" / "text").rows
            assert rows.shape == (4, 16)
        assert len(runs) == 2

    def test_lies_in_the_users_cache(self, isolated):
        assert isolated in cache_folder().parents
        assert not cache_folder().exists()


class TestLengths:
    @pytest.mark.parametrize("templates", ["plain", "published"])
    def test_what_would_be_cut_is_refused_and_nothing_else(self, clip, templates):
        sentences = template_set(templates)

        def cut(name):
            """Whether the tokenizer would lose something of a prompt."""
            longest = max(len(clip.tokenizer.encode(t.format(name))) for t in sentences)
            return longest + 2 > clip.tokenizer.context_length

        lengths = [n for n in range(50, 80) if not cut(" ".join(["dog"] * n))]
        fits, too_long = (" ".join(["dog"] * (max(lengths) + more)) for more in (0, 1))
        check_lengths(clip, ["cat", fits], sentences)
        with pytest.raises(PromptError, match=r"'dog dog.*\.\.\.'.*78 tokens.*tiny reads 77"):
            check_lengths(clip, ["cat", too_long], sentences)

    def test_the_error_comes_before_any_work(self, clip, monkeypatch, tmp_path):
        forbid(clip, monkeypatch)
        with pytest.raises(PromptError, match="shorten"):
            text_rows(clip, ["cat", "dog " * 90], templates="plain", folder=tmp_path)
        assert not list(tmp_path.iterdir())


class TestUnknownWords:
    def test_open_world_models_know_all(self, clip):
        assert unknown_words(clip, ["xylophonist"]) == []

    def test_embedded_models_know_their_words(self, clip):
        known = frozenset(clip.tokenizer.encode("a photo of a red dog car"))
        small = replace(clip, known_tokens=known)
        names = ["dog", "Red Car", "red wolf", "wolf"]
        assert unknown_words(small, names) == ["red wolf", "wolf"]

    def test_the_cache_keeps_them(self, clip, monkeypatch, tmp_path):
        small = replace(clip, known_tokens=frozenset(clip.tokenizer.encode("a photo of a dog.")))
        first = text_rows(small, ["dog", "wolf"], templates="plain", folder=tmp_path)
        assert first.unknown == ("wolf",)

        def never():
            raise AssertionError("the whole model was asked for")

        again = text_rows(
            replace(small, whole=never), ["dog", "wolf"], templates="plain", folder=tmp_path
        )
        assert again.unknown == ("wolf",)
        assert torch.equal(again.rows, first.rows)
