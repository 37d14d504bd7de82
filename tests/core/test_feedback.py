"""Classes of patches from first maps, beside cases worked out by hand."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from maskclip.core.feedback import patch_classes
from maskclip.core.method import Feedback

HOW = Feedback(logits=1.0, weight=1.0, threshold=0.0)


def halves(height, width):
    """Return a photo, black on the left and white on the right."""
    image = torch.zeros(3, height, width)
    image[..., width // 2 :] = 1
    return image


def test_patches_have_the_class_of_most_pixels_of_the_refined_maps():
    maps = torch.zeros(1, 2, 2, 4)
    maps[0, 0, :, :1] = maps[0, 1, :, 1:] = 1  # the photo's edge is one patch further right
    found = patch_classes(maps, halves(32, 64)[None], (32, 64), HOW)
    assert found.tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]


def test_padded_patches_count_the_pixels_that_are_there():
    maps = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 19, 35, generator=torch.Generator().manual_seed(1))
    found = patch_classes(maps, images, (32, 48), HOW)
    assert found.shape == (2, 2, 3)
    alone = patch_classes(maps[1:], images[1:], (32, 48), HOW)
    assert torch.equal(found[1:], alone)


def test_ties_go_to_the_lower_class():
    maps = torch.tensor([[[[0.0]], [[0.0]]]])
    assert patch_classes(maps, torch.zeros(1, 3, 16, 16), (16, 16), HOW).item() == 0


def test_unsure_pixels_are_a_class_apart_or_the_first():
    maps = F.one_hot(torch.tensor([[[2, 1]]]), 3).permute(0, 3, 1, 2) * 0.02
    unsure = replace(HOW, temperature=10.0, threshold=0.9)
    images = torch.zeros(1, 3, 16, 32)
    assert patch_classes(maps, images, (16, 32), unsure).tolist() == [[[3, 3]]]
    first = replace(unsure, unsure="first")
    assert patch_classes(maps, images, (16, 32), first).tolist() == [[[0, 0]]]
