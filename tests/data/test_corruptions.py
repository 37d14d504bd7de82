import dataclasses
import itertools
import os
import pickle
import warnings
import zlib
from unittest import mock

import imagecorruptions
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from maskclip.core.errors import MaskCLIPError
from maskclip.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, all_corruptions, corrupt

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "spatter")
FIXED = ("gaussian_blur", "defocus_blur", "jpeg_compression")
SIZES = [(32, 32), (33, 57), (64, 41), (120, 90)]
TINY = [(1, 1), (5, 3), (1, 40), (40, 1)]


def grains(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def generator_of(corruption, *, seed, name):
    """The documented source of random numbers, made again."""
    words = (name, corruption.name)
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in words)])


def reference(pixels, corruption, generator):
    """The picture of the maintained package, which is made to draw from `generator`."""
    function = imagecorruptions.corruption_dict[corruption.name]
    options = {"seed": generator} if corruption.name == "impulse_noise" else {}
    with mock.patch.multiple(np.random, normal=generator.normal, poisson=generator.poisson):
        return np.uint8(function(Image.fromarray(pixels), corruption.severity, **options))


def ours(pixels, corruption, *, seed=0, name="photo"):
    result = corrupt(Image.fromarray(pixels), corruption, seed=seed, name=name)
    assert result.mode == "RGB"
    return np.asarray(result)


def error_of(pixels, corruption):
    """Mean absolute change, in grey levels."""
    return np.abs(ours(pixels, corruption).astype(float) - pixels).mean()


class TestAgreementWithTheMaintainedPackage:
    @pytest.mark.parametrize("corruption", all_corruptions(), ids=str)
    def test_every_pixel(self, picture, corruption):
        for height, width in SIZES:
            for pixels in (grains(height, width), picture(height, width)):
                generator = generator_of(corruption, seed=3, name="2007_000033")
                expected = reference(pixels, corruption, generator)
                result = ours(pixels, corruption, seed=3, name="2007_000033")
                assert not np.array_equal(expected, pixels)
                difference = np.abs(result.astype(int) - expected.astype(int)).max()
                # The package filters channel by channel; a CPU may round that otherwise.
                assert difference <= (corruption.name == "defocus_blur")

    # Without spatter of water: where no drop shines, the package divides by zero.
    @pytest.mark.parametrize(
        "corruption",
        [c for c in all_corruptions() if c.name != "spatter" or c.severity > 3],
        ids=str,
    )
    def test_sizes_that_its_front_door_refuses(self, corruption):
        for height, width in TINY:
            pixels = grains(height, width)
            generator = generator_of(corruption, seed=3, name="tiny")
            expected = reference(pixels, corruption, generator).astype(int)
            result = ours(pixels, corruption, seed=3, name="tiny")
            assert np.abs(result - expected).max() <= (corruption.name == "defocus_blur")


class TestRandomness:
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_the_same_seed_and_name_give_the_same_bytes(self, name):
        pixels, corruption = grains(40, 30), Corruption(name, 3)
        first = ours(pixels, corruption, seed=5, name="a")
        ours(pixels, corruption, seed=5, name="b")  # what comes in between changes nothing
        assert np.array_equal(first, ours(pixels, corruption, seed=5, name="a"))

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_another_name_or_seed_gives_other_bytes_if_there_is_chance(self, name):
        pixels, corruption = grains(90, 60), Corruption(name, 3)
        first = ours(pixels, corruption, seed=5, name="a")
        for other in ({"seed": 5, "name": "b"}, {"seed": 6, "name": "a"}):
            same = np.array_equal(first, ours(pixels, corruption, **other))
            assert same == (name in FIXED)
        assert (name in FIXED) != (name in RANDOM)

    def test_severities_share_their_random_numbers(self):
        gray = np.full((50, 50, 3), 128, np.uint8)
        hits = [ours(gray, Corruption("impulse_noise", severity)) != 128 for severity in SEVERITIES]
        for mild, severe in itertools.pairwise(hits):
            assert mild.sum() < severe.sum()
            assert not (mild & ~severe).any()

    def test_a_name_of_bytes_that_are_no_text(self):
        names = [os.fsdecode(raw) for raw in (b"caf\xe9", b"caf\xe8")]
        first, second = (
            ours(grains(8, 8), Corruption("gaussian_noise", 1), name=name) for name in names
        )
        assert not np.array_equal(first, second)


