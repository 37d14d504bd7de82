import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import maskclip
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.prompts import PromptError
from maskclip.clip.weights import load_clip
from maskclip.core.config import ModelConfig, Options
from maskclip.core.dense import read_again, similarity
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.method import CLEAN, PUBLISHED
from maskclip.core.methods import METHODS
from maskclip.core.refinement import probabilities
from maskclip.core.regions import enlarge, superpixels
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene
from maskclip.plus.files import TrainedStudent
from maskclip.plus.student import StudentConfig, build_student
from maskclip.tasks import photo_segmenter
from maskclip.tasks import segmenter as task
from maskclip.tasks.photos import network_input
from maskclip.tasks.segmenter import CLIPSegmenter
from maskclip.tasks.without_clip import StudentSegmenter

WORDS = ["dog", "red car", "grass", "sky"]
FAMILIES = ["vit", "resnet"]


@pytest.fixture(scope="module")
def make_segmenter(make_model):
    def make(family="vit", *, method=CLEAN, precision="float32", **fields):
        return CLIPSegmenter(
            make_model(family, **fields),
            method=method,
            device=torch.device("cpu"),
            precision=precision,
            templates="plain",
        )

    return make


@pytest.fixture(scope="module")
def segmenters(make_segmenter):
    """One segmenter per family and method; their words are encoded once."""
    return {
        (family, method): make_segmenter(family, method=method)
        for family in FAMILIES
        for method in (CLEAN, PUBLISHED)
    }


@pytest.fixture(scope="module")
def vit(segmenters):
    return segmenters["vit", CLEAN]


def same(found, expected, *, share=0.995):
    """Equal up to what batching changes in the last digits."""
    assert found.labels.shape == expected.labels.shape
    assert (found.labels == expected.labels).mean() >= share
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def naive(segmenter, picture, names, groups):
    """Full-size maps of the clean method for an image at its own size; `groups`: class -> rows."""
    images = torch.from_numpy(picture).permute(2, 0, 1)[None]
    dense = segmenter.encoder.encode(images)
    rows = segmenter.text_rows(Vocabulary.parse(names))
    cosine = F.conv2d(F.normalize(dense.features, dim=1), rows[:, :, None, None])
    pooled = torch.stack([cosine[:, group].amax(dim=1) for group in groups], dim=1)
    maps = (100 * pooled).softmax(dim=1)
    full = F.interpolate(maps, size=dense.covered, mode="bilinear")
    return full[0, :, : picture.shape[0], : picture.shape[1]]


def agrees(found, maps):
    best, winner = maps.max(dim=0)
    np.testing.assert_allclose(found.scores, best.numpy(), rtol=1e-4, atol=1e-5)
    two = maps.topk(2, dim=0).values
    sure = (two[0] - two[1] > 1e-4).numpy()
    assert sure.any()
    assert (found.labels == winner.numpy())[sure].all()


class TestInputs:
    def test_one_image_gives_one_result_and_a_list_a_list(self, vit, picture):
        image = picture(20, 30)
        single = vit.segment(image, WORDS)
        assert isinstance(single, maskclip.Segmentation)
        (listed,) = vit.segment([image], WORDS)
        assert np.array_equal(single.labels, listed.labels)
        assert vit.segment([], WORDS) == []

    def test_paths_pictures_and_arrays_are_alike(self, vit, picture, tmp_path):
        image = picture(20, 30)
        path = tmp_path / "bild ü.png"
        Image.fromarray(image).save(path)
        found = vit.segment([image, Image.fromarray(image), path, str(path)], WORDS)
        for result in found:
            assert result.labels.shape == (20, 30)
            assert np.array_equal(result.labels, found[0].labels)
            assert result.image.tobytes() == image.tobytes()

    @pytest.mark.parametrize("family", FAMILIES)
    def test_mixed_sizes_keep_their_order(self, segmenters, family, picture):
        segmenter = segmenters[family, CLEAN]
        sizes = [(20, 30), (48, 32), (20, 30), (31, 9), (48, 32), (40, 60)] + [(16, 24)] * 7
        images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
        together = segmenter.segment(images, WORDS)
        for image, found in zip(images, together, strict=True):
            assert np.array_equal(np.asarray(found.image), image)
            same(found, segmenter.segment(image, WORDS))

    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (4096, 64), (33, 47)])
    @pytest.mark.parametrize("options", [{}, {"key_smoothing": 1.0, "prompt_denoising": 0.5}])
    def test_any_size_is_labelled_at_its_own(
        self, segmenters, method, family, size, options, picture
    ):
        found = segmenters[family, method].segment(picture(*size), WORDS, **options)
        assert found.labels.shape == found.scores.shape == size
        assert (found.labels.dtype, found.scores.dtype) == (np.uint8, np.float32)
        assert found.vocabulary.names == tuple(WORDS)
        if method is CLEAN:
            assert found.scores.min() >= 1 / len(WORDS) - 1e-5
            assert found.scores.max() <= 1 + 1e-6

    def test_a_large_picture_at_its_own_size(self, segmenters, picture):
        found = segmenters["resnet", CLEAN].segment(picture(4096, 64), WORDS, short_side=0)
        assert found.labels.shape == (4096, 64)

    def test_missing_files_are_named(self, vit):
        with pytest.raises(MaskCLIPError, match=r"nowhere\.png"):
            vit.segment("nowhere.png", WORDS)


