import dataclasses
import json

import numpy as np
import pytest

from maskclip.core.palettes import class_colors, distinct_colors, voc_colors
from maskclip.core.vocabulary import Vocabulary, VocabularyError, builtin_names, describe

SIZES = {
    "voc20": 20,
    "voc21": 21,
    "context59": 59,
    "context60": 60,
    "context459": 459,
    "cocostuff171": 171,
    "cocoobject81": 81,
    "cityscapes19": 19,
    "ade150": 150,
    "car_color": 24,
    "car_brands": 23,
    "sports": 17,
    "batman": 7,
    "batman_ext": 26,
    "mickey": 7,
    "mario": 7,
    "gates": 7,
    "blur": 20,
}


class TestParse:
    def test_a_plain_line_prompts_its_own_name(self):
        vocabulary = Vocabulary.parse(["dog", "  red \t car "])
        assert vocabulary.names == ("dog", "red car")
        assert vocabulary.prompts == (("dog",), ("red car",))
        assert len(vocabulary) == 2

    def test_synonyms_replace_the_name_in_prompts(self):
        vocabulary = Vocabulary.parse(["person=man, woman ,child", "dog"])
        assert vocabulary.names == ("person", "dog")
        assert vocabulary.flat_prompts == ("man", "woman", "child", "dog")
        assert vocabulary.prompt_class == (0, 0, 0, 1)

    def test_a_dictionary_has_synonyms(self):
        groups = {"animal": ["dog", "cat"], "sky": "sky"}
        assert Vocabulary.parse(groups) == Vocabulary.parse(["animal=dog,cat", "sky"])

    def test_a_repeated_synonym_counts_once(self):
        assert Vocabulary.parse(["p=man,man"]).prompts == (("man",),)

    def test_names_differ_by_case(self):
        assert Vocabulary.parse(["Apple", "apple"]).names == ("Apple", "apple")

    @pytest.mark.parametrize("line", ["=man", "person=", "person=man,,child", "person=man,"])
    def test_a_missing_name_quotes_the_line(self, line):
        with pytest.raises(VocabularyError, match="a name is missing in") as caught:
            Vocabulary.parse(["dog", line])
        assert repr(line) in str(caught.value)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([], "no classes"),
            ([""], "empty class name"),
            (["dog", "   "], "empty class name"),
            (["dog", "cat", " dog "], r"'dog' is named twice \(classes 0 and 2\)"),
            (["hot dog", "hot  dog"], "'hot dog' is named twice"),
            ("dog", "one string"),
            ([5], "got 5"),
            ({0: "dog"}, "in quotes, got 0"),
            ({"dog": []}, "expected a list of words for the class 'dog'"),
            ({"dog": None}, "got None"),
            (5, "expected a list of names, got 5"),
            (["d\x00g"], "cannot be shown"),
        ],
    )
    def test_unusable_classes(self, lines, message):
        with pytest.raises(VocabularyError, match=message) as caught:
            Vocabulary.parse(lines)
        assert "\n" not in str(caught.value)

    def test_the_number_of_classes_is_limited(self):
        assert len(Vocabulary.parse(str(i) for i in range(65_535))) == 65_535
        with pytest.raises(VocabularyError, match="65,536 classes: at most 65,535"):
            Vocabulary.parse(str(i) for i in range(65_536))

    @pytest.mark.parametrize(
        "colors", [[(0, 0, 256)], [(-1, 0, 0)], [(0.5, 0, 0)], [(0, 0)], ["red"], []]
    )
    def test_wrong_colours(self, colors):
        with pytest.raises(VocabularyError, match="colour"):
            Vocabulary.parse(["dog"], colors=colors)


