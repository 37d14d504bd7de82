import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maskclip.core import resize
from maskclip.core.dense import (
    Dense,
    Scoring,
    add_threshold_background,
    label,
    pool_synonyms,
    refine,
    score,
    similarity,
)
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN, PUBLISHED
from maskclip.core.refinement import (
    DROPPED,
    add_mean,
    denoise_prompts,
    probabilities,
    remove_redundant,
    smooth_keys,
)
from maskclip.core.resize import Geometry

T = 100
NINE_TO_ONE = math.log(9) / T  # a cosine ahead by this has the probability 0.9 of two classes


def random_maps(batch=2, classes=4, height=3, width=5, seed=0, spread=0.02):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(batch, classes, height, width, generator=generator)


def random_keys(channels=6, batch=2, height=3, width=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator)


class TestSimilarity:
    def test_is_the_cosine_with_each_row(self):
        features = torch.tensor([[3.0, 0], [4.0, -2]]).view(1, 2, 1, 2)  # columns (3, 4), (0, -2)
        rows = torch.tensor([[1.0, 0], [0, 1]])
        expected = torch.tensor([[0.6, 0], [0.8, -1]]).view(1, 2, 1, 2)
        torch.testing.assert_close(similarity(features, rows), expected)

    def test_can_leave_lengths_as_they_are(self):
        features = torch.tensor([3.0, 4]).view(1, 2, 1, 1)
        found = similarity(features, torch.tensor([[0.6, 0.8]]), normalize=False)
        assert found.item() == pytest.approx(5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_is_float32_and_finite_even_without_a_direction(self, dtype):
        found = similarity(torch.zeros(1, 2, 1, 1, dtype=dtype), torch.eye(2))
        assert found.dtype == torch.float32
        assert found.flatten().tolist() == [0, 0]


class TestPoolSynonyms:
    def test_takes_the_best_prompt_of_each_class(self):
        maps = torch.tensor([[1.0, 5], [3, 2], [0, 0], [9, -1], [4, 8]]).view(1, 5, 1, 2)
        pooled = pool_synonyms(maps, (0, 0, 1, 2, 2))
        assert pooled.flatten(2)[0].tolist() == [[3, 5], [0, 0], [9, 8]]

    def test_one_prompt_a_class_changes_nothing(self):
        maps = random_maps()
        assert pool_synonyms(maps, (0, 1, 2, 3)) is maps


class TestDenoise:
    # Image 0: class 0 reaches 0.9 on the left, and class 1 does so on the right.
    # Image 1: class 0 has 0.9 everywhere, class 1 0.1.
    MAPS = torch.tensor(
        [[[[NINE_TO_ONE, 0.0]], [[0.0, NINE_TO_ONE]]], [[[NINE_TO_ONE] * 2], [[0.0, 0.0]]]]
    )

    @pytest.mark.parametrize("keep_best", [True, False])
    def test_drops_per_image(self, keep_best):
        found = denoise_prompts(self.MAPS, 0.5, temperature=T, keep_best=keep_best)
        assert torch.equal(found[0], self.MAPS[0])
        assert torch.equal(found[1, 0], self.MAPS[1, 0])
        assert (found[1, 1] == DROPPED).all()

    def test_the_threshold_itself_survives(self):
        maps = torch.zeros(1, 2, 1, 1)  # probabilities of exactly one half
        assert torch.equal(denoise_prompts(maps, 0.5, temperature=T, keep_best=False), maps)
        assert (denoise_prompts(maps, 0.5000001, temperature=T, keep_best=False) == DROPPED).all()

    def test_all_dropped_or_the_best_kept(self):
        maps = torch.tensor([0.01, 0.012, 0.011]).view(1, 3, 1, 1)
        assert (denoise_prompts(maps, 0.9, temperature=T, keep_best=False) == DROPPED).all()
        kept = denoise_prompts(maps, 0.9, temperature=T, keep_best=True)
        assert (kept != DROPPED).flatten().tolist() == [False, True, False]
        assert kept[0, 1].item() == maps[0, 1].item()

    @pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
    def test_does_not_change_its_argument(self, threshold):
        maps = random_maps()
        before = maps.clone()
        denoise_prompts(maps, threshold, temperature=T, keep_best=True)
        assert torch.equal(maps, before)

    def test_a_threshold_of_zero_drops_nothing(self):
        maps = random_maps()
        assert torch.equal(denoise_prompts(maps, 0.0, temperature=T, keep_best=False), maps)


def scored(maps, keys, *, method, **steps):
    """Score features whose similarity with the rows is `maps`."""
    count = maps.shape[1]
    scoring = Scoring(
        rows=torch.eye(count),
        classes=tuple(range(count)),
        method=method,
        temperature=T,
        normalize=False,
        **steps,
    )
    return score(Dense(maps, keys, (0, 0)), scoring)


def naive_smoothing(maps, keys, threshold, method):
    """The formula with the hw x hw matrix written out."""
    probs = (T * maps).softmax(dim=1)
    out = probs.clone()
    for b in range(len(maps)):
        p = probs[b].flatten(1).T.double()  # hw x K
        k = keys[b].flatten(1).T.double()  # hw x C
        k = k / k.norm(dim=1 if method.normalize_keys == "channels" else 0, keepdim=True)
        weight = k @ k.T
        mixed = weight @ p
        unsure = p.max(dim=1).values < threshold
        if method.smoothed_probabilities:
            total = weight.sum(dim=1, keepdim=True)
            mixed = (mixed / total).clamp_min(0)
            mixed = mixed / mixed.sum(dim=1, keepdim=True)
            unsure &= total[:, 0] > 1e-3
        p = torch.where(unsure[:, None], mixed, p)
        out[b] = p.T.reshape(out[b].shape).float()
    return out


class TestSmoothKeys:
    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    @pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 1)])
    def test_equals_the_naive_formula(self, method, threshold, size):
        maps = random_maps(height=size[0], width=size[1])
        # A common direction makes the row sums large against their rounding.
        keys = random_keys(height=size[0], width=size[1]) + 1
        found = smooth_keys(maps, keys, threshold, temperature=T, method=method)
        expected = naive_smoothing(maps, keys, threshold, method)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    def test_by_hand(self):
        # Position 0 is unsure (0.5), 1 is sure (0.9); their unit keys have the cosine 0.6.
        maps = torch.tensor([[0.0, NINE_TO_ONE], [0.0, 0.0]]).view(1, 2, 1, 2)
        keys = torch.tensor([[2.0, 3.0], [0.0, 4.0]]).view(1, 2, 1, 2)
        found = smooth_keys(maps, keys, 0.8, temperature=T, method=CLEAN).flatten(2)[0]
        mixed = (0.5 + 0.6 * 0.9) / 1.6
        torch.testing.assert_close(found, torch.tensor([[mixed, 0.9], [1 - mixed, 0.1]]))

    def test_the_published_keys_are_normalised_over_positions(self):
        maps = torch.tensor([[0.0, NINE_TO_ONE], [0.0, 0.0]]).view(1, 2, 1, 2)
        keys = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(1, 2, 1, 2)  # channels (3, 4), (0, 2)
        found = smooth_keys(maps, keys, 0.8, temperature=T, method=PUBLISHED).flatten(2)[0]
        # weight[0] = (0.6 0.6, 0.6 0.8); results are sums, not probabilities.
        expected = [0.36 * 0.5 + 0.48 * 0.9, 0.36 * 0.5 + 0.48 * 0.1]
        torch.testing.assert_close(found[:, 0], torch.tensor(expected))
        torch.testing.assert_close(found[:, 1], torch.tensor([0.9, 0.1]))

    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    def test_sure_positions_become_plain_probabilities(self, method):
        maps = random_maps()
        found = smooth_keys(maps, random_keys(), 0.0, temperature=T, method=method)
        torch.testing.assert_close(found, probabilities(maps, T))

    ADVERSARIAL = {  # noqa: RUF012 - a table
        "zeros": lambda k: torch.zeros_like(k),
        "one zero": lambda k: torch.cat([torch.zeros_like(k[..., :1]), k[..., 1:]], dim=-1),
        "opposite": lambda k: torch.cat([k[..., :2], -k[..., :2], k[..., 4:]], dim=-1),
        "outvoted": lambda k: torch.cat([k[..., :1], -k[..., :1].expand(k[..., 1:].shape)], dim=-1),
        "huge": lambda k: 1e30 * k,
        "tiny": lambda k: 1e-30 * k,
    }

    @pytest.mark.parametrize("name", ADVERSARIAL)
    @pytest.mark.parametrize("dropping", [None, 1.0])
    def test_clean_results_are_probabilities_whatever_the_keys(self, name, dropping):
        keys = self.ADVERSARIAL[name](random_keys())
        found = scored(
            random_maps(), keys, method=CLEAN, key_smoothing=1.0, prompt_denoising=dropping
        )
        assert found.isfinite().all()
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 3, 5))

    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    def test_memory_is_linear_in_positions(self, method):
        side = 160  # 25,600 positions: their affinities would take 2.6 GB
        largest = 0

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor):
                    largest = max(largest, out.numel())
                return out

        maps = random_maps(batch=1, height=side, width=side)
        keys = random_keys(channels=16, batch=1, height=side, width=side)
        with Watch():
            smooth_keys(maps, keys, 1.0, temperature=T, method=method)
        assert largest == keys.numel()


