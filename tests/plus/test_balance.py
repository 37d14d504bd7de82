"""Class-balanced sampling: what images show, and how often each of them is drawn."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from maskclip.core.samples import UNLABELED
from maskclip.plus.balance import EvenOrder, read_classes, shown_classes, write_classes
from maskclip.plus.config import TrainingError
from maskclip.plus.dataset import TrainingDataset
from tests.training import SCENES, TINY

RARE = [[0]] * 8 + [[1], [0, 2], []]
"""Many images of one class, one of each other; the last shows nothing."""


def drawn(order, count):
    return [next(order.candidates(index)) for index in range(count)]


class TestEvenOrder:
    def test_classes_come_up_evenly_and_images_within_them(self):
        found = Counter(drawn(EvenOrder(RARE, seed=0), 270))
        assert found[8] == 90
        assert [found[i] for i in range(8)] == [10] * 8
        assert found[9] == 10 + 90
        assert 10 not in found

    def test_an_index_is_the_same_image_whatever_was_drawn_before(self):
        whole = drawn(EvenOrder(RARE, seed=3), 60)
        order = EvenOrder(RARE, seed=3)
        assert [next(order.candidates(index)) for index in reversed(range(60))] == whole[::-1]
        assert drawn(EvenOrder(RARE, seed=4), 60) != whole

    def test_another_of_its_class_takes_the_place_of_one_that_is_gone(self):
        order = EvenOrder([*RARE[:9], [2], []], seed=0)
        for index in range(60):
            first, *others = order.candidates(index)
            if first == 0:
                assert sorted(others) == [1, 2, 3, 4, 5, 6, 7]
        training = replace(TINY, optimization=replace(TINY.optimization, steps=9))
        only = TrainingDataset(
            SCENES, training, places=[None, *range(1, 6)], classes=[[1], *[[0]] * 5]
        )
        assert all(not only[index].skipped for index in range(6))  # any other, if all are gone
        assert only.sample_at(0) is None or only.sample_at(1) is None

    def test_without_any_class_nothing_can_be_drawn(self):
        with pytest.raises(TrainingError, match="`balance`: no class is seen in any image"):
            EvenOrder([[], []], seed=0)


class TestShownClasses:
    def test_labels_count_all_and_the_teacher_what_is_large(self):
        def complete(images, labels):
            assert images.shape == (1, 3, *labels.shape[1:])
            given = torch.full_like(labels, UNLABELED)
            given[0, 0, 0] = 5
            taught = torch.full_like(labels, 7)
            taught[0, 1, :3] = 8
            taught[0, 2, :] = SCENES.vocabulary.ignore
            taught[0, -20:] = 9
            return given, taught

        assert shown_classes(SCENES, complete, short_side=48) == [[5, 7, 9]] * len(SCENES)

    def test_true_labels_alone(self):
        found = shown_classes(SCENES, lambda _, labels: (labels, None), short_side=64)
        truth = [sorted({*sample.labels.flatten().tolist()}) for sample in SCENES]
        ignore = SCENES.vocabulary.ignore
        assert found == [[one for one in ids if one not in (ignore, UNLABELED)] for ids in truth]


class TestFile:
    def test_it_comes_back(self, tmp_path):
        write_classes(RARE, tmp_path / "classes.json")
        assert read_classes(tmp_path / "classes.json", images=11, classes=3) == RARE

    @pytest.mark.parametrize(
        "content", [None, "[", {"a": 1}, [[0]], [[0], [3]], [[0], [-1]], [[0], ["a"]], [0, 1]]
    )
    def test_another_is_one_line(self, content, tmp_path):
        path = tmp_path / "classes.json"
        if content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(TrainingError, match=r"classes\.json.*another `out`") as error:
            read_classes(path, images=2, classes=3)
        assert "\n" not in str(error.value)
