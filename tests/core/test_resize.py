import math
import subprocess
import sys
from functools import reduce

import pytest
import torch
import torch.nn.functional as F

from maskclip.core import resize
from maskclip.core.resize import Tile, bilinear_taps, label, place
from maskclip.core.windows import cut

SHAPES = [
    ((1, 1), (7, 5)),
    ((1, 6), (3, 20)),
    ((5, 1), (31, 1)),
    ((4, 3), (4, 3)),
    ((3, 5), (64, 41)),
    ((16, 21), (256, 341)),
    ((9, 9), (4, 5)),
    ((7, 2), (1, 1)),
]


def random_maps(height, width, classes=9, seed=0):
    return torch.randn(classes, height, width, generator=torch.Generator().manual_seed(seed))


def smooth_maps(height, width, classes=9, seed=0):
    """Maps whose cells have few candidates, as those of real images have."""
    coarse = random_maps(-(-height // 4), -(-width // 4), classes, seed)
    return (4 * interpolated(coarse, (height, width))).softmax(dim=0)


def flat_maps(height, width, classes=9, seed=0):
    """Maps of a few round values: ties everywhere."""
    return random_maps(height, width, classes, seed).round().clamp(-1, 1) / 2


def interpolated(maps, size):
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def enlarged(tile):
    """All maps of a tile at full size, which the product never makes."""
    rows, columns = (
        reduce(lambda first, then: then @ first, [taps.matrix().double() for taps in axis])
        for axis in (tile.rows, tile.columns)
    )
    return rows @ tile.maps.double() @ columns.T


def whole(maps, seen, output, *, resizes=1, covered=None):
    window = (range(seen[0]), range(seen[1]))
    return place(maps, window, covered=covered or seen, seen=seen, output=output, resizes=resizes)


def check(tiles, output, maps):
    """The labels are an argmax of these full-size maps up to rounding, with its values."""
    labels, scores = label(tiles, output)
    assert (labels.dtype, scores.dtype) == (torch.int32, torch.float32)
    best = maps.amax(dim=0).double()
    torch.testing.assert_close(scores.double(), best, rtol=1e-5, atol=1e-5)
    chosen = maps.double().gather(0, labels[None].long())[0]
    torch.testing.assert_close(chosen, best, rtol=1e-5, atol=1e-5)


class TestTaps:
    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    def test_one_resize_is_torchs(self, grid, output):
        maps = random_maps(*grid)
        found = enlarged(whole(maps, output, output)).float()
        torch.testing.assert_close(found, interpolated(maps, output), rtol=1e-5, atol=2e-5)

    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    @pytest.mark.parametrize("seen", [(33, 64), (8, 3), (1, 1)])
    def test_two_resizes_are_torchs_twice(self, grid, output, seen):
        maps = random_maps(*grid)
        found = enlarged(whole(maps, seen, output, resizes=2)).float()
        expected = interpolated(interpolated(maps, seen), output)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)

    @pytest.mark.parametrize("inputs", [1, 2, 5, 40])
    def test_are_convex_and_in_order(self, inputs):
        taps = bilinear_taps(inputs, range(17), scale=inputs / 17)
        matrix = taps.matrix()
        assert matrix.shape == (17, inputs)
        assert matrix.min() >= 0
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(17))
        assert (taps.low.diff() >= 0).all()


class TestLabel:
    @pytest.mark.parametrize("draw", [random_maps, smooth_maps, flat_maps])
    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    def test_is_the_argmax_of_the_enlarged_maps(self, grid, output, draw):
        maps = draw(*grid)
        check([whole(maps, output, output)], output, interpolated(maps, output))

    @pytest.mark.parametrize("draw", [random_maps, smooth_maps, flat_maps])
    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    def test_is_so_after_two_resizes(self, grid, output, draw):
        maps, seen = draw(*grid), (33, 64)
        expected = interpolated(interpolated(maps, seen), output)
        check([whole(maps, seen, output, resizes=2)], output, expected)

    @pytest.mark.parametrize("band", [1, 4 * 9 * 41 * 7, 10**9])
    @pytest.mark.parametrize("window", [None, 12])
    def test_does_not_depend_on_the_bands(self, band, window, monkeypatch):
        output = (64, 41)
        stride = None if window is None else 8
        tiles = windowed(random_maps, (20, 30), output, window=window, stride=stride)
        labels, scores = label(tiles, output)
        monkeypatch.setattr(resize, "BAND_BYTES", band)
        found, values = label(tiles, output)
        assert torch.equal(found, labels)
        torch.testing.assert_close(values, scores)

    @pytest.mark.parametrize("classes", [2, 7, 64])
    @pytest.mark.parametrize("resizes", [1, 2])
    def test_ties_go_to_the_lower_class(self, classes, resizes):
        for low in range(0, classes - 1, 5):
            maps = torch.zeros(classes, 3, 4)
            maps[low:] = 0.5
            tile = whole(maps, (24, 32), (48, 64), resizes=resizes)
            labels, scores = label([tile], (48, 64))
            assert (labels == low).all()
            torch.testing.assert_close(scores, torch.full((48, 64), 0.5))

    def test_a_class_that_wins_only_between_the_grid_points_is_found(self):
        # At each corner another class leads; in the middle the steady one does.
        maps = torch.zeros(5, 2, 2)
        maps[:4] = torch.eye(4).view(4, 2, 2)
        maps[4] = 0.6
        labels, _ = label([whole(maps, (41, 41), (41, 41))], (41, 41))
        assert labels[20, 20] == 4
        assert [labels[y, x].item() for y, x in ((0, 0), (0, 40), (40, 0), (40, 40))] == [
            0,
            1,
            2,
            3,
        ]

    def test_one_class_is_everywhere(self):
        labels, _ = label([whole(random_maps(2, 2, classes=1), (9, 9), (9, 9))], (9, 9))
        assert not labels.any()

    @pytest.mark.parametrize("resizes", [1, 2])
    def test_does_not_change_the_maps(self, resizes):
        maps = random_maps(3, 5)
        before = maps.clone()
        label([whole(maps, (9, 9), (20, 20), resizes=resizes)], (20, 20))
        assert torch.equal(maps, before)

    def test_averages_where_tiles_overlap(self):
        def strip(values, left):
            one = (bilinear_taps(1, range(1), scale=1),)
            two = (bilinear_taps(1, range(2), scale=1 / 2),)
            return Tile(torch.tensor(values).view(2, 1, 1), one, two, left=left)

        labels, scores = label([strip([1.0, 0.0], 0), strip([0.0, 0.8], 1)], (1, 3))
        assert labels.tolist() == [[0, 0, 1]]
        torch.testing.assert_close(scores, torch.tensor([[1.0, 0.5, 0.8]]))


