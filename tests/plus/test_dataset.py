"""What a training loads: the same samples, however many processes and stops there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskclip.core.config import Augmentation, ModelConfig
from maskclip.core.samples import UNLABELED
from maskclip.emoji.scenes import EmojiScenes
from maskclip.plus.config import Optimization, Supervision, Training
from maskclip.plus.dataset import TrainingDataset, training_loader, validation_loader

SCENES = EmojiScenes(split="train", size=32, seeds=range(10_000, 10_005), official=5)
TRAINING = Training(
    dataset="emoji",
    teacher=ModelConfig(name="emoji"),
    augmentation=Augmentation(scale=(32, 32), ratio=(1, 1), crop=(32, 32)),
    optimization=Optimization(steps=5, batch_size=4),
)


def images_of(loader):
    return [images for images, _, _ in loader]


def test_every_epoch_has_each_sample_once_in_an_order_of_its_own():
    dataset = TrainingDataset(SCENES, TRAINING)
    assert len(dataset) == 20
    epochs = [[dataset.sample_at(5 * epoch + i) for i in range(5)] for epoch in range(4)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_index_is_the_same_sample_whatever_was_loaded_before():
    one, other = TrainingDataset(SCENES, TRAINING), TrainingDataset(SCENES, TRAINING)
    images, labels, _ = one[13]
    _ = other[2], other[19]
    assert torch.equal(images, other[13][0])
    assert torch.equal(labels, other[13][1])


def test_a_resumed_training_loads_the_rest_but_counts_the_whole():
    whole = images_of(training_loader(SCENES, TRAINING))
    rest = training_loader(SCENES, TRAINING, steps_done=lambda: 3)
    assert len(whole) == len(rest) == 5
    assert all(map(torch.equal, whole[3:], images_of(rest)))


def test_processes_share_each_batch():
    whole = images_of(training_loader(SCENES, TRAINING))
    parts = [
        images_of(training_loader(SCENES, TRAINING, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    for step, images in enumerate(whole):
        assert torch.equal(images[0::2], parts[0][step])
        assert torch.equal(images[1::2], parts[1][step])


def test_labels_of_unlabelled_classes_are_hidden():
    classes = tuple(range(len(SCENES.vocabulary)))
    hidden = replace(TRAINING, supervision=Supervision(unlabeled=classes))
    (_, labels, _), (_, given, _) = (
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
    image, truth, _ = next(iter(loaders[0]))
    assert (image.shape, image.dtype) == ((1, 3, 48, 48), torch.uint8)
    assert (truth.shape, truth.dtype) == ((32, 32), torch.int64)