class TestValue:
    def test_equal_vocabularies_hash_equal(self):
        one, other = Vocabulary.parse(["dog", "cat"]), Vocabulary.parse(("dog", " cat"))
        assert one == other
        assert hash(one) == hash(other)
        assert one != Vocabulary.parse(["cat", "dog"])

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Vocabulary.parse(["dog"]).names = ("cat",)

    def test_survives_json(self):
        vocabulary = Vocabulary.parse(["person=man,woman", "dog"]).with_background(0.25)
        assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary

    @pytest.mark.parametrize("values", [{}, {"names": ["a"]}, {"surprise": 1}])
    def test_from_dict_refuses_other_dictionaries(self, values):
        with pytest.raises(VocabularyError, match="not the description of a vocabulary"):
            Vocabulary.from_dict(values)

    @pytest.mark.parametrize(
        ("count", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (300, np.uint16)]
    )
    def test_label_dtype_keeps_255_free(self, count, dtype):
        assert Vocabulary.parse(str(i) for i in range(count)).label_dtype is dtype

    def test_every_class_needs_prompts(self):
        with pytest.raises(VocabularyError, match="'dog' has no names to put into prompts"):
            Vocabulary(("dog",), ((),), ((1, 2, 3),))
        with pytest.raises(VocabularyError, match="prompts of 1 classes, got 0"):
            Vocabulary(("dog",), (), ((1, 2, 3),))
        with pytest.raises(VocabularyError, match="one string"):
            Vocabulary(("dog",), ("dog",), ((1, 2, 3),))

    def test_a_threshold_needs_a_background_and_another_class(self):
        with pytest.raises(VocabularyError, match="class 0, has no prompts"):
            Vocabulary(("dog",), (("dog",),), ((1, 2, 3),), threshold=0.5)
        with pytest.raises(VocabularyError, match="at least one other class"):
            Vocabulary(("background",), ((),), ((1, 2, 3),), threshold=0.5)


class TestBackground:
    animals = Vocabulary.parse(["dog", "cat"])

    def test_none_changes_nothing(self):
        assert self.animals.with_background(None) is self.animals
        assert not self.animals.has_background

    def test_by_threshold(self):
        vocabulary = self.animals.with_background(0.4)
        assert vocabulary.names == ("background", "dog", "cat")
        assert vocabulary.prompts == ((), ("dog",), ("cat",))
        assert vocabulary.colors == ((0, 0, 0), *self.animals.colors)
        assert vocabulary.threshold == 0.4
        assert vocabulary.prompt_class == (1, 2)
        assert vocabulary.has_background

    def test_by_words(self):
        vocabulary = self.animals.with_background(["sky", " blue  wall "])
        assert vocabulary.prompts[0] == ("sky", "blue wall")
        assert vocabulary.threshold is None
        assert vocabulary.has_background
        assert vocabulary.prompt_class == (0, 0, 1, 2)

    def test_a_rule_replaces_the_one_before(self):
        by_words = self.animals.with_background(["sky"])
        assert by_words.with_background(-0.5) == self.animals.with_background(-0.5)
        assert self.animals.with_background(0.1).with_background(["sky"]) == by_words

    @pytest.mark.parametrize("threshold", [1.0, -1.0, 2, float("nan"), float("inf"), True])
    def test_impossible_thresholds(self, threshold):
        with pytest.raises(VocabularyError, match="between -1 and 1"):
            self.animals.with_background(threshold)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["sky", "dog"], "'dog' is also one of the classes"),
            ([], "no words"),
            (["sky", " "], "empty"),
            ("sky", "one string"),
        ],
    )
    def test_unusable_words(self, words, message):
        with pytest.raises(VocabularyError, match=message):
            self.animals.with_background(words)

    def test_a_word_that_prompts_a_class_is_refused(self):
        with pytest.raises(VocabularyError, match="'man'"):
            Vocabulary.parse(["person=man"]).with_background(["man"])

    def test_another_class_called_background_is_refused(self):
        with pytest.raises(VocabularyError, match="called 'background' already"):
            Vocabulary.builtin("sports").with_background(0.5)


