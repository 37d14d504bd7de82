from itertools import pairwise

import pytest
import torch

from maskclip.core.resize import cut, fit_within, pad_bottom_right, window_starts


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((375, 500), 512, 2048, (512, 683)),
        ((500, 375), 512, 2048, (683, 512)),
        ((512, 512), 512, 2048, (512, 512)),
        ((100, 900), 512, 2048, (228, 2048)),  # the long side is the tighter bound
        ((1, 1), 32, 128, (32, 32)),
        ((1, 4000), 32, 128, (1, 128)),  # int(0.032 + 0.5) would be nothing
        ((333, 500), 520, 520, (346, 520)),
    ],
)
def test_fit_within_follows_the_published_formula(size, short, long, expected):
    assert fit_within(size, short=short, long=long) == expected


@pytest.mark.parametrize("length", [1, 7, 8, 9, 100, 101])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (8, 1), (200, 50)])
def test_starts_cover_the_axis(length, window, stride):
    starts = window_starts(length, window, stride)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] == max(0, length - window)
    assert all(b - a <= stride for a, b in pairwise(starts))


def test_without_a_window_there_is_one():
    assert cut((5, 9), window=None, stride=None) == [(range(5), range(9))]


def test_the_stride_is_half_a_window_by_default():
    assert [rows for rows, _ in cut((16, 4), window=8, stride=None)] == [
        range(0, 8),
        range(4, 12),
        range(8, 16),
    ]
    assert len(cut((3, 3), window=1, stride=None)) == 9


def test_padding_is_of_zeros_at_the_bottom_and_right():
    images = torch.ones(1, 3, 2, 3)
    padded = pad_bottom_right(images, (4, 5))
    assert padded.shape == (1, 3, 4, 5)
    assert padded.sum() == images.sum()
    assert torch.equal(padded[:, :, :2, :3], images)
