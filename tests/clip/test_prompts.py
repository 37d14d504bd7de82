import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from maskclip.clip import prompts
from maskclip.clip.model import fingerprint
from maskclip.clip.prompts import (
    PromptError,
    RecentlyUsed,
    cache_path,
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


def forget():
    """Start with no row in memory, as a new process does."""
    prompts._row_cache.cache_clear()


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


@pytest.mark.parametrize(
    ("name", "count"), [("published", 85), ("open_clip", 80), ("plain", 1), ("word", 1)]
)
def test_template_sets(name, count):
    found = template_set(name)
    assert len(found) == len(set(found)) == count
    assert all(template.count("{}") == 1 for template in found)
    assert all(template.format("dog").count("dog") == 1 for template in found)


def test_the_published_set_extends_open_clips():
    assert set(template_set("open_clip")) < set(template_set("published"))
    assert template_set("plain") == ("a photo of a {}.",)
    assert template_set("word") == ("{}",)


def test_unknown_template_sets_list_the_known():
    with pytest.raises(PromptError, match="published, open_clip, plain"):
        template_set("imagenet")


@pytest.mark.parametrize("templates", ["plain", "published"])
def test_rows_are_normalised_means_of_normalised_rows(clip, templates):
    found = text_rows(clip, NAMES, templates=templates).rows
    assert (found.shape, found.dtype, found.device.type) == ((4, 16), torch.float32, "cpu")
    for row, name in zip(found, NAMES, strict=True):
        sentences = [template.replace("{}", name) for template in template_set(templates)]
        with torch.inference_mode():
            each = clip.model.encode_text(clip.tokenizer(sentences))
        expected = (each / each.norm(dim=1, keepdim=True)).mean(dim=0)
        expected = expected / expected.norm()
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("templates", ["plain", "published"])
def test_a_row_does_not_hang_on_the_other_names(clip, runs, templates):
    names = [f"thing {i}" for i in range(20)]
    found = text_rows(clip, names, templates=templates).rows
    assert max(runs) == len(template_set(templates))
    forget()
    cache_path().unlink()
    others = text_rows(clip, [names[7], "dog", names[3]], templates=templates).rows
    assert torch.equal(others[[0, 2]], found[[7, 3]])


def test_progress_counts_the_words_that_are_not_cached(clip):
    told = []
    text_rows(clip, ["dog"], templates="plain")
    for _ in range(2):
        text_rows(clip, ["dog", "far", "off"], templates="plain", on_word=lambda *n: told.append(n))
    assert told == [(1, 2), (2, 2)]


class TestCache:
    def rows(self, clip, names=NAMES, templates="plain"):
        return text_rows(clip, names, templates=templates).rows

    def test_known_words_never_run_the_text_tower(self, clip, make_model, monkeypatch):
        first = self.rows(clip)
        for _ in ("memory", "file"):
            again = make_model()  # the same weights, loaded again
            forbid(again, monkeypatch)
            assert torch.equal(self.rows(again), first)
            forget()

    @pytest.mark.parametrize("place", ["memory", "file"])
    @pytest.mark.parametrize(
        ("names", "prompts"),
        [
            (NAMES[::-1], 0),
            (NAMES[1:3], 0),
            ((*NAMES, *NAMES), 0),
            ((*NAMES, "moon"), 1),
            (("moon", "dog", "sea"), 2),
        ],
        ids=str,
    )
    def test_only_new_words_are_encoded(self, clip, runs, place, names, prompts):
        known = dict(zip(NAMES, self.rows(clip), strict=True))
        if place == "file":
            forget()
        runs.clear()
        rows = self.rows(clip, names)
        assert sum(runs) == prompts
        alone = dict(zip(names, encode_names(clip, names, template_set("plain")), strict=True))
        for name, row in zip(names, rows, strict=True):
            if name in known:
                assert torch.equal(row, known[name])
            assert torch.equal(row, alone[name])

    @pytest.mark.parametrize("change", [{"seed": 1}, {"templates": "open_clip"}], ids=str)
    def test_other_weights_or_templates_miss(self, clip, make_model, change):
        first = self.rows(clip)
        other = make_model(seed=change.get("seed", 0))
        templates = change.get("templates", "plain")
        found = self.rows(other, templates=templates)
        assert not torch.equal(found, first)
        assert torch.equal(found, encode_names(other, NAMES, template_set(templates)))

    def test_the_same_weights_by_another_name_hit(self, clip, make_model, monkeypatch):
        first, other = self.rows(clip), make_model(name="other")
        forbid(other, monkeypatch)
        assert torch.equal(self.rows(other), first)

    def test_the_same_weights_with_another_activation_miss(self, make_model, make_clip):
        exact = make_model()
        built = exact.load_text()._replace(model=make_clip("vit", quick_gelu=True))
        quick = replace(exact, load_text=lambda: built, fingerprint=fingerprint(built.model))
        assert not torch.equal(self.rows(exact), self.rows(quick))

    @pytest.mark.parametrize("content", [b"", b"\x00" * 5000, b"not a database" * 500])
    def test_a_file_that_is_none_is_made_again(self, clip, runs, content):
        first = self.rows(clip)
        cache_path().write_bytes(content)
        forget()
        assert torch.equal(self.rows(clip), first)
        forget()
        runs.clear()
        assert torch.equal(self.rows(clip), first)
        assert not runs

    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
    @pytest.mark.parametrize("damage", ["cut", "zeros", "noise"])
    def test_damage_costs_time_and_never_a_row(self, clip, damage, share):
        names = [f"thing {i}" for i in range(64)]
        first = self.rows(clip, names)
        content = bytearray(cache_path().read_bytes())
        start, stop = int(share * len(content)), int((share + 0.1) * len(content))
        if damage == "cut":
            del content[start:]
        else:
            new = torch.randint(0, 256, (stop - start,), generator=torch.Generator().manual_seed(0))
            content[start:stop] = bytes(new.tolist()) if damage == "noise" else bytes(stop - start)
        cache_path().write_bytes(content)
        for _ in range(2):
            forget()
            assert torch.equal(self.rows(clip, names), first)

    def test_a_value_that_changed_in_the_file_is_encoded_again(self, clip):
        first = self.rows(clip)
        with closing(sqlite3.connect(cache_path())) as file, file:
            file.execute("UPDATE rows SET row = zeroblob(length(row))")
        forget()
        assert torch.equal(self.rows(clip), first)

    def test_a_locked_file_costs_only_time(self, clip, monkeypatch):
        monkeypatch.setattr(prompts, "_PATIENCE", 0.01)
        first = self.rows(clip)
        with closing(sqlite3.connect(cache_path())) as other:
            other.execute("BEGIN EXCLUSIVE")
            forget()
            assert torch.equal(self.rows(clip, (*NAMES, "moon"))[:4], first)

    def test_a_file_that_cannot_be_written_costs_only_time(self, clip, runs, isolated):
        cache_path().parent.parent.mkdir(parents=True, exist_ok=True)
        cache_path().parent.write_text("in the way")
        first = self.rows(clip)
        assert torch.equal(self.rows(clip), first)  # memory has them
        forget()
        assert torch.equal(self.rows(clip), first)
        assert sum(runs) == 2 * len(NAMES)

    def test_the_file_is_bounded_and_what_is_used_stays(self, clip, runs, monkeypatch):
        monkeypatch.setattr(prompts, "FILE_BYTES", 256 * 1024)
        now = [1e9]
        monkeypatch.setattr(prompts.time, "time", lambda: now[0])
        for step in range(30):
            now[0] += 2 * 86_400
            forget()
            self.rows(clip, ["dog", *(f"thing {step} {i}" for i in range(200))])
            assert cache_path().stat().st_size <= 2 * prompts.FILE_BYTES
        runs.clear()
        forget()
        self.rows(clip, ["dog", "thing 29 7"])
        assert not runs
        self.rows(clip, ["thing 0 7"])
        assert sum(runs) == 1

    def test_processes_and_threads_may_share_it(self, clip):
        names = [f"thing {i}" for i in range(40)]
        expected = encode_names(clip, names, template_set("plain"))
        forget()

        def ask(number):
            mine = names[number::3] + names[number : number + 9]
            order = [names.index(name) for name in mine]
            assert torch.equal(self.rows(clip, mine), expected[order])

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, [*range(24), *range(24)]))

    def test_lies_in_the_users_cache(self, isolated):
        assert isolated in cache_path().parents
        assert not cache_path().exists()


