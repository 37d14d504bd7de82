"""Everyday words of the preview `photo`: their classes of ImageNet, and what is refused."""

import subprocess
import sys
from collections import Counter

import pytest

from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.imagenet.words import UnknownWordError, ids, ids_of, known


class TestTable:
    def test_it_has_the_words_of_everyday_life_and_each_has_classes(self):
        assert len(known()) == len(set(known())) >= 230
        for classes in ids_of(known()):
            assert classes == tuple(sorted(set(classes)))
            assert classes
            assert 0 <= classes[0] <= classes[-1] < 1000

    def test_it_has_every_class_of_voc(self):
        names = Vocabulary.builtin("voc20").names
        taken = Counter(index for classes in ids_of(names) for index in classes)
        assert max(taken.values()) == 1

    def test_the_vocabulary_photo_has_words_of_it_that_share_no_class(self):
        names = Vocabulary.builtin("photo").names
        assert 150 <= len(names) <= 200
        assert set(names) <= set(known())
        taken = Counter(index for classes in ids_of(names) for index in classes)
        assert [index for index, count in taken.items() if count > 1] == []

    @pytest.mark.parametrize(
        ("word", "parts"),
        [
            ("animal", ["dog", "bird", "fish", "insect", "spider", "crab"]),
            ("vehicle", ["car", "bus", "truck", "airplane", "boat", "train", "bicycle"]),
            ("furniture", ["chair", "sofa", "table", "bed"]),
            ("food", ["fruit", "vegetable", "pizza", "ice cream"]),
            ("building", ["church", "castle", "house"]),
            ("boat", ["sailboat", "canoe"]),
            ("bird", ["owl", "duck", "parrot", "penguin"]),
        ],
    )
    def test_words_above_others_have_all_of_theirs(self, word, parts):
        for part in parts:
            assert set(ids(part)) <= set(ids(word))

    @pytest.mark.parametrize("word", ["grass", "sky", "wall", "giraffe", "bat", "kite", "ring"])
    def test_what_imagenet_does_not_have_is_unknown(self, word):
        with pytest.raises(UnknownWordError):
            ids(word)


class TestSpelling:
    @pytest.mark.parametrize(
        ("spellings", "classes"),
        [
            (
                ["TV monitor", "tvmonitor", "tv-monitors", " tv_monitor "],
                (664, 782, 851),
            ),
            (["plane", "aeroplane", "Airplanes", "aircraft"], (404, 895, 908)),
            (["dining table", "diningtable", "Tables"], (532,)),
            (["couch", "couches", "SOFAS", "sofá"], (831,)),
            (["grey wolf", "gray wolves", "wolf"], (269, 270, 271)),
            (["knife", "knives"], (499, 623)),
            (["butterflies"], (321, 322, 323, 324, 325, 326)),
            (["geese"], (99,)),
            (["mouse", "mice", "computer mouse"], (673,)),
        ],
    )
    def test_one_word_has_many(self, spellings, classes):
        assert {word: ids(word) for word in spellings} == dict.fromkeys(spellings, classes)

    def test_glasses_are_not_the_plural_of_glass(self):
        assert ids("glasses") == ids("sunglasses") == (836, 837)
        assert not {836, 837} & {*ids("glass")}

    def test_imagenets_own_names_are_words_too(self):
        assert ids("golden retriever") == ids("Golden Retrievers") == (207,)
        assert ids("kite (bird of prey)") == (21,)
        assert ids("hourglass") == (604,)


class TestUnknown:
    def test_one_line_names_the_word_and_the_nearest_known_ones(self):
        with pytest.raises(UnknownWordError, match=r"'bicicle' \(did you mean bicycle") as caught:
            ids("bicicle")
        assert isinstance(caught.value, MaskCLIPError)
        assert "maskclip vocabularies photo" in str(caught.value)

    @pytest.mark.parametrize(
        ("word", "meant"), [("elefant", "elephant"), ("Zebar", "zebra"), ("unbrella", "umbrella")]
    )
    def test_a_letter_or_two_are_a_misspelling(self, word, meant):
        with pytest.raises(UnknownWordError, match=rf"\(did you mean .*{meant}"):
            ids(word)

    @pytest.mark.parametrize("word", ["giraffe", "kite", "bat", "moon", "cupola", "ring"])
    def test_other_words_that_are_spelt_a_little_alike_are_not(self, word):
        with pytest.raises(UnknownWordError) as caught:
            ids(word)
        assert "did you mean" not in str(caught.value)
        assert "background" not in str(caught.value)

    @pytest.mark.parametrize("word", ["sky", "Grass", "trees", "wall", "road", "street", "rivers"])
    def test_for_the_background_a_threshold_is_named(self, word):
        with pytest.raises(UnknownWordError) as caught:
            ids_of(["dog", word], threshold=True)
        assert "did you mean" not in str(caught.value)
        assert f"such as {word.lower()}, leave" in str(caught.value)
        assert "`background=0.5`" in str(caught.value)
        with pytest.raises(UnknownWordError, match=f"such as {word.lower()}, leave") as caught:
            ids_of(["dog", word])  # as in a training, which has no threshold
        assert "`background" not in str(caught.value)

    def test_one_line_names_all_that_are_unknown(self):
        with pytest.raises(UnknownWordError) as caught:
            ids_of(["dog", "grass", "sky", "grass", ""])
        message = str(caught.value)
        assert "\n" not in message
        assert "'dog'" not in message
        assert message.count("'grass'") == message.count("'sky'") == message.count("''") == 1

    def test_very_many_are_counted(self):
        with pytest.raises(UnknownWordError, match="and 22 more") as caught:
            ids_of([f"thing {index}" for index in range(30)])
        assert len(str(caught.value)) < 2000


def test_words_need_neither_torch_nor_open_clip():
    code = (
        "import sys; from maskclip.imagenet.words import ids; ids('dog'), ids('hourglass');"
        "sys.exit(len({'torch', 'open_clip', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