class TestScore:
    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    @pytest.mark.parametrize("smoothing", [None, 1.0])
    def test_denoising_comes_before_smoothing(self, method, smoothing):
        maps, keys = random_maps(), random_keys()
        found = scored(maps, keys, method=method, prompt_denoising=0.6, key_smoothing=smoothing)
        expected = denoise_prompts(maps, 0.6, temperature=T, keep_best=method.keep_best_class)
        if smoothing is not None:
            expected = smooth_keys(expected, keys, smoothing, temperature=T, method=method)
        elif method is CLEAN:
            expected = probabilities(expected, T)
        assert torch.equal(found, expected)

    def test_without_steps_clean_gives_probabilities_and_published_cosines(self):
        maps = random_maps()
        clean = scored(maps, None, method=CLEAN)
        torch.testing.assert_close(clean, (T * maps).softmax(dim=1))
        assert torch.equal(scored(maps, None, method=PUBLISHED), maps)

    def test_each_choice_of_a_method_counts_alone(self):
        maps, keys = random_maps(), random_keys() + 1
        mixed = replace(CLEAN, smoothed_probabilities=False)
        found = smooth_keys(maps, keys, 1.0, temperature=T, method=mixed)
        expected = naive_smoothing(maps, keys, 1.0, mixed)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert (found.sum(dim=1) - 1).abs().max() > 0.1

    def test_images_of_a_batch_do_not_meet(self):
        maps, keys = random_maps(), random_keys()
        steps = {"prompt_denoising": 0.6, "key_smoothing": 1.0}
        together = scored(maps, keys, method=CLEAN, **steps)
        alone = [scored(maps[i : i + 1], keys[i : i + 1], method=CLEAN, **steps) for i in (0, 1)]
        torch.testing.assert_close(together, torch.cat(alone))

    def test_key_smoothing_needs_keys(self):
        with pytest.raises(ValueError, match="keys=True"):
            scored(random_maps(), None, method=CLEAN, key_smoothing=0.5)

    @pytest.mark.parametrize("order", [("surgery", "dominant"), ("dominant", "surgery")])
    def test_surgery_compares_classes_by_their_best_synonyms(self, order):
        generator = torch.Generator().manual_seed(0)
        features, image = torch.randn(2, 8, 3, 4, generator=generator), torch.randn(2, 8)
        rows = F.normalize(torch.randn(3, 8, generator=generator), dim=1)
        method = replace(CLEAN, upsample="maps")
        classes = (0, 1, 1)
        scoring = Scoring(rows=rows, classes=classes, method=method, temperature=T, refine=order)
        found = score(Dense(features, None, (3, 4), image), scoring)
        maps = pool_synonyms(similarity(features, rows), classes)
        whole = torch.stack([F.normalize(image, dim=1) @ row for row in rows], dim=1)
        whole = torch.stack([whole[:, 0], whole[:, 1:].amax(dim=1)], dim=1)
        for name in order:
            maps = add_mean(maps) if name == "dominant" else remove_redundant(maps, whole)
        torch.testing.assert_close(found, maps)
        with pytest.raises(ValueError, match="image=True"):
            score(Dense(features, None, (3, 4)), scoring)