class TestPictures:
    @pytest.mark.parametrize("size", [*TINY, (33, 57)])
    def test_the_size_stays_and_nothing_warns(self, size):
        pixels = grains(*size)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for corruption in all_corruptions():
                assert ours(pixels, corruption).shape == pixels.shape

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_the_input_is_left_as_it_is(self, name):
        image = Image.fromarray(grains(40, 30))
        before = image.tobytes()
        for severity in SEVERITIES:
            result = corrupt(image, Corruption(name, severity), seed=0, name="x")
            assert result is not image
        assert image.tobytes() == before

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_a_greater_severity_changes_more(self, picture, name):
        pixels = picture(120, 90)
        changes = [error_of(pixels, Corruption(name, severity)) for severity in SEVERITIES]
        assert changes == sorted(set(changes))
        squares = [
            np.square(ours(pixels, Corruption(name, severity)).astype(float) - pixels).mean()
            for severity in (1, 5)
        ]
        assert squares[1] > 1.5 * squares[0] > 0  # the ratio of signal to noise falls

    def test_water_without_a_drop_changes_nothing(self):
        pixels, corruption, dry, changed = grains(9, 9), Corruption("spatter", 1), [], []
        for name in map(str, range(20)):
            noise = generator_of(corruption, seed=0, name=name).normal(0.65, 0.3, (9, 9))
            dry.append((ndimage.gaussian_filter(noise, 4, mode="nearest") < 0.69).all())
            changed.append(not np.array_equal(ours(pixels, corruption, name=name), pixels))
        assert any(dry)
        assert any(changed)
        assert not np.logical_and(dry, changed).any()

    def test_what_a_file_says_beside_its_pixels_does_not_matter(self):
        image = Image.fromarray(grains(16, 16))
        image.info = {"comment": b"x" * 70_000, "icc_profile": b"x" * 70_000}
        corruption = Corruption("jpeg_compression", 2)
        result = corrupt(image, corruption, seed=0, name="photo")
        assert np.array_equal(np.asarray(result), ours(grains(16, 16), corruption))


class TestNames:
    def test_the_sweep(self):
        cells = all_corruptions()
        assert len(cells) == len(set(cells)) == 40
        assert [cell.name for cell in cells[::5]] == list(CORRUPTIONS)
        assert [cell.severity for cell in cells[:5]] == [1, 2, 3, 4, 5]
        assert set(CORRUPTIONS) <= set(imagecorruptions.get_corruption_names("all"))

    def test_text_and_value_are_one(self):
        assert Corruption.parse("speckle_noise:1") == Corruption("speckle_noise", 1)
        for cell in all_corruptions():
            assert Corruption.parse(str(cell)) == cell
            assert pickle.loads(pickle.dumps(cell)) == cell

    def test_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            all_corruptions()[0].severity = 9

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("speckle_noise", "NAME:SEVERITY.* such as speckle_noise:1, got 'speckle_noise'"),
            ("speckle_noise:0", "severity from 1 to 5.*got 'speckle_noise:0'"),
            ("speckle_noise:6", "severity from 1 to 5.*got 'speckle_noise:6'"),
            ("speckle_noise:12", "severity from 1 to 5"),
            ("speckle_noise:-1", "severity from 1 to 5"),
            ("speckle_noise:1.5", "severity from 1 to 5"),
            ("speckle_noise: 1", "severity from 1 to 5"),
            ("speckle_noise:x", "severity from 1 to 5"),
            ("speckle_noise:1\n", "severity from 1 to 5"),
            (":1", "NAME:SEVERITY"),
            ("", "NAME:SEVERITY.*got ''"),
            ("spekle_noise:1", "unknown corruption 'spekle_noise'; did you mean speckle_noise"),
            ("Gaussian_Blur:1", "did you mean gaussian_blur"),
            ("fog:1", "unknown corruption 'fog'. There are: gaussian_noise, .*, jpeg_compression"),
            ("a:b:1", "unknown corruption 'a:b'"),
        ],
    )
    def test_text_that_names_no_corruption(self, text, message):
        with pytest.raises(MaskCLIPError, match=message) as caught:
            Corruption.parse(text)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("severity", [0, 6, -1, 1.0, True, "1", None])
    def test_a_severity_that_is_none(self, severity):
        with pytest.raises(MaskCLIPError, match="severity of spatter: expected an integer"):
            Corruption("spatter", severity)

    def test_a_name_that_is_no_text(self):
        with pytest.raises(MaskCLIPError, match="unknown corruption None"):
            Corruption(None, 1)
