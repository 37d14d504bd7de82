import importlib
import math
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image

from maskclip.tasks.evaluation import charts
from maskclip.tasks.evaluation.charts import (
    confusion_chart,
    iou_chart,
    line_chart,
    severity_chart,
)
from maskclip.tasks.evaluation.plotting import class_labels

GRAY = (213, 216, 220)  # of rows without truth
DARK = (8, 48, 107)  # 100 %
ODD = ["🐶👩‍🚀", "$x^2$", "a\nb\x00", "_hidden", "собака", "\ud800", "", "long " * 100, r"\$1$"]


@pytest.fixture(autouse=True)
def no_warnings():
    """What the font lacks must not be reported letter by letter."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def where(picture, color):
    """Rows and columns of the pixels of exactly this colour."""
    return np.argwhere((picture == color).all(axis=2))


def names_of(classes):
    return [f"class {index}" for index in range(classes)]


def confusion_of(classes):
    counts = np.random.default_rng(classes).integers(0, 50, (classes + 1, classes + 1))
    counts[np.diag_indices(classes)] += 5000
    return counts


class TestConfusion:
    @pytest.mark.parametrize("classes", [1, 2, 60, 171])
    def test_sizes_are_sane(self, tmp_path, classes):
        path = tmp_path / "new" / "confusion.png"
        confusion_chart(confusion_of(classes), names_of(classes), path, title="ViT-B/16")
        height, width, _ = drawn(path).shape
        assert 150 < height < 3000
        assert 150 < width < 3000
        assert [file.name for file in path.parent.iterdir()] == ["confusion.png"]

    def test_right_classes_make_a_dark_diagonal(self, tmp_path):
        confusion_chart(np.diag([5, 90, 0]), ["a", "b"], tmp_path / "c.png", title="")
        dark = (drawn(tmp_path / "c.png") == DARK).all(axis=2)
        rows = np.flatnonzero(dark.sum(axis=1) > 50)  # not those of the colour bar alone
        first_row, last_row = dark[rows[0]], dark[rows[-1]]
        assert first_row.argmax() < last_row.argmax()

    def test_a_class_without_truth_is_grey_not_white(self, tmp_path):
        counts = np.array([[5, 5, 0], [0, 0, 0], [0, 0, 0]])
        confusion_chart(counts, ["a", "b"], tmp_path / "grey.png", title="")
        confusion_chart(counts + np.eye(3, dtype=int), ["a", "b"], tmp_path / "no.png", title="")
        assert len(where(drawn(tmp_path / "grey.png"), GRAY)) > 1000
        assert len(where(drawn(tmp_path / "no.png"), GRAY)) < 10

    def test_absent_classes_of_many_are_left_out(self, tmp_path):
        counts = np.zeros((172, 172), int)
        counts[100:105, 100:105] = 7
        confusion_chart(counts, names_of(171), tmp_path / "few.png", title="")
        confusion_chart(np.full((6, 6), 7), names_of(5), tmp_path / "five.png", title="")
        assert drawn(tmp_path / "few.png").shape[1] < drawn(tmp_path / "five.png").shape[1] + 99

    def test_other_is_drawn_where_it_counts(self, tmp_path):
        counts = np.zeros((3, 3), int)
        counts[:2, :2] = 10
        widths = []
        for strays in (0, 5):
            counts[0, 2] = strays
            confusion_chart(counts, ["a", "b"], tmp_path / "c.png", title="")
            widths.append(drawn(tmp_path / "c.png").shape[1])
        assert widths[1] > widths[0] + 50

    def test_nothing_counted(self, tmp_path):
        confusion_chart(np.zeros((3, 3), int), ["a", "b"], tmp_path / "c.png", title="empty")
        assert drawn(tmp_path / "c.png").min() < 128

    @pytest.mark.parametrize("shape", [(2, 2), (3, 2), (4, 4), (9,)])
    def test_counts_of_another_shape_are_refused(self, tmp_path, shape):
        with pytest.raises(ValueError, match=r"expected counts \(3, 3\) for 2 names"):
            confusion_chart(np.ones(shape, int), ["a", "b"], tmp_path / "c.png", title="")
        assert not list(tmp_path.iterdir())


class TestIoU:
    @pytest.mark.parametrize("classes", [1, 2, 60, 171])
    def test_sizes_are_sane(self, tmp_path, classes):
        iou = np.random.default_rng(0).random(classes)
        iou_chart(iou, names_of(classes), tmp_path / "iou.png", title="ViT-B/16")
        height, width, _ = drawn(tmp_path / "iou.png").shape
        assert 150 < height < 2000
        assert 500 < width < 2500

    def test_the_best_is_above_and_absent_classes_are_left_out(self, tmp_path):
        colors = [(200, 0, 0), (0, 150, 0), (0, 0, 200)]
        iou = np.array([0.2, math.nan, 0.8])
        iou_chart(iou, ["a", "b", "c"], tmp_path / "iou.png", title="", colors=colors)
        picture = drawn(tmp_path / "iou.png")
        worse, absent, better = (where(picture, color) for color in colors)
        assert not len(absent)
        assert better[:, 0].max() < worse[:, 0].min()
        assert len(better) == pytest.approx(4 * len(worse), rel=0.1)

    def test_classes_that_are_absent_or_without_truth_are_said(self, tmp_path, monkeypatch):
        figures = []
        monkeypatch.setattr(charts, "write_figure", lambda figure, _: figures.append(figure))
        iou = np.array([0.8, math.nan, 0.0])
        marked = np.array([False, False, True])
        iou_chart(iou, ["a", "b", "c"], tmp_path / "i.png", title="t", without_truth=marked)
        (axes,) = figures[0].axes
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "c *"]
        said = " ".join(text.get_text() for text in axes.texts)
        assert "mean 40.0" in said
        assert "1 class in neither ground truth nor prediction left out" in said
        assert "not in the ground truth: 0, and counted in the mean" in said

    @pytest.mark.parametrize("iou", [[math.nan, math.nan], []])
    def test_no_class_present(self, tmp_path, iou):
        iou_chart(np.array(iou), names_of(len(iou)), tmp_path / "iou.png", title="empty")
        assert drawn(tmp_path / "iou.png").min() < 128

    def test_lengths_must_agree(self, tmp_path):
        with pytest.raises(ValueError, match=r"\(3,\) for 2 names$"):
            iou_chart(np.ones(3), ["a", "b"], tmp_path / "iou.png", title="")
        with pytest.raises(ValueError, match="2 names and 1 colours"):
            iou_chart(np.ones(2), ["a", "b"], tmp_path / "iou.png", title="", colors=[(1, 2, 3)])
        assert not list(tmp_path.iterdir())


class TestLines:
    BLUE = (0, 114, 178)  # of the first line

    def test_severities(self, tmp_path):
        lines = {"fog": [40, 30, 20, 10, 5], "snow": [30, 20, 10, 10, 0]}
        severity_chart(lines, 50, tmp_path / "s.png", title="Context")
        height, width, _ = drawn(tmp_path / "s.png").shape
        assert 400 < height < 800
        assert 700 < width < 1300

    def test_a_missing_severity_leaves_a_gap(self, tmp_path):
        blue = []
        for value in (30, None):
            lines = {"fog": [30, 30, value, 30, 30]}
            severity_chart(lines, 30, tmp_path / "s.png", title="")
            blue.append(len(where(drawn(tmp_path / "s.png"), self.BLUE)))
        assert 0.4 * blue[0] < blue[1] < 0.8 * blue[0]

    def test_the_clean_score_may_be_unknown(self, tmp_path):
        severity_chart({"fog": [40, 30]}, None, tmp_path / "s.png", title="")
        assert len(where(drawn(tmp_path / "s.png"), self.BLUE))

    @pytest.mark.parametrize("lines", [{}, {"fog": []}, {"fog": [None, None]}])
    def test_no_severity_measured(self, tmp_path, lines):
        severity_chart(lines, 50, tmp_path / "s.png", title="empty")
        assert not len(where(drawn(tmp_path / "s.png"), self.BLUE))

    def test_a_legend_of_many_lines_does_not_squeeze_them(self, tmp_path):
        def width_of_first(count):
            lines = {f"line {i} of a long name": [(0, i), (1, i)] for i in range(count)}
            line_chart(lines, tmp_path / "l.png", title="", x_label="x", y_label="y")
            columns = where(drawn(tmp_path / "l.png"), self.BLUE)[:, 1]
            return columns[columns < 750].max() - columns.min()

        assert width_of_first(40) == pytest.approx(width_of_first(2), abs=20)

    def test_nothing_to_draw(self, tmp_path):
        line_chart({"a": [(0, math.nan)]}, tmp_path / "l.png", title="", x_label="", y_label="")
        assert drawn(tmp_path / "l.png").min() < 128


def test_any_name_and_title_can_be_drawn(tmp_path):
    size, title = len(ODD), " ".join(ODD)
    lines = {name: [(0, 1), (1, 2)] for name in ODD}
    confusion_chart(np.ones((size + 1, size + 1), int), ODD, tmp_path / "c.png", title=title)
    iou_chart(np.ones(size), ODD, tmp_path / "i.png", title=title)
    iou_chart(np.ones(1), ODD[-2:-1], tmp_path / "one.png", title="long " * 100)
    line_chart(lines, tmp_path / "l.png", title=title, x_label=ODD[1], y_label=ODD[7])
    assert max(max(drawn(path).shape) for path in tmp_path.iterdir()) < 1500


def test_names_that_the_font_cannot_draw_are_numbered():
    assert class_labels(["狗", "dog", "猫"]) == ["0: □", "dog", "2: □"]


def test_nothing_global_of_matplotlib_is_touched(tmp_path):
    before = dict(matplotlib.rcParams)
    confusion_chart(confusion_of(3), ["a", "b", "c"], tmp_path / "c.png", title="")
    iou_chart(np.ones(2), ["a", "b"], tmp_path / "i.png", title="")
    severity_chart({"fog": [40]}, 50, tmp_path / "s.png", title="")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    for module in ("plotting", "charts"):
        importlib.reload(sys.modules[f"maskclip.tasks.evaluation.{module}"])
    iou_chart(np.ones(2), ["a", "b"], tmp_path / "i.png", title="")
    line_chart({"a": [(0, 1)]}, tmp_path / "l.png", title="", x_label="x", y_label="y")


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "iou.png"
    target.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        iou_chart(np.ones(2), ["a", "b"], target, title="")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