class TestRecentlyUsed:
    def test_the_longest_unused_go_first(self):
        kept = RecentlyUsed(10)
        for name in "abc":
            kept.put(name, name.upper(), 3)
        assert kept.get("a") == "A"
        kept.put("d", "D", 4)
        assert [kept.get(name) for name in "abcd"] == ["A", None, "C", "D"]

    def test_a_new_value_takes_the_place_of_the_old(self):
        kept = RecentlyUsed(10)
        for value in range(9):
            kept.put("a", value, 4)
        kept.put("b", "B", 6)
        assert (kept.get("a"), kept.get("b")) == (8, "B")

    def test_what_is_too_large_is_not_kept(self):
        kept = RecentlyUsed(10)
        kept.put("a", "A", 11)
        assert kept.get("a") is None
        kept.put("b", "B", 10)
        assert kept.get("b") == "B"


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

    def test_the_error_comes_before_any_work(self, clip, monkeypatch):
        forbid(clip, monkeypatch)
        with pytest.raises(PromptError, match="shorten"):
            text_rows(clip, ["cat", "dog " * 90], templates="plain")
        assert not cache_path().exists()


class TestUnknownWords:
    def test_open_world_models_know_all(self, clip):
        assert unknown_words(clip, ["xylophonist"]) == []

    def test_embedded_models_know_their_words(self, clip):
        known = frozenset(clip.tokenizer.encode("a photo of a red dog car"))
        small = replace(clip, known_tokens=known)
        names = ["dog", "Red Car", "red wolf", "wolf"]
        assert unknown_words(small, names) == ["red wolf", "wolf"]

    def test_the_cache_keeps_them(self, clip):
        small = replace(clip, known_tokens=frozenset(clip.tokenizer.encode("a photo of a dog.")))
        first = text_rows(small, ["dog", "wolf"], templates="plain")
        assert first.unknown == ("wolf",)

        def never():
            raise AssertionError("the whole model was asked for")

        for _ in ("memory", "file"):
            other = replace(small, load_text=never)
            again = text_rows(other, ["wolf", "dog", "wolf"], templates="plain")
            assert again.unknown == ("wolf", "wolf")
            assert torch.equal(again.rows, first.rows[[1, 0, 1]])
            forget()


