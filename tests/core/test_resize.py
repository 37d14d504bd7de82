import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maskclip.core import cells, resize
from maskclip.core.resize import Geometry, bilinear_taps, cut, label, lay_out

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


def constant_maps(height, width, classes=9, seed=0):
    """Each class has one value everywhere."""
    values = torch.rand(classes, generator=torch.Generator().manual_seed(seed))
    return values[:, None, None].expand(classes, height, width).contiguous()


def checkerboard(height, width, classes=9, seed=0):
    """Every class flips between neighbours: its best corner leads where its worst one trails."""
    sign = (torch.arange(height)[:, None] + torch.arange(width)) % 2 * 2.0 - 1
    return sign * random_maps(1, 1, classes, seed)


def extreme_maps(height, width, classes=9, seed=0):
    """Values of every size that float32 has, and of both signs."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-40, 38, (classes, height, width), generator=generator)
    return random_maps(height, width, classes, seed).sign() * 10.0**exponents


DRAWS = [random_maps, smooth_maps, flat_maps, constant_maps, checkerboard, extreme_maps]


def interpolated(maps, size):
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def enlarged(maps, geometry):
    """All maps at full size, which the product never makes."""
    total = torch.zeros(maps.shape[1], *geometry.output, dtype=torch.float64)
    for tile in lay_out(maps, geometry):
        values = tile.rows.double() @ tile.maps.double() @ tile.columns.double().T
        total[:, tile.top : tile.bottom, tile.left : tile.right] += values
    return total


def whole(seen, output, *, resizes=1, covered=None):
    window = (range(seen[0]), range(seen[1]))
    return Geometry([window], covered or seen, seen, output, resizes)


def check(maps, geometry, expected):
    """The labels are an argmax of these full-size maps up to rounding, with its values."""
    labels, scores = label(maps, geometry)
    assert (labels.dtype, scores.dtype) == (torch.int32, torch.float32)
    best = expected.amax(dim=0).double()
    # Rounding is relative to the largest value that was added up.
    close = {"rtol": 1e-5, "atol": max(1e-5, 1e-6 * float(maps.abs().max()))}
    torch.testing.assert_close(scores.double(), best, **close)
    chosen = expected.double().gather(0, labels[None].long())[0]
    torch.testing.assert_close(chosen, best, **close)


def narrowed(entries, rows, columns, slack):
    """What `within` returns when every class stays."""
    return replace(entries, values=entries.values[:, :rows, :columns])


class TestTaps:
    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    def test_one_resize_is_torchs(self, grid, output):
        maps = random_maps(*grid)
        found = enlarged(maps[None], whole(output, output)).float()
        torch.testing.assert_close(found, interpolated(maps, output), rtol=1e-5, atol=2e-5)

    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    @pytest.mark.parametrize("seen", [(33, 64), (8, 3), (1, 1)])
    def test_two_resizes_are_torchs_twice(self, grid, output, seen):
        maps = random_maps(*grid)
        found = enlarged(maps[None], whole(seen, output, resizes=2)).float()
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
    @pytest.mark.parametrize("draw", DRAWS)
    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    def test_is_the_argmax_of_the_enlarged_maps(self, grid, output, draw):
        maps = draw(*grid)
        check(maps[None], whole(output, output), interpolated(maps, output))

    @pytest.mark.parametrize("draw", DRAWS)
    @pytest.mark.parametrize(("grid", "output"), SHAPES)
    def test_is_so_after_two_resizes(self, grid, output, draw):
        maps, seen = draw(*grid), (33, 64)
        expected = interpolated(interpolated(maps, seen), output)
        check(maps[None], whole(seen, output, resizes=2), expected)

    @pytest.mark.parametrize("band", [1, 4 * 9 * 41 * 7, 10**9])
    @pytest.mark.parametrize("window", [None, 12])
    def test_does_not_depend_on_the_bands(self, band, window, monkeypatch):
        stride = None if window is None else 8
        maps, geometry = windowed(random_maps, (20, 30), (64, 41), window=window, stride=stride)
        labels, scores = label(maps, geometry)
        monkeypatch.setattr(resize, "BAND_BYTES", band)
        found, values = label(maps, geometry)
        assert torch.equal(found, labels)
        torch.testing.assert_close(values, scores)

    @pytest.mark.parametrize("classes", [2, 7, 64])
    @pytest.mark.parametrize("resizes", [1, 2])
    def test_ties_go_to_the_lower_class(self, classes, resizes):
        for low in range(0, classes - 1, 5):
            maps = torch.zeros(classes, 3, 4)
            maps[low:] = 0.5
            labels, scores = label(maps[None], whole((24, 32), (48, 64), resizes=resizes))
            assert (labels == low).all()
            torch.testing.assert_close(scores, torch.full((48, 64), 0.5))

    def test_a_class_that_wins_only_between_the_grid_points_is_found(self):
        # At each corner another class leads; in the middle the steady one does.
        maps = torch.zeros(5, 2, 2)
        maps[:4] = torch.eye(4).view(4, 2, 2)
        maps[4] = 0.6
        labels, _ = label(maps[None], whole((41, 41), (41, 41)))
        assert labels[20, 20] == 4
        assert [labels[y, x].item() for y, x in ((0, 0), (0, 40), (40, 0), (40, 40))] == [
            0,
            1,
            2,
            3,
        ]

    @pytest.mark.parametrize("draw", [smooth_maps, checkerboard])
    @pytest.mark.parametrize("classes", [171, 1000])
    def test_many_classes_give_the_labels_of_all_maps(self, classes, draw):
        maps, size = draw(12, 16, classes=classes), (96, 128)
        labels, _ = label(maps[None], whole(size, size))
        assert (labels == interpolated(maps, size).argmax(dim=0)).float().mean() > 0.999

    @pytest.mark.parametrize("draw", DRAWS)
    @pytest.mark.parametrize("resizes", [1, 2])
    @pytest.mark.parametrize(("grid", "output"), [((6, 7), (96, 101)), ((5, 9), (33, 200))])
    def test_leaving_out_what_cannot_win_changes_no_bit(
        self, grid, output, resizes, draw, monkeypatch
    ):
        maps, geometry = draw(*grid, classes=300), whole((80, 112), output, resizes=resizes)
        pruned = label(maps[None], geometry)

        def all_of_them(maps, rows, points, slack):
            cells = len(rows) * (maps.shape[2] + points - 1)
            return torch.cartesian_prod(torch.arange(len(maps)), torch.arange(cells)).T

        monkeypatch.setattr(cells, "_candidates", all_of_them)
        monkeypatch.setattr(cells._Entries, "within", narrowed)
        for found, expected in zip(pruned, label(maps[None], geometry), strict=True):
            assert torch.equal(found, expected)

    @pytest.mark.parametrize("resizes", [1, 2])
    def test_maps_of_noise_are_done_in_parts(self, resizes, monkeypatch):
        maps, geometry = random_maps(9, 8, classes=40), whole((90, 80), (99, 90), resizes=resizes)
        expected = label(maps[None], geometry)
        monkeypatch.setattr(cells, "BYTES", 5000)
        for found, before in zip(label(maps[None], geometry), expected, strict=True):
            assert torch.equal(found, before)

    @pytest.mark.parametrize("resizes", [1, 2])
    def test_values_that_are_no_numbers_are_no_error(self, resizes):
        maps = torch.full((3, 4, 4), torch.nan)
        labels, scores = label(maps[None], whole((64, 64), (64, 64), resizes=resizes))
        assert scores.isnan().all()
        assert labels.max() < 3

    def test_one_class_is_everywhere(self):
        labels, _ = label(random_maps(2, 2, classes=1)[None], whole((9, 9), (9, 9)))
        assert not labels.any()

    @pytest.mark.parametrize("resizes", [1, 2])
    def test_does_not_change_the_maps(self, resizes):
        maps = random_maps(3, 5)
        before = maps.clone()
        label(maps[None], whole((9, 9), (20, 20), resizes=resizes))
        assert torch.equal(maps, before)

    def test_averages_where_windows_overlap(self):
        windows = [(range(1), range(2)), (range(1), range(1, 3))]
        maps = torch.tensor([[1.0, 0.0], [0.0, 0.8]]).view(2, 2, 1, 1)
        labels, scores = label(maps, Geometry(windows, (1, 2), (1, 3), (1, 3), 1))
        assert labels.tolist() == [[0, 0, 1]]
        torch.testing.assert_close(scores, torch.tensor([[1.0, 0.5, 0.8]]))


def windowed(draw, seen, output, *, window, stride, cell=4, resizes=1):
    """Maps of windows whose grids have one position per `cell` px, rounded up."""
    windows = cut(seen, window=window, stride=stride)
    grid = [math.ceil(len(axis) / cell) for axis in windows[0]]
    maps = torch.stack([draw(*grid, seed=seed) for seed in range(len(windows))])
    covered = (cell * grid[0], cell * grid[1])
    return maps, Geometry(windows, covered, seen, output, resizes)


def average(maps, windows, covered, size):
    """The windows' maps at the network's size `size`, averaged where they overlap."""
    total, count = torch.zeros(maps.shape[1], *size), torch.zeros(size)
    for of_window, (rows, columns) in zip(maps, windows, strict=True):
        area = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        full = interpolated(of_window, covered)
        total[:, *area] += full[:, : len(rows), : len(columns)]
        count[area] += 1
    assert count.min() >= 1  # every pixel is seen
    return total / count


class TestWindows:
    @pytest.mark.parametrize("resizes", [1, 2])
    @pytest.mark.parametrize("output", [(20, 32), (50, 41), (7, 9)])
    def test_a_window_over_the_whole_image_is_the_whole_image(self, output, resizes):
        maps, geometry = windowed(
            random_maps, (20, 32), output, window=32, stride=8, resizes=resizes
        )
        assert len(maps) == 1
        reference = enlarged(random_maps(5, 8)[None], whole((20, 32), output, resizes=resizes))
        assert torch.equal(enlarged(maps, geometry), reference)

    @pytest.mark.parametrize("output", [(20, 30), (50, 41), (7, 9), (1, 1), (3, 200)])
    @pytest.mark.parametrize(("window", "stride"), [(12, 8), (8, 8), (13, 1), (7, 5)])
    def test_two_resizes_average_at_the_size_that_the_network_sees(self, window, stride, output):
        maps, geometry = windowed(
            random_maps, (20, 30), output, window=window, stride=stride, resizes=2
        )
        seen = average(maps, geometry.windows, geometry.covered, (20, 30))
        check(maps, geometry, interpolated(seen, output))

    @pytest.mark.parametrize("scale", [1, 2, 3])
    @pytest.mark.parametrize(("window", "stride"), [(12, 8), (8, 8), (13, 1), (7, 5)])
    def test_one_resize_averages_in_the_output(self, window, stride, scale):
        output = (20 * scale, 30 * scale)
        maps, geometry = windowed(random_maps, (20, 30), output, window=window, stride=stride)
        windows = [
            tuple(range(axis.start * scale, axis.stop * scale) for axis in window)
            for window in geometry.windows
        ]
        covered = tuple(scale * side for side in geometry.covered)
        check(maps, geometry, average(maps, windows, covered, output))

    @pytest.mark.parametrize("resizes", [1, 2])
    @pytest.mark.parametrize("output", [(50, 41), (7, 9), (1, 1)])
    def test_maps_of_one_value_keep_it(self, output, resizes):
        maps, geometry = windowed(
            random_maps, (20, 30), output, window=7, stride=5, resizes=resizes
        )
        full = enlarged(torch.full_like(maps, 0.25), geometry)
        torch.testing.assert_close(full, torch.full_like(full, 0.25))

    @pytest.mark.parametrize("scale", [1, 3])
    def test_cells_of_a_window_keep_their_place(self, scale):
        # Columns 8..15 of 16: two cells, of which the second alone is class 1.
        maps = torch.tensor([[[0.6, 0.2]], [[0.1, 0.9]]])
        windows = [(range(4), range(8)), (range(4), range(8, 16))]
        geometry = Geometry(windows, (4, 8), (4, 16), (4 * scale, 16 * scale), 1)
        tile = lay_out(torch.stack([torch.zeros_like(maps), maps]), geometry)[1]
        assert (tile.top, tile.bottom) == (0, 4 * scale)
        assert (tile.left, tile.right) == (8 * scale, 16 * scale)
        values = (tile.rows @ tile.maps @ tile.columns.T)[1, 0]
        expected = interpolated(maps, (1, 8 * scale))[1, 0]
        torch.testing.assert_close(values, expected)


def test_padded_cells_keep_their_place():
    # 10 px seen by cells of 4 px: three cells that span 12 px. Stretched they would shift.
    maps = random_maps(1, 3)
    found = enlarged(maps[None], whole((4, 10), (4, 10), covered=(4, 12))).float()
    expected = interpolated(maps, (4, 12))[:, :, :10]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    stretched = enlarged(maps[None], whole((4, 10), (4, 10))).float()
    torch.testing.assert_close(stretched, interpolated(maps, (4, 10)), rtol=1e-5, atol=1e-5)
    assert (stretched - expected).abs().max() > 0.1


MEASURE = """
import resource, sys, torch
from maskclip.core import resize
torch.set_num_threads(1)
size = (1024, 2048)
def label(maps, size):
    window = (range(size[0]), range(size[1]))
    geometry = resize.Geometry([window], size, size, size, int(sys.argv[1]))
    return resize.label(maps[None], geometry)
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