def windowed(draw, seen, output, *, window, stride, cell=4, resizes=1):
    """Tiles of windows whose grids have one position per `cell` px, rounded up."""
    tiles = []
    for seed, (rows, columns) in enumerate(cut(seen, window=window, stride=stride)):
        grid = tuple(math.ceil(len(axis) / cell) for axis in (rows, columns))
        maps = draw(*grid, seed=seed)
        covered = tuple(cell * side for side in grid)
        places = {"covered": covered, "seen": seen, "output": output, "resizes": resizes}
        tiles.append(place(maps, (rows, columns), **places))
    return tiles


class TestWindows:
    @pytest.mark.parametrize("resizes", [1, 2])
    @pytest.mark.parametrize("output", [(20, 32), (50, 41), (7, 9)])
    def test_a_window_over_the_whole_image_is_the_whole_image(self, output, resizes):
        tiles = windowed(random_maps, (20, 32), output, window=32, stride=8, resizes=resizes)
        assert len(tiles) == 1
        reference = whole(random_maps(5, 8), (20, 32), output, resizes=resizes)
        assert torch.equal(enlarged(tiles[0]), enlarged(reference))

    @pytest.mark.parametrize("resizes", [1, 2])
    @pytest.mark.parametrize("output", [(20, 30), (50, 41), (7, 9), (1, 1), (3, 200)])
    @pytest.mark.parametrize(("window", "stride"), [(12, 8), (8, 8), (13, 1), (7, 5)])
    def test_overlaps_are_averaged(self, window, stride, output, resizes):
        tiles = windowed(
            random_maps, (20, 30), output, window=window, stride=stride, resizes=resizes
        )
        total, count = torch.zeros(9, *output, dtype=torch.float64), torch.zeros(output)
        for tile in tiles:
            area = (slice(tile.top, tile.bottom), slice(tile.left, tile.right))
            total[:, *area] += enlarged(tile)
            count[area] += 1
        assert count.min() >= 1  # every pixel is seen
        check(tiles, output, total / count)

    @pytest.mark.parametrize("scale", [1, 3])
    def test_cells_of_a_window_keep_their_place(self, scale):
        # Columns 8..15 of 16: two cells, of which the second alone is class 1.
        maps = torch.tensor([[[0.6, 0.2]], [[0.1, 0.9]]])
        tile = place(
            maps,
            (range(4), range(8, 16)),
            covered=(4, 8),
            seen=(4, 16),
            output=(4 * scale, 16 * scale),
            resizes=1,
        )
        assert (tile.top, tile.bottom) == (0, 4 * scale)
        assert (tile.left, tile.right) == (8 * scale, 16 * scale)
        values = enlarged(tile)[1, 0].float()
        expected = interpolated(maps, (1, 8 * scale))[1, 0]
        torch.testing.assert_close(values, expected)


def test_padded_cells_keep_their_place():
    # 10 px seen by cells of 4 px: three cells that span 12 px. Stretched they would shift.
    maps = random_maps(1, 3)
    found = enlarged(whole(maps, (4, 10), (4, 10), covered=(4, 12))).float()
    expected = interpolated(maps, (4, 12))[:, :, :10]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    stretched = enlarged(whole(maps, (4, 10), (4, 10))).float()
    torch.testing.assert_close(stretched, interpolated(maps, (4, 10)), rtol=1e-5, atol=1e-5)
    assert (stretched - expected).abs().max() > 0.1


MEASURE = """
import resource, sys, torch
from maskclip.core import resize
torch.set_num_threads(1)
size = (1024, 2048)
def label(maps, size):
    place = dict(covered=size, seen=size, output=size, resizes=int(sys.argv[1]))
    tile = resize.place(maps, (range(size[0]), range(size[1])), **place)
    return resize.label([tile], size)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
label(torch.randn(3, 4, 4), (16, 16))  # what torch loads on first use does not count
maps = torch.randn(171, 32, 64)
before = peak()
label(maps, size)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize("resizes", ["1", "2"])
def test_171_classes_never_exist_at_full_size(resizes):
    command = [sys.executable, "-c", MEASURE, resizes]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert float(run.stdout) < 64  # all maps at once would take 1.4 GB