class TestTextFile:
    def test_comments_and_blank_lines_are_skipped(self, tmp_path):
        file = tmp_path / "Klassen für Tiere.txt"
        file.write_bytes("# animals\n\n dog\r\n  # more\nperson=man,Frau Müller\n".encode())
        vocabulary = Vocabulary.from_file(file)
        assert vocabulary == Vocabulary.parse(["dog", "person=man,Frau Müller"])

    def test_a_byte_order_mark_is_no_part_of_a_name(self, tmp_path):
        file = tmp_path / "classes.txt"
        file.write_bytes(b"\xef\xbb\xbfdog\n")
        assert Vocabulary.from_file(str(file)).names == ("dog",)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"dog\n\ncat=\n", "classes.txt: line 3: a name is missing in 'cat='"),
            (b"dog\n# x\ndog\n", "classes.txt: line 3: class 'dog' is already on line 1"),
            (b"# nothing\n", "classes.txt: no classes"),
            (b"", "classes.txt: no classes"),
            ("dög".encode("latin-1"), "classes.txt is not UTF-8"),
            ("dog\n".encode("utf-16-le"), "classes.txt is not UTF-8"),
        ],
    )
    def test_errors_name_the_file_and_line(self, tmp_path, content, message):
        file = tmp_path / "classes.txt"
        file.write_bytes(content)
        with pytest.raises(VocabularyError) as caught:
            Vocabulary.from_file(file)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere\.txt"):
            Vocabulary.from_file(tmp_path / "nowhere.txt")
        with pytest.raises(VocabularyError, match="got a folder"):
            Vocabulary.from_file(tmp_path)


