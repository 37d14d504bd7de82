import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from maskclip.core.samples import Sample
from maskclip.tasks.evaluation.examples import BestAndWorst, Example, contact_sheet, shrunk

PHOTO = (20, 200, 90)
COLORS = [(120, 0, 200), (0, 90, 250), (250, 200, 0)]
NAMES = ["sky", "dog", "cat"]
IGNORE = 255


def example(truth, prediction=None, name="2008_000123", miou=0.5, photo=PHOTO):
    truth = np.asarray(truth)
    image = Image.new("RGB", (truth.shape[1], truth.shape[0]), photo)
    return Example(name, miou, image, truth, truth if prediction is None else prediction)


def quarters(upper_left, upper_right, lower_left, lower_right, side=64):
    block = np.ones((side // 2, side // 2), np.int64)
    return np.kron([[upper_left, upper_right], [lower_left, lower_right]], block)


def sheet(tmp_path, best=(), worst=(), *, names=NAMES, colors=COLORS, title="ViT-B/16"):
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(best, worst, path, names=names, colors=colors, ignore=IGNORE, title=title)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def panels(picture):
    """The four panels of the only row, whose photo is all of one colour."""
    rows = np.flatnonzero((picture == PHOTO).all(axis=2).any(axis=1))
    band = picture[rows[0] : rows[-1] + 1]
    inked = np.flatnonzero((band != 255).any(axis=(0, 2)))
    runs = np.split(inked, np.flatnonzero(np.diff(inked) > 1) + 1)
    return [band[:, run[1] : run[-1]] for run in runs]  # without their frames


def corners(panel):
    """The colours in the middle of its quarters: upper left and right, lower left and right."""
    height, width, _ = panel.shape
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return [tuple(panel[row, column].tolist()) for row in rows for column in columns]


def is_red(color):
    return color[0] > 140 and max(color[1:]) < 60


def is_dim_gray(color):
    return max(color) - min(color) <= 2 and max(color) < 160


def is_light_gray(color):
    return min(color) > 200 and max(color) - min(color) < 12


class TestPanels:
    def test_image_truth_and_prediction(self, tmp_path):
        row = example(quarters(0, 1, 2, IGNORE), quarters(0, 2, 2, 1))
        image, truth, prediction, _ = panels(sheet(tmp_path, [row]))
        assert corners(image) == [PHOTO] * 4
        assert corners(truth)[:3] == COLORS
        assert is_light_gray(corners(truth)[3])
        assert corners(prediction) == [COLORS[0], COLORS[2], COLORS[2], COLORS[1]]

    def test_errors_are_red_only_where_labels_are_wrong(self, tmp_path):
        row = example(quarters(0, 1, IGNORE, 2), quarters(0, 2, 1, 2))
        right, wrong, ignored, also_right = corners(panels(sheet(tmp_path, [row]))[3])
        assert is_dim_gray(right)
        assert is_dim_gray(also_right)
        assert is_red(wrong)
        assert is_light_gray(ignored)

    def test_every_wrong_pixel_is_red(self, tmp_path):
        truth = quarters(0, 1, 2, IGNORE)
        prediction = np.random.default_rng(0).integers(0, 3, truth.shape)
        errors = panels(sheet(tmp_path, [example(truth, prediction)]))[3]
        red = (errors[..., 0] > 140) & (errors[..., 1:].max(axis=2) < 60)
        share = ((truth != prediction) & (truth != IGNORE)).mean()
        assert red.mean() == pytest.approx(share, abs=1e-6)

    def test_predictions_of_no_class_are_wrong_and_hatched(self, tmp_path):
        row = example(quarters(0, 1, 2, 0), quarters(0, 200, -1, 3))
        _, _, prediction, errors = panels(sheet(tmp_path, [row]))
        assert all(map(is_light_gray, corners(prediction)[1:]))
        assert all(map(is_red, corners(errors)[1:]))

    def test_a_class_may_be_ignored_in_the_truth_alone(self, tmp_path):
        path = tmp_path / "sheet.png"
        row = example(quarters(0, 1, 1, 1), quarters(0, 0, 1, 1))
        contact_sheet([row], [], path, names=NAMES, colors=COLORS, ignore=0, title="")
        picture = np.asarray(Image.open(path)).astype(int)
        _, truth, prediction, errors = panels(picture)
        assert is_light_gray(corners(truth)[0])
        assert corners(prediction)[0] == COLORS[0]
        assert is_light_gray(corners(errors)[0])
        assert is_red(corners(errors)[1])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
    def test_ids_of_any_integer_type(self, tmp_path, dtype):
        row = example(quarters(0, 1, 2, IGNORE).astype(dtype))
        assert corners(panels(sheet(tmp_path, [row]))[2])[:3] == COLORS


class TestSheet:
    def test_best_above_worst(self, tmp_path):
        first = example(quarters(0, 0, 0, 0), photo=(1, 2, 3))
        last = example(quarters(0, 0, 0, 0), photo=(3, 2, 1))
        picture = sheet(tmp_path, [first], [last])
        above, below = (
            np.flatnonzero((picture == color).all(axis=2).any(axis=1))
            for color in ((1, 2, 3), (3, 2, 1))
        )
        assert above.max() < below.min()

    def test_twelve_photos_make_a_page_of_sane_size(self, tmp_path):
        rows = [example(np.zeros((375, 500), np.uint8))] * 6
        height, width, _ = sheet(tmp_path, rows, rows).shape
        assert 1000 < width < 1600
        assert 2000 < height < 5000

    @pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1), (3000, 2000), (5, 7)])
    def test_any_shape_is_seen(self, tmp_path, size):
        parts = panels(sheet(tmp_path, [example(np.zeros(size, np.uint8))]))
        assert len({part.shape for part in parts}) == 1
        assert len(parts) == 4
        height, width, _ = parts[0].shape
        assert min(height, width) >= 8
        assert 256 <= max(height, width) <= 320

    def test_pixels_of_small_images_stay_squares(self, tmp_path):
        checks = np.indices((64, 64)).sum(axis=0) % 2
        truth = panels(sheet(tmp_path, [example(checks)]))[1]
        assert truth.shape == (320, 320, 3)
        assert np.array_equal(truth, np.asarray(COLORS)[np.kron(checks, np.ones((5, 5), int))])

    def test_largest_classes_are_named_as_far_as_there_is_room(self, tmp_path):
        def swatches(names):
            colors = [(index, 5, 5) for index in range(171)]
            ids = np.minimum(np.arange(200), 170)[:, None].repeat(50, axis=1)
            picture = sheet(tmp_path, [example(ids)], names=names, colors=colors)
            top = np.flatnonzero((picture == PHOTO).all(axis=2).any(axis=1))[0]
            swatch = (picture[:top, :, 1:] == 5).all(axis=2)
            return np.unique(picture[:top][swatch][:, 0]).tolist()

        short = swatches([f"class {index}" for index in range(171)])
        assert 170 in short  # the largest
        assert 8 < len(short) < 40
        assert 2 < len(swatches([f"{index} " * 50 for index in range(171)])) < len(short)

    @pytest.mark.parametrize("count", [0, 1])
    def test_either_list_may_be_empty(self, tmp_path, count):
        rows = [example(quarters(0, 1, 2, 0))] * count
        alone = sheet(tmp_path, rows, [])
        assert alone.shape == sheet(tmp_path, [], rows).shape
        assert alone.min() < 128

    @pytest.mark.parametrize(
        "name", ["🐶👩‍🚀", "two\nlines\x00", "\ud800", "", "w" * 500, "a\u202eb", "собака.jpg"]
    )
    def test_any_name_keeps_its_place(self, tmp_path, name):
        ids = quarters(0, 1, 2, 0)
        title = name.replace("\n", " ")
        odd = sheet(tmp_path, [example(ids, name=name)], names=[name, "b", "c"], title=title)
        assert odd.shape == sheet(tmp_path, [example(ids)]).shape
        assert (odd[:, -20:] == 255).all()

    def test_a_second_line_of_the_title_is_whole_and_below(self, tmp_path):
        one, two = (sheet(tmp_path, [], [], title=title) for title in ("a", "a\nb"))
        assert two.shape[0] > one.shape[0]
        assert np.array_equal(two[:50], one[:50])

    def test_an_image_without_a_score(self, tmp_path):
        nothing = example(quarters(*[IGNORE] * 4), quarters(0, 1, 2, 0), miou=math.nan)
        assert all(map(is_light_gray, corners(panels(sheet(tmp_path, [nothing]))[3])))

    def test_a_colour_for_each_name(self, tmp_path):
        with pytest.raises(ValueError, match="3 names and 2 colours"):
            sheet(tmp_path, colors=COLORS[:2])