class TestClasses:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_labels_are_the_argmax_of_enlarged_probabilities(self, segmenters, family, picture):
        segmenter, image = segmenters[family, CLEAN], picture(75, 90)
        maps = naive(segmenter, image, WORDS, [[0], [1], [2], [3]])
        found = segmenter.segment(image, WORDS, short_side=0)
        agrees(found, maps)
        assert len(found.coverage()) > 1

    def test_synonyms_are_one_class(self, vit, picture):
        image = picture(75, 90)
        names = ["man", "woman", "grass", "lawn", "meadow", "sky"]
        maps = naive(vit, image, names, [[0, 1], [2, 3, 4], [5]])
        found = vit.segment(
            image, ["person=man,woman", "green=grass,lawn,meadow", "sky"], short_side=0
        )
        assert found.vocabulary.names == ("person", "green", "sky")
        agrees(found, maps)

    def test_the_background_may_be_words(self, vit, picture):
        image = picture(75, 90)
        maps = naive(vit, image, ["wall", "floor", *WORDS], [[0, 1], [2], [3], [4], [5]])
        found = vit.segment(image, WORDS, background=["wall", "floor"], short_side=0)
        assert found.vocabulary.names == ("background", *WORDS)
        agrees(found, maps)

    @pytest.mark.filterwarnings("ignore::maskclip.core.errors.MaskCLIPWarning")
    @pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.45, 0.9999])
    def test_the_background_may_be_a_threshold(self, vit, picture, threshold):
        image = picture(75, 90)
        maps = naive(vit, image, WORDS, [[0], [1], [2], [3]])
        found = vit.segment(image, WORDS, background=threshold, short_side=0)
        agrees(found, torch.cat([torch.full_like(maps[:1], threshold), maps]))
        below = found.scores <= threshold
        assert (found.labels[found.scores > threshold] != 0).all()
        assert (found.labels[below] == 0).all()

    def test_thresholds_and_synonyms_go_together(self, vit, picture):
        image = picture(75, 90)
        maps = naive(vit, image, ["man", "woman", "sky"], [[0, 1], [2]])
        found = vit.segment(image, ["person=man,woman", "sky"], background=0.6, short_side=0)
        agrees(found, torch.cat([torch.full_like(maps[:1], 0.6), maps]))

    @pytest.mark.parametrize(
        ("classes", "background", "message"),
        [
            (["dog"], None, "one class and no background: every pixel will be 'dog'"),
            (["dog"], 0.9, "does nothing with one class, whose probability is always 1"),
            (["dog", "cat"], 0.5, "threshold of 0.5 does nothing: the best of 2 .* below 0.5;"),
            (["dog", "cat", "sky"], 0.3, "the best of 3 probabilities is never below 0.333"),
            (["dog", "cat"], -0.5, "does nothing"),
        ],
    )
    def test_words_and_thresholds_that_do_nothing_are_reported(
        self, vit, picture, classes, background, message
    ):
        with pytest.warns(MaskCLIPWarning, match=message) as caught:
            found = vit.segment(picture(20, 30), classes, background=background)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert (found.labels == found.labels.max()).all() or len(classes) > 1

    @pytest.mark.filterwarnings("error::maskclip.core.errors.MaskCLIPWarning")
    def test_words_and_thresholds_that_do_something_are_not(self, segmenters, vit, picture):
        vit.segment(picture(20, 30), ["dog"], background=["sky"])
        vit.segment(picture(20, 30), ["dog", "cat"], background=0.51)
        published = segmenters["vit", PUBLISHED]
        published.segment(picture(20, 30), ["dog", "cat"], background=0.2)  # of cosines

    def test_a_dictionary_has_synonyms(self, vit, picture):
        found = vit.segment(picture(20, 30), {"animal": ["dog", "cat"], "sky": ["sky"]})
        assert found.vocabulary == Vocabulary.parse(["animal=dog,cat", "sky"])

    @pytest.mark.filterwarnings("ignore::maskclip.core.errors.MaskCLIPWarning")
    def test_one_class_is_everywhere(self, vit, picture):
        found = vit.segment(picture(20, 30), ["dog"])
        assert found.coverage() == {"dog": 1.0}
        np.testing.assert_allclose(found.scores, 1, rtol=1e-6)

    @pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16)])
    def test_many_classes_get_wider_labels(self, vit, picture, count, dtype):
        found = vit.segment(picture(20, 30), [f"thing {i}" for i in range(count)])
        assert found.labels.dtype == dtype

    def test_a_vocabulary_will_do(self, vit, picture):
        vocabulary = Vocabulary.parse(WORDS)
        found = vit.segment(picture(20, 30), vocabulary)
        assert found.vocabulary == vocabulary

    def test_words_are_encoded_once(self, make_segmenter, picture, monkeypatch):
        segmenter = make_segmenter()
        first = segmenter.segment(picture(20, 30), WORDS)

        def refuse(*_, **__):
            raise AssertionError("the text tower ran")

        monkeypatch.setattr(segmenter.clip.model, "encode_text", refuse)
        again = segmenter.segment(picture(20, 30), WORDS, key_smoothing=None)
        assert np.array_equal(first.labels, again.labels)

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            ([], "no classes"),
            ("dog", "one string"),
            (["dog", "dog"], "twice"),
            (["dog", " "], "name"),
        ],
    )
    def test_impossible_classes_are_refused(self, vit, picture, classes, message):
        with pytest.raises(MaskCLIPError, match=message):
            vit.segment(picture(4, 4), classes)

    def test_names_beyond_the_context_are_refused(self, vit, picture):
        with pytest.raises(PromptError, match="77"):
            vit.segment(picture(4, 4), ["dog " * 80])

    def test_words_never_trained_on_are_warned_about(self, make_segmenter, tokenizer, picture):
        known = frozenset(tokenizer.encode("a photo of a dog."))
        segmenter = make_segmenter(known_tokens=known)
        with pytest.warns(MaskCLIPWarning, match="never saw: wolf"):
            segmenter.segment(picture(4, 4), ["dog", "wolf"])


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"key_smoothing": -0.1}, r"`key_smoothing` .*-0\.1"),
            ({"prompt_denoising": 1.5}, r"`prompt_denoising` .*1\.5"),
            ({"key_smoothing": float("nan")}, "key_smoothing"),
            ({"short_side": -1}, "short_side"),
            ({"window": 0}, "window"),
            ({"stride": 8}, "needs `window`"),
            ({"window": 8, "stride": 9}, "8 px, got 9"),
            ({"window": 8, "stride": 0}, "stride"),
            ({"refine": "pmar"}, r"unknown refinement 'pmar' \(did you mean pamr\?\)"),
            ({"refine": "tlp+crf"}, "'crf': expected some of .*, tlp, pamr, or none$"),
            ({"refine": "+"}, r"no refinement in '\+': expected some of "),
            ({"refine": 3}, "`refine` is a list of names, got 3"),
            ({"refine": "pamr", "refine_size": -1}, "refine_size"),
            ({"refine_size": 64}, "`refine_size` needs `refine=pamr` or `refine=tlp`"),
            ({"pamr_iterations": 5}, "`pamr_iterations` needs `refine=pamr`"),
            ({"refine": "tlp", "pamr_dilations": (1,)}, "`pamr_dilations` needs `refine=pamr`"),
            (
                {"refine": "pamr", "pamr_iterations": 0},
                "`pamr_iterations` is a whole number from 1",
            ),
            ({"refine": "pamr", "pamr_iterations": True}, "whole number from 1 to 1000, got True"),
            ({"key_smoothing": True}, r"`key_smoothing` is a threshold in \[0, 1\], got True"),
            *(
                (
                    {"refine": "tlp", "short_side": 64, "window": 64, name: True},
                    f"`{name}` is a whole",
                )
                for name in ("refine_size", "short_side", "long_side", "window", "stride")
            ),
            ({"refine": "pamr,none"}, "none stands alone, got 'pamr,none': leave out none, or the"),
            ({"refine": ("none", "tlpp")}, "none stands alone"),
            ({"refine": "pamr", "pamr_dilations": "8,x"}, "1 to 8 numbers of pixels .* got '8,x'"),
            ({"refine": "pamr", "pamr_dilations": ()}, "1 to 8 numbers of pixels"),
            ({"refine": "pamr", "pamr_dilations": (8, 0)}, "1 to 8 numbers of pixels"),
        ],
        ids=str,
    )
    def test_out_of_range_is_refused(self, vit, picture, options, message):
        with pytest.raises(MaskCLIPError, match=message):
            Options(**options)
        with pytest.raises(MaskCLIPError, match=message):
            vit.segment(picture(8, 8), WORDS, **options)

    @pytest.mark.parametrize("text", ["tlp+pamr", "tlp,pamr", " tlp + pamr "])
    def test_refinements_are_a_list_or_text(self, text):
        assert Options(refine=text).refine == ("tlp", "pamr")

    def test_unknown_options_are_an_error(self, vit, picture):
        with pytest.raises(MaskCLIPError, match=r"'smoothing' \(did you mean key_smoothing\?\)"):
            vit.segment(picture(8, 8), WORDS, smoothing=1)
        with pytest.raises(MaskCLIPError, match=r"'backgrond' \(did you mean background\?\)"):
            vit.segment(picture(8, 8), WORDS, backgrond=["sky"])
        with pytest.raises(MaskCLIPError, match=r"'shortside' \(did you mean short_side or"):
            vit.encode(picture(8, 8), shortside=32)
        with pytest.raises(MaskCLIPError, match=r"'key_smoothing': there are keys, image"):
            vit.encode(picture(8, 8), key_smoothing=1)  # of `score`
        with pytest.raises(MaskCLIPError, match=r"'key_smothing' \(did you mean key_smoothing\?\)"):
            vit.score(vit.encode(picture(8, 8)), WORDS, key_smothing=1)
        with pytest.raises(MaskCLIPError, match=r"'presicion' \(did you mean precision\?\)"):
            maskclip.load("emoji", presicion="float32")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"short_side": "64"}, "`short_side` is a whole number of pixels, got '64'"),
            ({"window": 2.5}, r"`window` is a whole number of pixels, got 2\.5"),
            ({"key_smoothing": "1"}, r"`key_smoothing` is a threshold in \[0, 1\], got '1'"),
            ({"short_side": 3}, "`short_side`: 3 px are less than half of one position"),
            ({"window": 2}, "`window`: 2 px are less than half of one position"),
        ],
    )
    def test_options_that_cannot_be_meant_are_an_error(self, vit, picture, options, message):
        with pytest.raises(MaskCLIPError, match=message):
            vit.segment(picture(8, 8), WORDS, **options)
        if "key_smoothing" not in options:
            with pytest.raises(MaskCLIPError, match=message):
                vit.encode(picture(8, 8), **options)

    @pytest.mark.parametrize(
        ("size", "short_side", "seen"),
        [
            ((40, 80), None, (32, 64)),
            ((40, 80), 0, (40, 80)),
            ((40, 80), 16, (16, 32)),
            ((20, 400), None, (6, 128)),  # the long side is at most four short sides
        ],
    )
    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    def test_the_network_sees_the_short_side_wanted(
        self, segmenters, method, size, short_side, seen, picture, monkeypatch
    ):
        encoder, shapes = segmenters["vit", method].encoder, []
        encode = encoder.encode

        def noting(images, **options):
            shapes.append((tuple(images.shape), images.dtype))
            return encode(images, **options)

        monkeypatch.setattr(encoder, "encode", noting)
        found = segmenters["vit", method].segment(picture(*size), WORDS, short_side=short_side)
        assert shapes == [((1, 3, *seen), torch.uint8)]
        assert found.labels.shape == size

    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    def test_a_window_over_the_image_is_the_whole_image(self, segmenters, method, picture):
        segmenter, image = segmenters["vit", method], picture(40, 60)
        whole = segmenter.segment(image, WORDS, short_side=0)
        found = segmenter.segment(image, WORDS, short_side=0, window=60, stride=30)
        same(found, whole, share=1)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_windows_are_averaged_where_they_overlap(self, segmenters, family, picture):
        segmenter, image = segmenters[family, CLEAN], picture(64, 96)
        total, count = torch.zeros(4, 64, 96), torch.zeros(64, 96)
        for top in (0,):
            for left in (0, 32):
                part = np.ascontiguousarray(image[top : top + 64, left : left + 64])
                area = (slice(top, top + 64), slice(left, left + 64))
                total[:, *area] += naive(segmenter, part, WORDS, [[0], [1], [2], [3]])
                count[area] += 1
        found = segmenter.segment(image, WORDS, short_side=0, window=64, stride=32)
        agrees(found, total / count)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    def test_windows_of_many_images_stay_with_their_image(
        self, segmenters, family, method, picture
    ):
        segmenter = segmenters[family, method]
        images = [picture(40, 60, seed=i) for i in range(3)]
        options = {"window": 24, "stride": 20, "key_smoothing": 0.9}
        for image, found in zip(images, segmenter.segment(images, WORDS, **options), strict=True):
            same(found, segmenter.segment(image, WORDS, **options))

    def test_refinements_change_something(self, vit, picture):
        image = picture(64, 96)
        plain = vit.segment(image, WORDS).scores
        for options in ({"key_smoothing": 1.0}, {"prompt_denoising": 0.9}):
            assert np.abs(vit.segment(image, WORDS, **options).scores - plain).max() > 0.01

    def test_keys_are_made_only_for_key_smoothing(self, make_segmenter, picture, monkeypatch):
        segmenter, asked = make_segmenter(), []
        encode = segmenter.encoder.encode

        def noting(images, *, keys, image):
            asked.append(keys)
            return encode(images, keys=keys, image=image)

        monkeypatch.setattr(segmenter.encoder, "encode", noting)
        segmenter.segment(picture(8, 8), WORDS)
        segmenter.segment(picture(8, 8), WORDS, key_smoothing=0.5)
        assert asked == [False, True]