class TestToml:
    def read(self, tmp_path, text):
        file = tmp_path / "classes.toml"
        file.write_text(text, encoding="utf-8")
        return Vocabulary.from_file(file)

    def test_all_keys(self, tmp_path):
        vocabulary = self.read(
            tmp_path,
            'description = "pets"\nclasses = ["dog", "cat=kitten,cat"]\n'
            'colors = ["#ff0000", [1, 2, 3]]\nbackground = ["sky", "wall"]\n',
        )
        assert vocabulary.names == ("background", "dog", "cat")
        assert vocabulary.prompts == (("sky", "wall"), ("dog",), ("kitten", "cat"))
        assert vocabulary.colors == ((0, 0, 0), (255, 0, 0), (1, 2, 3))

    def test_a_number_is_a_threshold(self, tmp_path):
        vocabulary = self.read(tmp_path, 'classes = ["dog"]\nbackground = 0.3\n')
        assert vocabulary.threshold == 0.3

    def test_palettes(self, tmp_path):
        voc = self.read(tmp_path, 'classes = ["dog", "cat"]\npalette = "voc"')
        assert voc.colors == ((128, 0, 0), (0, 128, 0))
        distinct = self.read(tmp_path, 'classes = ["dog", "cat"]\npalette = "distinct"')
        assert distinct.colors == distinct_colors(2)
        assert self.read(tmp_path, 'classes = ["sky"]').colors == class_colors(["sky"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("classes = [", "not valid TOML"),
            ("classes = [1979-05-27]", "got datetime.date"),
            ('clases = ["dog"]', "unknown key 'clases': the keys are classes, description"),
            ('description = "x"', "list of classes is missing"),
            ('classes = "dog"', "classes should look like"),
            ("classes = [1]", "got 1"),
            ("classes = []", "no classes"),
            ('classes = ["dog"]\ncolors = ["#12345"]', "expected a colour"),
            ('classes = ["dog"]\ncolors = []', "one colour per class"),
            ('classes = ["dog"]\npalette = "pink"', "unknown palette 'pink'"),
            ('classes = ["dog"]\npalette = "voc"\ncolors = ["#000000"]', "keep one of them"),
            ('classes = ["dog"]\nbackground = "sky"', "one string"),
            ('classes = ["dog"]\nbackground = 3', "between -1 and 1"),
        ],
    )
    def test_errors_name_the_file(self, tmp_path, text, message):
        with pytest.raises(VocabularyError, match=message) as caught:
            self.read(tmp_path, text)
        assert "classes.toml" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestBuiltin:
    @pytest.mark.parametrize(("name", "count"), SIZES.items())
    def test_sizes(self, name, count):
        assert len(Vocabulary.builtin(name)) == count

    def test_all_are_listed_described_and_usable(self):
        assert set(builtin_names()) >= {*SIZES, "emoji"}
        for name in builtin_names():
            assert len(describe(name)) > 10
            vocabulary = Vocabulary.builtin(name)
            assert len(set(vocabulary.colors)) == len(vocabulary)

    def test_an_unknown_name_gets_the_nearest_and_all(self):
        with pytest.raises(
            VocabularyError, match=r"did you mean .*voc21.*There are: .*sports"
        ) as e:
            Vocabulary.builtin("VOC-21")
        assert "'VOC-21'" in str(e.value)
        with pytest.raises(VocabularyError, match="no built-in vocabulary"):
            describe("../secret")

    def test_names_are_those_of_the_published_prompts(self):
        assert Vocabulary.builtin("voc20").names[::19] == ("airplane", "tv monitor")
        assert "motorbike" in Vocabulary.builtin("context59").names
        assert Vocabulary.builtin("batman_ext").names[4:6] == ("Robin", "Alfred Pennyworth")

    def test_voc_background_is_what_context_calls_its_surroundings(self):
        voc20, voc21 = Vocabulary.builtin("voc20"), Vocabulary.builtin("voc21")
        assert voc21.names == ("background", *voc20.names)
        context = {*Vocabulary.builtin("context59").names}
        assert len(context & {*voc20.names}) == 19  # the 20th, dining table, is "table" there
        assert {*voc21.prompts[0]} == context - {*voc20.names} - {"table"}

    def test_context_background_is_the_rest_of_the_459_names(self):
        context60 = Vocabulary.builtin("context60")
        every = {*Vocabulary.builtin("context459").names}
        assert {*context60.prompts[0]} == every - {*context60.names}
        assert len(context60.prompts[0]) == 400

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("voc20", 30),
            ("voc21", 56),
            ("context59", 59),
            ("context60", 60),
            ("cocoobject81", 113),
            ("cocostuff171", 171),
            ("cityscapes19", 19),
            ("ade150", 150),
        ],
    )
    def test_every_data_set_has_the_words_of_sclip(self, name, words):
        own, theirs = Vocabulary.builtin(name), Vocabulary.builtin(f"{name}-sclip")
        assert (theirs.names, theirs.colors) == (own.names, own.colors)
        assert len(theirs.flat_prompts) == words
        if name in ("voc21", "cocoobject81"):
            assert len(theirs.prompts[0]) == 26

    def test_the_words_of_sclip_keep_their_spellings(self):
        voc21 = Vocabulary.builtin("voc21-sclip")
        words = dict(zip(voc21.names, voc21.prompts, strict=True))
        assert words["airplane"] == ("aeroplane",)
        assert words["boat"] == ("ship",)
        assert words["person"][1] == "person in shirt"
        assert len(words["person"]) == 7
        assert words["tv monitor"][-1] == "screen"
        assert Vocabulary.builtin("context60-sclip").prompts[0] == ("background",)
        stuff = Vocabulary.builtin("cocostuff171-sclip").flat_prompts
        assert stuff[9] == "trafficlight"
        assert {"wall-other", "floor-marble", "desk-stuff", "window-blind"} <= {*stuff}
        objects = Vocabulary.builtin("cocoobject81-sclip").prompts
        assert ("bed" in objects[0], objects[60]) == (True, ("bed",))  # as published
        assert objects[1][-1] == "body"

    def test_objects_stand_before_what_stuff_is_called(self):
        stuff = Vocabulary.builtin("cocostuff171").names
        objects = Vocabulary.builtin("cocoobject81")
        assert objects.names == ("background", *stuff[:80])
        assert objects.prompts[0] == stuff[80:]

    def test_voc_colours(self):
        voc21 = Vocabulary.builtin("voc21")
        assert voc21.colors == voc_colors(21)
        assert voc21.colors[1:] == Vocabulary.builtin("voc20").colors
        assert voc21.colors[15] == (192, 128, 128)  # person
        assert voc21.colors[20] == (0, 64, 128)  # tv monitor

    def test_cityscapes_colours(self):
        cityscapes = Vocabulary.builtin("cityscapes19")
        color = dict(zip(cityscapes.names, cityscapes.colors, strict=True))
        assert color["road"] == (128, 64, 128)
        assert color["car"] == (0, 0, 142)
        assert color["person"] == (220, 20, 60)