def test_threshold_background_wins_where_all_are_lower():
    maps = torch.tensor([[0.6, 0.2, 0.5], [0.1, 0.4, 0.5]]).view(1, 2, 1, 3)
    found = add_threshold_background(maps, 0.5)
    assert found.shape == (1, 3, 1, 3)
    assert F.one_hot(found.argmax(dim=1), 3).sum(dim=(0, 1, 2)).tolist() == [2, 1, 0]
    assert torch.equal(found[:, 1:], maps)


class TestRefinementByThePhoto:
    """Maps become as large as the photo before they become probabilities."""

    WHOLE = Geometry([(range(32), range(48))], (32, 48), (32, 48), (64, 96), resizes=1)

    @staticmethod
    def refined(size=None, threshold=None, names=("pamr",), **pamr):
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(1, 4, 4, 6, generator=generator)
        rows = F.normalize(torch.randn(3, 4, generator=generator), dim=1)
        scoring = Scoring(
            rows=rows,
            classes=(0, 1, 1),
            method=CLEAN,
            temperature=10.0,
            threshold=threshold,
            refine=names,
            refine_size=size,
            **pamr,
        )
        guide = torch.randint(0, 256, (3, 32, 48), generator=generator, dtype=torch.uint8)
        maps = score(Dense(features, None, (32, 48)), scoring)
        return refine(maps, guide, TestRefinementByThePhoto.WHOLE, scoring)

    @pytest.mark.parametrize(
        ("size", "expected"), [(None, (32, 48)), (0, (64, 96)), (16, (16, 24))]
    )
    def test_is_done_at_a_size_of_its_own(self, size, expected):
        maps, geometry = self.refined(size)
        assert maps.shape == (1, 2, *expected)
        assert (geometry.seen, geometry.output) == (expected, (64, 96))
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, *expected))

    def test_iterations_and_dilations_of_pamr_are_options(self):
        usual, _ = self.refined()
        same, _ = self.refined(pamr_iterations=10, pamr_dilations=(8, 16))
        assert torch.equal(usual, same)
        for other in ({"pamr_iterations": 2}, {"pamr_dilations": (1, 2)}):
            assert not torch.allclose(self.refined(**other)[0], usual, atol=1e-4)

    def test_a_background_comes_after_it(self):
        maps, _ = self.refined(threshold=0.6, names=("tlp", "pamr"))
        assert maps.shape[1] == 3
        assert torch.equal(maps[:, 0], torch.full_like(maps[:, 0], 0.6))

    def test_without_it_maps_stay_as_they_are(self):
        maps, geometry = self.refined(names=("dominant",))
        assert maps.shape == (1, 2, 4, 6)
        assert geometry is self.WHOLE