class TestRanks:
    def merged(self, values):
        """The best and the worst of images with such mIoUs, seen by two processes."""
        parts = BestAndWorst(), BestAndWorst()
        for index, value in enumerate(values):
            ids = np.zeros((2, 3), np.int64)
            sample = Sample(f"{index:03}", Image.new("RGB", (3, 2)), ids)
            parts[index % 2].update(sample, ids, SimpleNamespace(miou=value))
        return BestAndWorst.merge(parts)

    def test_images_know_their_place_among_those_with_a_score(self):
        best, worst = self.merged([*np.linspace(0, 1, 50), math.nan])
        assert [one.rank for one in best] == [(place, 50) for place in range(1, 7)]
        assert [one.rank for one in worst] == [(place, 50) for place in range(50, 44, -1)]
        assert [worst[0].name, best[0].name] == ["000", "049"]

    def test_few_images_are_ranked_once(self):
        best, worst = self.merged(np.linspace(0, 1, 8))
        assert [one.rank for one in (*best, *reversed(worst))] == [(p, 8) for p in range(1, 9)]

    def test_headings_and_rows_say_it(self, tmp_path, monkeypatch):
        said, plain = [], ImageDraw.ImageDraw.text

        def text(self, place, words, **options):
            said.append(words)
            plain(self, place, words, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
        best, worst = self.merged(np.linspace(0, 1, 9))
        sheet(tmp_path, best, worst)
        assert {"Best 6 of 9 images, by mIoU", "Worst 3 of 9 images, by mIoU"} <= set(said)
        assert {"rank 1 of 9", "rank 9 of 9", "mIoU 100.0 %"} <= set(said)


class TestExample:
    def test_sizes_must_agree(self):
        image, ids = Image.new("RGB", (6, 4)), np.zeros((4, 6), np.uint8)
        with pytest.raises(ValueError, match=r"a.jpg: .*\(4, 6\), \(4, 6\) and \(6, 4\)"):
            Example("a.jpg", 0.5, image, ids, ids.T)
        with pytest.raises(ValueError, match="of one size"):
            Example("a.jpg", 0.5, image, np.zeros((4, 6, 1), np.uint8), ids)


class TestShrunk:
    def test_keeps_ids_and_shape(self):
        ids = quarters(0, 170, 65_535, 300, side=400)[:, :300].astype(np.uint16)
        small = shrunk(example(ids, ids.astype(np.int64) - 1), 100)
        assert small.image.size == (75, 100)
        assert small.truth.dtype == np.uint16
        assert set(np.unique(small.truth)) == {0, 170, 65_535, 300}
        assert np.array_equal(small.prediction, small.truth.astype(np.int64) - 1)
        assert (small.truth[:50, :50] == 0).all()
        assert (small.truth[50:, 50:] == 300).all()

    def test_the_image_is_smoothed(self):
        checks = np.indices((400, 400)).sum(axis=0) % 2
        image = Image.fromarray((255 * checks).astype(np.uint8)).convert("RGB")
        small = shrunk(Example("checks", 0.5, image, checks, checks), 100)
        gray = np.asarray(small.image)
        assert 110 < gray.min() <= gray.max() < 145

    @pytest.mark.parametrize("side", [64, 65, 10_000])
    def test_never_enlarges(self, side):
        row = example(quarters(0, 1, 2, 0))
        assert shrunk(row, side).image.size == (64, 64)

    def test_extreme_shapes_keep_a_pixel(self):
        assert shrunk(example(np.zeros((1, 2000), np.uint8)), 50).truth.shape == (1, 50)

    def test_the_original_is_left_alone_and_let_go(self):
        row = example(quarters(0, 1, 2, 0, side=256))
        small = shrunk(row, 32)
        assert row.truth.shape == (256, 256)
        assert small.truth.base is None  # no view that keeps the large map
        assert (small.name, small.miou) == (row.name, row.miou)

    def test_a_side_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="at least one pixel, got 0"):
            shrunk(example(quarters(0, 1, 2, 0)), 0)