class TestEncodedPhotos:
    """A photo that is encoded once and scored again, by a CLIP or a student."""

    REFINED = {"key_smoothing": 0.9, "prompt_denoising": 0.3}  # noqa: RUF012 - a table
    WINDOWS = {"window": 24, "stride": 20}  # noqa: RUF012 - a table

    @pytest.fixture
    def counted(self, make_segmenter, monkeypatch):
        """A segmenter, and how many crops its image tower has seen."""
        segmenter, crops = make_segmenter(), []
        encode = segmenter.encoder.encode

        def noting(images, **wanted):
            crops.append(len(images))
            return encode(images, **wanted)

        monkeypatch.setattr(segmenter.encoder, "encode", noting)
        return segmenter, crops

    def test_other_words_and_refinements_do_not_run_the_image_tower(self, counted, picture):
        segmenter, crops = counted
        encoded = segmenter.encode(picture(40, 60), keys=True)
        assert crops == [1]
        first = segmenter.score(encoded, WORDS)
        other = segmenter.score(encoded, ["cat", "moon"], background=0.6)
        smooth = segmenter.score(encoded, WORDS, **self.REFINED)
        assert crops == [1]
        assert other.vocabulary.names == ("background", "cat", "moon")
        assert np.abs(first.scores - smooth.scores).max() > 0.01
        assert np.array_equal(first.image, picture(40, 60))

    @pytest.mark.parametrize("view", [{}, WINDOWS, {"short_side": 0}], ids=str)
    @pytest.mark.parametrize(
        "refinement",
        [{}, REFINED, {"background": ["wall"]}, {"refine": ["surgery"]}],
        ids=str,
    )
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    def test_both_steps_are_what_segment_does(
        self, segmenters, family, method, view, refinement, picture
    ):
        segmenter = segmenters[family, method]
        images = [picture(40, 60, seed=0), picture(31, 47, seed=1), picture(40, 60, seed=2)]
        kept = {"keys": "key_smoothing" in refinement, "image": "refine" in refinement}
        encoded = segmenter.encode(images, **kept, **view)
        found = segmenter.score(encoded, WORDS, **refinement)
        expected = segmenter.segment(images, WORDS, **view, **refinement)
        for ours, theirs in zip(found, expected, strict=True):
            same(ours, theirs)

    @pytest.mark.parametrize("view", [{}, WINDOWS, {"short_side": 0}], ids=str)
    def test_a_method_that_reads_twice_does_so_for_any_words(
        self, make_segmenter, picture, view, monkeypatch
    ):
        deep = {"layers": 10, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
        segmenter = make_segmenter(method=METHODS["resclip"], vision=deep)
        images = [picture(40, 60, seed=0), picture(31, 47, seed=1), picture(40, 60, seed=2)]
        encoded = segmenter.encode(images, **view)
        expected = [segmenter.segment(images, words, **view) for words in (WORDS, WORDS[:2])]
        alone = [segmenter.segment(image, WORDS, **view) for image in images]
        monkeypatch.setattr(segmenter.encoder, "encode", None)
        for words, wanted in zip((WORDS, WORDS[:2]), expected, strict=True):
            for ours, theirs in zip(segmenter.score(encoded, words), wanted, strict=True):
                same(ours, theirs)
        for ours, theirs in zip(alone, expected[0], strict=True):
            same(ours, theirs)
        first = [one.dense.features for one in encoded]
        scoring = segmenter.scoring(Vocabulary.parse(WORDS), Options())
        with torch.inference_mode():
            second = [read_again(one.dense, scoring).features for one in encoded]
        far = [float((a - b).norm() / a.norm()) for a, b in zip(first, second, strict=True)]
        assert min(far) > 1e-3

    def test_features_are_those_of_every_window(self, vit, picture):
        view = {"short_side": 0, **self.WINDOWS}
        encoded = vit.encode(picture(40, 60), keys=True, image=True, **view)
        windows = len(encoded.encoded.geometry.windows)
        assert windows == 2 * 3
        assert encoded.dense.features.shape == (windows, 16, 3, 3)
        assert encoded.dense.keys.shape == (windows, 32, 3, 3)
        assert encoded.dense.image.shape == (windows, 16)
        crops = [
            picture(40, 60)[rows.start : rows.stop, columns.start : columns.stop]
            for rows, columns in encoded.encoded.geometry.windows
        ]
        alone = vit.encode(crops, image=True, short_side=0)
        expected = torch.cat([one.dense.image for one in alone])
        torch.testing.assert_close(encoded.dense.image, expected, rtol=1e-4, atol=1e-5)
        beside = vit.encode(picture(40, 60)).dense
        assert (beside.keys, beside.image) == (None, None)

    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
    @pytest.mark.parametrize(
        "refinement", [{}, REFINED, {"background": 0.3}, {"refine": ["pamr"]}], ids=str
    )
    def test_heat_maps_are_what_scores_are_the_largest_of(
        self, segmenters, method, refinement, picture
    ):
        segmenter = segmenters["vit", method]
        encoded = segmenter.encode(picture(40, 60), keys="key_smoothing" in refinement)
        found = segmenter.score(encoded, WORDS, **refinement)
        names = found.vocabulary.names
        maps = np.stack([segmenter.heat(encoded, name, WORDS, **refinement) for name in names])
        assert maps.shape == (len(names), 40, 60)
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps.max(axis=0), found.scores, atol=1e-5)
        assert np.mean(maps.argmax(axis=0) == found.labels) > 0.99

    def test_a_heat_map_of_no_class_or_no_photo_is_refused(self, vit, picture):
        encoded = vit.encode(picture(8, 8))
        with pytest.raises(MaskCLIPError, match=r"no class 'dogg' \(did you mean dog"):
            vit.heat(encoded, "dogg", WORDS)
        with pytest.raises(MaskCLIPError, match="expected what `encode` returns"):
            vit.heat("a.jpg", "dog", WORDS)

    def test_smoothing_without_keys_is_refused(self, vit, picture):
        with pytest.raises(MaskCLIPError, match="keys=True"):
            vit.score(vit.encode(picture(8, 8)), WORDS, key_smoothing=0.5)

    def test_surgery_without_the_whole_photos_embedding_is_refused(self, vit, picture):
        with pytest.raises(MaskCLIPError, match="image=True"):
            vit.score(vit.encode(picture(8, 8), keys=True), WORDS, refine="surgery")

    def test_what_another_model_or_method_has_encoded_is_refused(self, segmenters, picture):
        encoded = segmenters["vit", CLEAN].encode(picture(8, 8))
        for other in (segmenters["resnet", CLEAN], segmenters["vit", PUBLISHED]):
            with pytest.raises(MaskCLIPError, match="encode again"):
                other.score(encoded, WORDS)

    def test_what_was_not_encoded_is_refused(self, vit, picture):
        encoded = vit.encode(picture(8, 8))
        for wrong, kind in (
            (None, "NoneType"),
            (np.zeros((8, 8, 3), np.uint8), "ndarray"),
            ([encoded, "a.jpg"], "str"),
        ):
            with pytest.raises(MaskCLIPError, match=f"expected what `encode` returns.* got {kind}"):
                vit.score(wrong, WORDS)

    def test_a_student_is_no_exception(self, picture, monkeypatch):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rows = F.normalize(torch.randn(4, 8), dim=1)
            config = StudentConfig(depth=50, width=8, embed_dim=8, background=True)
            trained = TrainedStudent(build_student(config, rows).eval(), short_side=40)
        segmenter = StudentSegmenter(
            trained,
            name="mine",
            fingerprint="0" * 16,
            method=CLEAN,
            device=torch.device("cpu"),
            precision="float32",
        )
        images, words = [picture(40, 60), picture(64, 33)], ["background", *WORDS]
        encoded = segmenter.encode(images, **self.WINDOWS)
        expected = segmenter.segment(images, words, **self.WINDOWS)
        monkeypatch.setattr(segmenter.student, "features", None)
        for ours, theirs in zip(segmenter.score(encoded, words), expected, strict=True):
            same(ours, theirs)
        for asked in ("keys", "image"):
            with pytest.raises(MaskCLIPError, match=f"{asked} belongs to CLIP"):
                segmenter.encode(images, **{asked: True})
        with pytest.raises(MaskCLIPError, match="surgery belongs to CLIP"):
            segmenter.segment(images, words, refine="surgery")


