"""Refinements beside small cases worked out by hand; golden cases are in test_golden_methods."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maskclip.core import refinement
from maskclip.core.method import Feedback
from maskclip.core.refinement import patch_classes


def two_halves(height=24, width=32):
    """Return a photo, black on the left and white on the right."""
    image = torch.zeros(1, 3, height, width)
    image[..., width // 2 :] = 1
    return image


def test_pamr_draws_a_blurred_border_to_the_photos_edge():
    image = two_halves()
    right = torch.linspace(0, 1, 32).expand(1, 1, 24, 32)
    maps = torch.cat([1 - right, right], dim=1)
    refined = refinement.pamr(maps, image, iterations=10, dilations=(1, 2))
    step = refined[0, 1].diff(dim=1)
    assert (step.argmax(dim=1) == 15).all()  # between columns 15 and 16
    assert step[:, 15].min() > 5 * maps[0, 1].diff(dim=1).max()


def test_pamr_of_a_plain_photo_is_a_mean_over_neighbours():
    maps = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    refined = refinement.pamr(maps, torch.full((2, 3, 9, 7), 0.3), iterations=1, dilations=(1,))
    kernel = torch.ones(3, 1, 3, 3) / 8
    kernel[:, :, 1, 1] = 0
    expected = F.conv2d(F.pad(maps, (1,) * 4, mode="replicate"), kernel, groups=3)
    torch.testing.assert_close(refined, expected)


@pytest.mark.parametrize("classes", [2, 20])
def test_pamr_keeps_probabilities_and_does_not_depend_on_its_way(classes, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 40, 50, generator=generator)
    maps = torch.rand(2, classes, 5, 6, generator=generator).softmax(dim=1)
    refined = refinement.pamr(maps, images)
    torch.testing.assert_close(refined.sum(dim=1), torch.ones(2, 40, 50))
    monkeypatch.setattr(refinement, "_BAND", 100)  # a row at a time
    for most in (0, images.shape[2:].numel()):  # pixels whose neighbours are looked up in a table
        monkeypatch.setattr(refinement, "_TABLED", most)
        assert torch.equal(refinement.pamr(maps, images), refined)


def test_propagation_solves_its_system():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 12, 10, generator=generator)
    maps = torch.rand(2, 3, 12, 10, generator=generator)
    rows = F.normalize(torch.rand(3, 8, generator=generator), dim=1)
    own = refinement.own_weights(rows)
    solved = refinement.propagate(maps, image, own, iterations=200)
    longer = refinement.propagate(maps, image, own, iterations=300)
    torch.testing.assert_close(solved, longer, rtol=1e-4, atol=1e-5)
    alone = [refinement.propagate(maps[i : i + 1], image[i : i + 1], own) for i in (0, 1)]
    torch.testing.assert_close(
        refinement.propagate(maps, image, own), torch.cat(alone), rtol=1e-4, atol=1e-5
    )


def test_propagation_keeps_what_is_constant():
    maps = torch.tensor([0.2, 0.7])[None, :, None, None].expand(1, 2, 170, 90).contiguous()
    own = refinement.own_weights(torch.eye(2))
    solved = refinement.propagate(maps, two_halves(170, 90), own)
    torch.testing.assert_close(solved, maps)


def test_what_all_classes_share_is_removed():
    one = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    same, whole = one.expand(2, 3, 3, 4), torch.tensor([[0.2] * 3, [0.3] * 3])
    found = refinement.remove_redundant(same, whole)
    torch.testing.assert_close(found, torch.zeros(2, 3, 3, 4), atol=1e-6, rtol=0)


def test_a_class_of_which_the_image_is_weighs_more():
    maps = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]])
    whole = torch.tensor([[0.5 * math.log(3), 0.0]])  # softmax of twice that: 3/4 and 1/4
    found = refinement.remove_redundant(maps, whole)
    # times 3/2 and 1/2: (1.5, 0) and (0.5, 1), whose means are 1 and 0.5
    torch.testing.assert_close(found, torch.tensor([[[[0.5, -0.5]], [[-0.5, 0.5]]]]))


def test_a_share_of_each_mean_is_added():
    maps = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])
    assert refinement.add_mean(maps, 0.5).tolist() == [[[[2.0, 4.0]], [[1.0, 5.0]]]]
    assert torch.equal(refinement.add_mean(maps, 0), maps)


FEEDBACK = Feedback(logits=1.0, weight=1.0, threshold=0.0)


def black_and_white(height, width):
    """Return a photo, black on the left and white on the right."""
    image = torch.zeros(3, height, width)
    image[..., width // 2 :] = 1
    return image


def test_patches_have_the_class_of_most_pixels_of_the_refined_maps():
    maps = torch.zeros(1, 2, 2, 4)
    maps[0, 0, :, :1] = maps[0, 1, :, 1:] = 1  # the photo's edge is one patch further right
    found = patch_classes(maps, black_and_white(32, 64)[None], (32, 64), FEEDBACK)
    assert found.tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]


def test_padded_patches_count_the_pixels_that_are_there():
    maps = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 19, 35, generator=torch.Generator().manual_seed(1))
    found = patch_classes(maps, images, (32, 48), FEEDBACK)
    assert found.shape == (2, 2, 3)
    alone = patch_classes(maps[1:], images[1:], (32, 48), FEEDBACK)
    assert torch.equal(found[1:], alone)


def test_ties_go_to_the_lower_class():
    maps = torch.tensor([[[[0.0]], [[0.0]]]])
    assert patch_classes(maps, torch.zeros(1, 3, 16, 16), (16, 16), FEEDBACK).item() == 0


def test_unsure_pixels_are_a_class_apart_or_the_first():
    maps = F.one_hot(torch.tensor([[[2, 1]]]), 3).permute(0, 3, 1, 2) * 0.02
    unsure = replace(FEEDBACK, temperature=10.0, threshold=0.9)
    images = torch.zeros(1, 3, 16, 32)
    assert patch_classes(maps, images, (16, 32), unsure).tolist() == [[[3, 3]]]
    first = replace(unsure, unsure="first")
    assert patch_classes(maps, images, (16, 32), first).tolist() == [[[0, 0]]]