class TestWhateverIsWrongWithTheCache:
    """It costs time, never results."""

    def rows(self, make_model, path):
        return text_rows(make_model(), ["dog", "cat"], templates="plain", path=path).rows

    @pytest.mark.parametrize("name", ["a" * 300, "folder"])
    def test_its_file_cannot_be_looked_for(self, make_model, tmp_path, name):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        expected = self.rows(make_model, tmp_path / "sound.sqlite")
        assert torch.equal(self.rows(make_model, path), expected)

    def test_a_table_of_another_shape_is_replaced(self, make_model, tmp_path):
        path = tmp_path / "rows.sqlite"
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("CREATE TABLE rows (a, b, c, d, e, f)")
        expected = self.rows(make_model, tmp_path / "sound.sqlite")
        assert torch.equal(self.rows(make_model, path), expected)
        forget()
        self.rows(make_model, path)  # the damaged file is gone: a new one is written
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("SELECT count(*) FROM rows").fetchone() == (2,)

    def test_the_file_shrinks_with_its_rows(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prompts, "FILE_BYTES", 2**18)
        path = tmp_path / "rows.sqlite"
        rows = {i.to_bytes(16, "big"): prompts._Row(bytes(4096), False) for i in range(400)}
        prompts._row_cache(path).write(rows)
        assert 0 < path.stat().st_size <= 2**18 + 2**15


def test_no_names_are_refused(clip):
    with pytest.raises(PromptError, match="no names: give at least one word"):
        text_rows(clip, (), templates="plain")