class TestLoad:
    @pytest.fixture
    def local(self, make_model, monkeypatch):
        monkeypatch.setattr(task, "load_of", lambda config, options: make_model(name=config.name))

    def test_gives_a_segmenter(self, local, picture):
        segmenter = maskclip.load("tiny", device="cpu", templates="plain", method="published")
        assert isinstance(segmenter, maskclip.Segmenter)
        assert segmenter.method is PUBLISHED
        assert segmenter.segment(picture(8, 8), WORDS).labels.shape == (8, 8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"device": "banana"}, "'banana'.*auto, cpu, cuda"),
            ({"device": "cuda:99"}, "cuda:99"),
            ({"device": ""}, "expected auto"),
            ({"precision": "int8"}, "'int8'.*auto, float32, bfloat16, float16"),
            ({"method": "paper"}, "clean, published"),
        ],
    )
    def test_says_what_can_be_had(self, local, options, message):
        with pytest.raises(MaskCLIPError, match=message) as error:
            maskclip.load("tiny", **{"device": "cpu", **options})
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("wrong", [3, b"x", "", [], None])
    def test_values_of_another_type_are_one_line(self, wrong):
        expected = {
            "model": "the name of a model",
            "weights": "a file, or random",
            "method": "a name of `maskclip methods`, a file of TOML or a Method",
            "templates": "the name of a set",
            "precision": "auto, or the name",
            "proxy": "the name of a ViT of timm",
            "options": "Options",
        }
        for name, what in expected.items():
            if wrong is None and name in ("weights", "proxy"):
                continue
            with pytest.raises(MaskCLIPError, match=f"^`{name}`: expected {what}.*, got ") as error:
                maskclip.load(**{"model": "emoji", name: wrong})
            assert "\n" not in str(error.value)
        with pytest.raises(MaskCLIPError, match=r"device .* is not to be had here"):
            maskclip.load("emoji", device=wrong)

    def test_files_may_be_paths(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text('base = "sclip"\n')
        segmenter = maskclip.load("emoji-vit", method=path, templates="plain", device="cpu")
        assert (segmenter.method.name, segmenter.method.kernels) == (
            "mine",
            METHODS["sclip"].kernels,
        )
        config = ModelConfig(name=path, weights=path, method=path)
        assert (config.name, config.weights, config.method) == (str(path),) * 3
        with pytest.raises(MaskCLIPError, match="no such model file"):
            maskclip.load(tmp_path / "none.pt")

    def test_refuses_unknown_templates_at_once(self, local):
        with pytest.raises(MaskCLIPError, match="published, open_clip, plain"):
            maskclip.load("tiny", device="cpu", templates="imagenet")

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_lower_precision_changes_labels_only_where_two_classes_are_as_good(
        self, make_segmenter, segmenters, family, precision, picture
    ):
        """As good: the cosines differ by no more than one rounding in that precision."""
        image = picture(32, 48)
        low = make_segmenter(family, precision=precision).segment(image, WORDS)
        maps = naive(segmenters[family, CLEAN], image, WORDS, [[0], [1], [2], [3]]).log()
        chosen = maps.gather(0, torch.from_numpy(low.labels).long()[None])[0]
        behind = (maps.amax(dim=0) - chosen) / 100  # the difference of cosines
        assert behind.max() <= torch.finfo(getattr(torch, precision)).eps / 2
        margins = maps.topk(2, dim=0).values.diff(dim=0).abs() / 100
        assert margins.median() > 0.01  # most labels could not be others


@pytest.mark.parametrize("model", ["emoji-rn", "emoji-vit"])
@pytest.mark.parametrize(
    "refinement", [{}, {"key_smoothing": 1.0, "prompt_denoising": 0.5}, {"refine": "surgery"}]
)
def test_bfloat16_gives_the_labels_of_float32(model, refinement):
    exact, fast = (
        maskclip.load(model, device="cpu", precision=precision, templates="plain")
        for precision in ("float32", "bfloat16")
    )
    words = Vocabulary.builtin("emoji")
    scenes = [Image.fromarray(draw_scene(seed, size=256).image) for seed in range(8)]
    same = [
        exact.segment(scene, words, **refinement).labels
        == fast.segment(scene, words, **refinement).labels
        for scene in scenes
    ]
    assert np.mean(same) >= 0.995


@pytest.mark.parametrize("model", ["emoji-rn", "emoji-vit"])
@torch.inference_mode()
def test_float32_gives_the_labels_of_the_plain_pipeline(model):
    """Folded and laid out for speed, pruned before enlarging: all K maps say the same."""
    fast = maskclip.load(model, device="cpu", precision="float32", templates="plain")
    clip, words = load_clip(model), Vocabulary.builtin("emoji")
    plain = DenseCLIP.of(clip)
    rows = fast.text_rows(words)
    for seed in range(3):
        image = draw_scene(seed, size=clip.short_side).image
        features = plain.encode(torch.from_numpy(image).permute(2, 0, 1)[None]).features
        maps = probabilities(similarity(features, rows), clip.temperature)
        maps = F.interpolate(maps, size=image.shape[:2], mode="bilinear")
        same = fast.segment(image, words, refine=()).labels == maps.argmax(dim=1)[0].numpy()
        assert same.mean() > 0.9999  # but for ties


class TestMemory:
    def test_what_is_encoded_does_not_keep_the_rest_of_its_batch(self, vit, picture):
        encoded = vit.encode([picture(40, 60, seed) for seed in range(4)], keys=True)
        for one in encoded:
            for part in (one.dense.features, one.dense.keys, one.encoded.guide):
                assert part.untyped_storage().nbytes() == part.nbytes

    def test_batches_are_halved_where_memory_is_short(self, vit, picture, monkeypatch):
        photos, sizes = [picture(40, 60, seed) for seed in range(4)], []
        plain, expected = photo_segmenter.read_maps, vit.segment(photos, WORDS)

        def small(seen, *arguments):
            sizes.append(len(seen))
            if len(seen) > 1:
                raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
            return plain(seen, *arguments)

        monkeypatch.setattr(photo_segmenter, "read_maps", small)
        for one, other in zip(vit.segment(photos, WORDS), expected, strict=True):
            same(one, other)
        assert sizes == [4, 2, 1, 1, 2, 1, 1]

    def test_an_image_that_is_too_large_alone_is_named(self, vit, picture, monkeypatch):
        def small(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(photo_segmenter, "read_maps", small)
        with pytest.raises(MaskCLIPError, match="an image of 60x40 px is too large for the memory"):
            vit.segment(picture(40, 60), WORDS)

    def test_maps_that_are_not_finite_are_an_error(self, vit, picture, monkeypatch):
        plain = photo_segmenter.read_maps

        def overflown(*arguments):
            found = plain(*arguments)
            found[0].maps[0, 0, 0, 0] = float("nan")
            return found

        monkeypatch.setattr(photo_segmenter, "read_maps", overflown)
        with pytest.raises(MaskCLIPError, match="not finite"):
            vit.segment(picture(40, 60), WORDS)


class TestRegions:
    def test_segments_of_a_folder_vote_on_photos_that_have_a_path(self, vit, picture, tmp_path):
        (tmp_path / "maps").mkdir()
        stripes = np.repeat(np.arange(1, 6), 6)[None].repeat(20, axis=0).astype(np.uint8)
        Image.fromarray(stripes).save(tmp_path / "maps" / "photo.png")
        photo = tmp_path / "photo.bmp"
        Image.fromarray(picture(20, 30)).save(photo)
        regions = str(tmp_path / "maps")
        found = vit.segment(photo, WORDS, regions=regions)
        expected = vit.segment(photo, WORDS).voted(stripes)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.scores, expected.scores)
        scored = vit.score(vit.encode(str(photo)), WORDS, regions=regions)
        np.testing.assert_array_equal(scored.labels, expected.labels)
        with pytest.raises(MaskCLIPError, match="this image has none: give its path"):
            vit.segment(picture(20, 30), WORDS, regions=regions)

    def test_superpixels_are_of_the_photo_as_the_network_sees_it(self, vit, picture):
        image = picture(60, 90)
        seen = network_input(Image.fromarray(image), (48, 72), vit.network)
        regions = enlarge(superpixels(seen.permute(1, 2, 0).numpy()), (60, 90))
        for options in ({"short_side": 48}, {"short_side": 48, "window": 32}):
            found = vit.segment(image, WORDS, regions="slic", **options)
            expected = vit.segment(image, WORDS, **options).voted(regions)
            np.testing.assert_array_equal(found.labels, expected.labels)

    def test_what_names_no_segments_is_reported(self):
        for wrong in ("", 3):
            with pytest.raises(MaskCLIPError, match="`regions`: expected slic, or a folder"):
                Options(regions=wrong)


class TestProxy:
    PROXY = "vit_tiny_patch16_224:random"

    def test_it_changes_features_and_is_part_of_the_fingerprint(self, picture, tmp_path):
        plain = maskclip.load("emoji-vit", device="cpu", templates="plain")
        by_proxy = maskclip.load("emoji-vit", device="cpu", templates="plain", proxy=self.PROXY)
        assert by_proxy.fingerprint.startswith(f"{plain.fingerprint}+")
        image = picture(60, 90)
        encoded = by_proxy.encode(image, short_side=64)
        kept = plain.encode(image, short_side=64)
        assert encoded.dense.features.shape == kept.dense.features.shape
        assert not torch.allclose(encoded.dense.features, kept.dense.features)
        for segmenter, other in ((plain, encoded), (by_proxy, kept)):
            with pytest.raises(MaskCLIPError, match="another model, or method"):
                segmenter.score(other, WORDS)
        found = by_proxy.segment([image, image], WORDS, short_side=64)
        same(found[1], by_proxy.score(encoded, WORDS))

    def test_networks_without_a_last_block_and_students_refuse(self):
        with pytest.raises(MaskCLIPError, match="this model is a ResNet"):
            maskclip.load("emoji", proxy="nobody_asks_for_this")
        with pytest.raises(MaskCLIPError, match="proxy belongs to CLIP"):
            task.refuse_settings_of_clip(ModelConfig(name="student.pth", proxy=self.PROXY))
