import torch

from maskclip.core.resize import Geometry, cut
from maskclip.tasks.photos import PhotoMaps


def ramp(size):
    """One window's map (1, 1, h, w), whose value is its column."""
    return torch.arange(float(size[1])).expand(1, 1, *size).contiguous()


def probabilities(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


class TestGrid:
    def test_a_window_without_padding_is_its_own_grid(self):
        maps = probabilities(1, 5, 3, 4)
        whole = [(range(12), range(16))]
        photo = PhotoMaps(maps, Geometry(whole, (12, 16), (12, 16), (100, 90), 2))
        torch.testing.assert_close(torch.from_numpy(photo.grid()), maps[0])

    def test_it_spans_the_photo_and_not_the_padding(self):
        whole = [(range(4), range(10))]
        photo = PhotoMaps(ramp((1, 3)), Geometry(whole, (4, 12), (4, 10), (40, 100), 1))
        centers = (torch.arange(3) + 0.5) * 10 / 3  # in px of what the network saw
        expected = (centers / 4 - 0.5).clamp(0, 2)
        torch.testing.assert_close(torch.from_numpy(photo.grid()), expected.view(1, 1, 3))

    def test_cells_of_nothing_but_padding_are_left_out(self):
        whole = [(range(4), range(4))]
        photo = PhotoMaps(ramp((2, 4)), Geometry(whole, (8, 16), (4, 4), (9, 9), 1))
        assert photo.grid().shape == (1, 1, 1)

    def test_probabilities_of_windows_are_averaged_to_probabilities(self):
        windows = cut((20, 30), window=12, stride=8)
        photo = PhotoMaps(
            probabilities(len(windows), 5, 3, 3), Geometry(windows, (12, 12), (20, 30), (41, 50), 1)
        )
        grid = torch.from_numpy(photo.grid())
        assert grid.shape == (5, 5, 8)
        torch.testing.assert_close(grid.sum(dim=0), torch.ones(5, 8))
