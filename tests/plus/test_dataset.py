"""What a training loads: the same samples, however many processes and stops there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from maskclip.core.config import Augmentation, ModelConfig
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import IGNORE
from maskclip.data.photos import open_folder
from maskclip.emoji.scenes import EmojiScenes
from maskclip.plus import dataset as module
from maskclip.plus.config import Optimization, Supervision, Training, TrainingError
from maskclip.plus.dataset import (
    TrainingDataset,
    check_readable,
    training_loader,
    validation_loader,
)

SCENES = EmojiScenes(split="train", size=32, seeds=range(10_000, 10_005), official=5)
TRAINING = Training(
    dataset="emoji",
    teacher=ModelConfig(name="emoji"),
    augmentation=Augmentation(scale=(32, 32), ratio=(1, 1), crop=(32, 32)),
    optimization=Optimization(steps=5, batch_size=4),
)


def images_of(loader):
    return [batch.images for batch in loader]


def test_every_epoch_has_each_sample_once_in_an_order_of_its_own():
    dataset = TrainingDataset(SCENES, TRAINING)
    assert len(dataset) == 20
    epochs = [[dataset.sample_at(5 * epoch + i) for i in range(5)] for epoch in range(4)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_index_is_the_same_sample_whatever_was_loaded_before():
    one, other = TrainingDataset(SCENES, TRAINING), TrainingDataset(SCENES, TRAINING)
    images, labels, *_ = one[13]
    _ = other[2], other[19]
    assert torch.equal(images, other[13][0])
    assert torch.equal(labels, other[13][1])


def test_a_resumed_training_loads_the_rest_but_counts_the_whole():
    whole = images_of(training_loader(TrainingDataset(SCENES, TRAINING)))
    rest = training_loader(TrainingDataset(SCENES, TRAINING), steps_done=lambda: 3)
    assert len(whole) == len(rest) == 5
    assert all(map(torch.equal, whole[3:], images_of(rest)))


def test_processes_share_each_batch():
    whole = images_of(training_loader(TrainingDataset(SCENES, TRAINING)))
    parts = [
        images_of(training_loader(TrainingDataset(SCENES, TRAINING), rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    for step, images in enumerate(whole):
        assert torch.equal(images[0::2], parts[0][step])
        assert torch.equal(images[1::2], parts[1][step])


def test_labels_of_unlabelled_classes_are_hidden():
    classes = tuple(range(len(SCENES.vocabulary)))
    hidden = replace(TRAINING, supervision=Supervision(unlabeled=classes))
    (_, labels, *_), (_, given, *_) = (
        TrainingDataset(SCENES, hidden)[0],
        TrainingDataset(SCENES, TRAINING)[0],
    )
    assert set(labels.unique().tolist()) == {UNLABELED}
    assert given.min() >= 0


@pytest.mark.parametrize(("most", "counts"), [(None, [3, 3]), (3, [2, 2]), (9, [3, 3])])
def test_validation_shares_images_at_the_test_size(most, counts):
    loaders = [
        validation_loader(SCENES, (64, 48), most=most, rank=rank, world_size=2) for rank in (0, 1)
    ]
    assert [len(loader) for loader in loaders] == counts
    image, truth, *_ = next(iter(loaders[0]))
    assert (image.shape, image.dtype) == ((1, 3, 48, 48), torch.uint8)
    assert (truth.shape, truth.dtype) == ((32, 32), torch.int64)


class TestUnreadable:
    """Samples of which some cannot be read, for whatever reason."""

    @pytest.fixture
    def folder(self, tmp_path):
        """Five images with masks."""
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
        for index in range(5):
            sample = SCENES[index]
            sample.image.save(tmp_path / "images" / f"{index}.png")
            Image.fromarray(sample.labels).save(tmp_path / "masks" / f"{index}.png")
        return tmp_path

    def opened(self, folder):
        return open_folder(folder / "images", folder / "masks", SCENES.vocabulary)

    @pytest.mark.parametrize(
        ("file", "damage"),
        [
            ("images/2.png", lambda path: path.unlink()),
            ("images/2.png", lambda path: path.write_bytes(path.read_bytes()[:200])),
            ("images/2.png", lambda path: path.write_bytes(b"")),
            ("images/2.png", lambda path: (path.unlink(), path.mkdir())),
            ("images/2.png", lambda path: Image.new("1", (20_000, 20_000)).save(path)),  # a bomb
            ("images/2.png", lambda path: Image.new("L", (9, 9)).save(path)),  # of another size
            ("masks/2.png", lambda path: path.unlink()),
            ("masks/2.png", lambda path: path.write_bytes(b"no mask")),
            ("masks/2.png", lambda path: Image.new("L", (32, 32), 200).save(path)),  # no class
        ],
    )
    def test_any_is_named_before_the_first_step_or_skipped(self, folder, file, damage):
        whole, samples = TrainingDataset(SCENES, TRAINING), self.opened(folder)
        damage(folder / file)
        with pytest.raises(TrainingError, match=r"2\.png: .*take it out"):
            check_readable(samples)
        dataset = TrainingDataset(samples, TRAINING)
        for index in range(20):
            epoch = index // 5
            place, after = whole.sample_at(index), whole.sample_at(5 * epoch + (index + 1) % 5)
            found = dataset[index]
            assert [skipped.name for skipped in found.skipped] == ["2"] * (place == 2)
            if place == 2:
                alone = TrainingDataset(samples, TRAINING, places=[after] * 5)[index]
                assert torch.equal(found.images, alone.images)
            else:
                assert torch.equal(found.images, whole[index].images)

    def test_those_that_are_gone_are_passed_over(self, folder):
        places = [0, None, 1, None, 2]
        dataset = TrainingDataset(self.opened(folder), TRAINING, places=places)
        assert not any(dataset[index].skipped for index in range(10))
        assert len({dataset.sample_at(index) for index in range(5)}) == 4

    def test_where_nothing_can_be_read_nothing_counts(self, folder):
        samples = self.opened(folder)
        for path in (folder / "images").iterdir():
            path.unlink()
        images, labels, skipped, *_ = TrainingDataset(samples, TRAINING)[0]
        assert images.shape == (3, 32, 32)
        assert set(labels.unique().tolist()) == {IGNORE}
        assert len(skipped) == 5

    def test_what_would_take_hours_is_not_read_before(self, folder, monkeypatch):
        samples = self.opened(folder)
        (folder / "images" / "2.png").unlink()
        monkeypatch.setattr(module, "_CHEAP_BYTES", 100)
        check_readable(samples)

    def test_validation_goes_on_without_them(self, folder):
        samples = self.opened(folder)
        (folder / "masks" / "1.png").unlink()
        batches = list(validation_loader(samples, (64, 48)))
        assert [len(batch.skipped) for batch in batches] == [0, 1, 0, 0, 0]
        assert set(batches[1].labels.unique().tolist()) == {IGNORE}