class TestPalettes:
    @pytest.mark.parametrize("count", [0, 1, 2, 171, 256, 257, 65_535])
    def test_distinct_colours_are_distinct_and_never_black(self, count):
        colors = distinct_colors(count)
        assert len(colors) == len(set(colors)) == count
        assert all(max(color) > 60 for color in colors)

    def test_a_shorter_list_begins_a_longer_one(self):
        assert distinct_colors(1000)[:300] == distinct_colors(300)
        assert distinct_colors(300)[:20] == distinct_colors(20)

    def test_the_first_colours_are_far_apart(self):
        colors = np.array(distinct_colors(20), dtype=float)
        apart = np.linalg.norm(colors[:, None] - colors[None], axis=2)
        assert apart[~np.eye(20, dtype=bool)].min() > 50

    def test_voc_colours_do_not_repeat(self):
        assert voc_colors(3) == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
        assert voc_colors(256)[255] == (224, 224, 192)
        assert len(set(voc_colors(1000))) == 1000


def test_half_a_surrogate_pair_is_no_name():
    with pytest.raises(VocabularyError, match=r"'a\\udcff' has a character that cannot be"):
        Vocabulary.parse(["a\udcff"])


def test_a_class_file_says_which_score_classes_need(tmp_path):
    path = tmp_path / "classes.toml"
    path.write_text(
        'classes = ["dog", "grass"]\nbackground = ["sky"]\nconfidence = { dog = 0.6 }\n'
    )
    words = Vocabulary.from_file(path)
    assert words.confidence == (0.0, 0.6, 0.0)
    assert Vocabulary.from_dict(words.to_dict()) == words
    assert "confidence" not in Vocabulary.parse(["dog"]).to_dict()  # as before there were any


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("confidence = { dgo = 0.6 }", r"a confidence for 'dgo', which is no class"),
        ("confidence = { dog = 1.5 }", r"expected a confidence, a score in \[0, 1\], got 1.5"),
        ("confidence = 0.5", r"confidence should look like confidence = \{ dog = 0.6 \}"),
    ],
)
def test_a_confidence_that_is_none_is_refused(line, why, tmp_path):
    path = tmp_path / "classes.toml"
    path.write_text(f'classes = ["dog", "grass"]\n{line}\n')
    with pytest.raises(VocabularyError, match=why):
        Vocabulary.from_file(path)


@pytest.mark.parametrize("background", [None, 0.3, ["sky", 'a "wall"']])
def test_what_is_written_as_toml_is_read_as_the_same(background, tmp_path):
    words = Vocabulary.parse({"dog": ["dog"], "person": ["man", "woman ä"], "a, b": ["a, b"]})
    words = words.with_background(background).with_confidence({"dog": 0.25})
    path = tmp_path / "classes.toml"
    path.write_text(words.to_toml("what is looked for"), encoding="utf-8")
    assert Vocabulary.from_file(path) == words


@pytest.mark.parametrize("classes", [{"a=b": ["a"]}, {"dog": ["a, b", "c"]}])
def test_what_no_line_can_say_is_not_written(classes):
    with pytest.raises(VocabularyError, match="cannot be written in a line"):
        Vocabulary.parse(classes).to_toml()