class TestCompetingPrompts:
    """Each prompt competes for itself at the labels' size, as in SCLIP and what follows it."""

    # Similarities of four prompts of three classes, at the five pixels of one row.
    MAPS = torch.tensor(
        [
            [0.30, 0.10, 0.10, 0.2, 0.0],  # class 0
            [0.20, 0.30, 0.10, 0.2, 0.0],  # class 1
            [0.29, 0.10, 0.31, 0.1, 0.0],  # class 1, another word
            [0.10, 0.29, 0.30, 0.1, 0.4],  # class 2
        ]
    ).reshape(1, 4, 1, 5)
    PIXELS = Geometry([(range(1), range(5))], (1, 5), (1, 5), (1, 5), resizes=2)

    @staticmethod
    def scoring(threshold=None, **fields):
        return Scoring(
            rows=torch.eye(4),
            classes=(0, 1, 1, 2),
            method=replace(CLEAN, upsample="prompts", resizes=2, **fields),
            temperature=10.0,
            normalize=False,
            threshold=threshold,
        )

    def labelled(self, **fields):
        labels, scores = label(self.MAPS, self.PIXELS, self.scoring(**fields))
        return labels[0].tolist(), scores[0]

    def test_a_class_has_its_best_prompts_probability_among_all_prompts(self):
        labels, scores = self.labelled()
        assert labels == [0, 1, 1, 0, 2]  # ties go to the lower class
        expected = (10 * self.MAPS[0, :, 0]).softmax(dim=0).amax(dim=0)
        torch.testing.assert_close(scores, expected)

    def test_unsure_pixels_become_class_0(self):
        # exp(3) / (exp(1) + exp(3) + exp(1) + exp(2.9)) = 0.460 at the second pixel, and so on.
        _, scores = self.labelled()
        assert [round(score, 3) for score in scores.tolist()] == [0.415, 0.46, 0.465, 0.366, 0.948]
        labels, again = self.labelled(probability_threshold=0.463)
        assert labels == [0, 0, 1, 0, 2]
        assert torch.equal(again, scores)

    def test_a_background_by_threshold_comes_before_all_classes(self):
        labels, _ = self.labelled(threshold=0.463)
        assert labels == [0, 0, 2, 0, 3]

    def test_classes_of_a_small_area_give_up_their_pixels(self):
        # Class 1 has two and class 2 one of three pixels outside class 0.
        assert self.labelled(area_threshold=0.3)[0] == [0, 1, 1, 0, 2]
        labels, scores = self.labelled(area_threshold=0.4)
        assert labels == [0, 1, 1, 0, 0]
        # What is left is not scaled up: exp(0) / (3 exp(0) + exp(4)).
        assert round(scores[4].item(), 4) == round(1 / (3 + math.exp(4)), 4)

    def test_a_class_just_at_the_area_threshold_loses(self):
        maps = self.MAPS[..., 1:3].clone()
        maps[0, 3, 0, 0] = 0.4  # class 2 has one pixel of two
        geometry = Geometry([(range(1), range(2))], (1, 2), (1, 2), (1, 2), resizes=2)
        labels, _ = label(maps, geometry, self.scoring(area_threshold=0.5))
        assert labels[0].tolist() == [0, 0]

    def test_the_softmax_comes_after_the_resize(self):
        maps = torch.tensor([[0.0, 0.4], [0.3, 0.0]]).reshape(1, 2, 1, 2)
        geometry = Geometry([(range(1), range(2))], (1, 2), (1, 2), (3, 7), resizes=2)
        scoring = replace(self.scoring(), rows=torch.eye(2), classes=(0, 1))
        labels, scores = label(maps, geometry, scoring)
        whole = F.interpolate(maps, size=(3, 7), mode="bilinear")[0]
        expected = (10 * whole).softmax(dim=0)
        torch.testing.assert_close(scores, expected.amax(dim=0))
        assert torch.equal(labels, expected.argmax(dim=0).int())

    def test_bands_do_not_change_anything(self, monkeypatch):
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(1, 4, 6, 5, generator=generator) / 10
        geometry = Geometry([(range(12), range(10))], (12, 10), (12, 10), (40, 30), resizes=2)
        scoring = self.scoring(probability_threshold=0.4, area_threshold=0.3)
        labels, scores = label(maps, geometry, scoring)
        monkeypatch.setattr(resize, "BAND_BYTES", 4 * 4 * 30 * 7)
        again, score_again = label(maps, geometry, scoring)
        assert torch.equal(labels, again)
        torch.testing.assert_close(scores, score_again)
        assert 0 < (labels == 0).sum() < labels.numel()

    def test_prompts_have_maps_of_their_own_up_to_the_labels(self):
        dense = Dense(torch.randn(1, 4, 2, 3), None, (4, 6))
        assert score(dense, self.scoring(threshold=0.3)).shape == (1, 4, 2, 3)

    @pytest.mark.parametrize("steps", [{"prompt_denoising": 0.2}, {"key_smoothing": 1.0}])
    def test_steps_on_classes_pool_the_prompts_before(self, steps):
        dense = Dense(torch.randn(1, 4, 2, 3), torch.randn(1, 5, 2, 3), (4, 6))
        scoring = replace(self.scoring(), **steps)
        as_maps = replace(scoring, method=replace(scoring.method, upsample="maps"))
        assert torch.equal(score(dense, scoring), score(dense, as_maps))

    @pytest.mark.parametrize("average", [True, False])
    def test_smoothed_they_are_probabilities_where_a_method_averages(self, average):
        dense = Dense(torch.randn(1, 4, 6, 7), torch.randn(1, 5, 6, 7), (12, 14))
        scoring = replace(self.scoring(smoothed_probabilities=average), key_smoothing=1.0)
        total = score(dense, scoring).sum(dim=1)
        assert torch.allclose(total, torch.ones(())) is average

    @pytest.mark.parametrize("name", ["probability_threshold", "area_threshold"])
    def test_thresholds_are_shares(self, name):
        with pytest.raises(MaskCLIPError, match=f"{name}: expected a number from 0"):
            replace(CLEAN, **{name: 1.0})
