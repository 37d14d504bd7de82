"""Files of classes of other tools are read as what they are, or refused with the line."""

import json
import random
import warnings

import pytest

from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.vocabulary import Vocabulary, VocabularyError


def read(tmp_path, name, content):
    """Return the vocabulary of a file, and what it warns of."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MaskCLIPWarning)
        vocabulary = Vocabulary.from_file(tmp_path / name)
    return vocabulary, [str(warning.message) for warning in caught]


DOG_AND_CAT = {
    "yolo": ("data.yaml", 'train: images\nval: images\nnames:\n  0: "dog"\n  1: "cat"\n'),
    "yolo, a list": ("data.yaml", "nc: 2\nnames: ['dog', 'cat']\n"),
    "yolo, a list of lines": ("data.yml", "names:\n- dog\n- cat\nnc: 2\n"),
    "yolo, as text": ("classes.txt", "names:\n  0: dog\n  1: cat\n"),
    "yolo, out of order": ("data.yaml", "names: {1: cat, 0: dog}"),
    "json": ("names.json", '["dog", "cat"]'),
    "json, as text": ("names.txt", '\n["dog",\n "cat"]\n'),
    "json by id": ("names.json", '{"0": "dog", "1": "cat"}'),
    "json by name": ("names.json", '{"cat": 1, "dog": 0}'),
    "json under a key": ("names.json", '{"classes": ["dog", "cat"], "version": 3}'),
    "model card": ("config.json", '{"id2label": {"0": "dog", "1": "cat"}, "hidden": 3}'),
    "coco": ("a.json", '{"categories": [{"id": 1, "name": "cat"}, {"id": 0, "name": "dog"}]}'),
    "python": ("names.txt", "['dog', 'cat']"),
    "quoted": ("names.txt", "'dog',\n'cat',\n"),
    "quoted on one line": ("names.txt", '"dog", "cat"'),
    "commas at the ends": ("names.txt", "dog,\ncat,\n"),
    "bullets": ("names.txt", "- dog\n- cat\n"),
    "from 0": ("labels.txt", "0: dog\n1: cat\n"),
    "from 0 with spaces": ("labels.txt", "0 dog\n1 cat\n"),
    "from 0 with points": ("labels.txt", "0. dog\n1. cat\n"),
    "number last": ("labels.txt", "dog: 0\ncat: 1\n"),
    "number and comma": ("labels.txt", "0,dog\n1,cat\n"),
    "tabs": ("labels.txt", "0\tdog\n1\tcat\n"),
    "csv": ("classes.csv", "id,name\n0,dog\n1,cat\n"),
    "csv of a spreadsheet": ("classes.csv", "\ufeffid;name;more\r\n0;dog;x\r\n1;cat;y\r\n"),
    "csv of names": ("classes.csv", "name\ndog\ncat\n"),
    "csv of names, no header": ("classes.csv", "dog\ncat\n"),
    "csv, quoted": ("classes.csv", '"id","class"\n"0","dog"\n"1","cat"\n'),
    "tsv": ("classes.tsv", "name\tcount\ndog\t12\ncat\t3\n"),
    "toml, as text": ("classes.txt", 'classes = ["dog", "cat"]\n'),
    "utf-16": ("classes.txt", "dog\r\ncat\r\n".encode("utf-16")),
}


@pytest.mark.parametrize("name", DOG_AND_CAT)
def test_files_of_other_tools_are_read_as_what_they_are(tmp_path, name):
    vocabulary, warned = read(tmp_path, *DOG_AND_CAT[name])
    assert vocabulary == Vocabulary.parse(["dog", "cat"])
    assert not warned


COLORED = {
    "cvat": ("labelmap.txt", "# label:color_rgb:parts:actions\ndog:255,0,0::\ncat:0,0,255::\n"),
    "cvat's labels": (
        "labels.json",
        '[{"name": "dog", "color": "#ff0000"}, {"name": "cat", "color": "#0000ff"}]',
    ),
    "coco": (
        "panoptic.json",
        '{"categories": [{"id": 0, "name": "dog", "color": [255, 0, 0]}, '
        '{"id": 1, "name": "cat", "color": [0, 0, 255]}]}',
    ),
    "camvid": ("class_dict.csv", "name,r,g,b\ndog,255,0,0\ncat,0,0,255\n"),
    "camvid, no header": ("class_dict.csv", "dog,255,0,0\ncat,0,0,255\n"),
    "hex": ("classes.csv", "id;name;colour\n0;dog;#ff0000\n1;cat;#0000ff\n"),
    "hex, no header": ("classes.txt", "dog;#ff0000\ncat;#0000ff\n"),
}


@pytest.mark.parametrize("name", COLORED)
def test_colours_are_kept(tmp_path, name):
    vocabulary, warned = read(tmp_path, *COLORED[name])
    assert vocabulary == Vocabulary.parse(["dog", "cat"], colors=[(255, 0, 0), (0, 0, 255)])
    assert not warned


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_scores_that_only_toml_may_have_are_refused(tmp_path, name):
    with pytest.raises(VocabularyError, match="only a TOML file of classes may have one"):
        read(tmp_path, name, '{"classes": ["dog", "cat"], "confidence": {"dog": 0.5}}')


def test_a_table_of_synonyms_is_classes_with_synonyms(tmp_path):
    table = "Idx\tRatio\tName\n0\t0.15\tdog, domestic dog\n1\t0.10\tcat\n"
    vocabulary, _ = read(tmp_path, "objectInfo150.txt", table)
    assert vocabulary == Vocabulary.parse(["dog=dog,domestic dog", "cat"])


def test_a_dictionary_of_synonyms_is_classes_with_synonyms(tmp_path):
    vocabulary, _ = read(tmp_path, "a.json", '{"animal": ["dog", "cat"], "sky": ["sky"]}')
    assert vocabulary == Vocabulary.parse(["animal=dog,cat", "sky"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", "0: unlabeled\n1: dog\n2: cat\n", "'unlabeled' left out, .*'dog', there 1"),
        ("numbered.txt", "1. dog\n2. cat\n", "'dog', there 1, is 0, and so on"),
        ("a.json", '{"categories": [{"id": 9, "name": "dog"}, {"id": 90, "name": "cat"}]}', "9"),
        ("labelmap.txt", "# l\nbackground:0,0,0::\ndog:9,9,9::\ncat:8,8,8::\n", "black is what"),
        ("objectInfo.txt", "Idx\tName\n1\tdog\n2\tcat\n", "there 1, is 0"),
    ],
)
def test_numbers_that_are_not_the_labels_are_reported(tmp_path, name, content, message):
    vocabulary, warned = read(tmp_path, name, content)
    assert vocabulary.names == ("dog", "cat")
    assert len(warned) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(warned[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "__ignore__\n_background_\ndog\ncat\n"),  # as labelme has it
        ("labels.json", '["_background_", "dog", "cat"]'),
        ("names.txt", "0: _background_\n1: dog\n2: cat\n"),
    ],
)
def test_names_in_underscores_are_no_classes(tmp_path, name, content):
    vocabulary, warned = read(tmp_path, name, content)
    assert vocabulary.names == ("dog", "cat")
    assert len(warned) == 1
    assert "_background_' left out, which is no class; " in warned[0]
    assert "'dog'" in warned[0]
    assert "is 0, and so on" in warned[0]


def test_the_names_that_are_displayed_are_those_of_a_label_map(tmp_path):
    items = """# of TensorFlow
item {
  name: "/m/0bt9lr"
  id: 1
  display_name: "dog {small}"
}
item: { id: 2 name: 'cat' }
"""
    vocabulary, warned = read(tmp_path, "map.txt", items)
    assert vocabulary.names == ("dog {small}", "cat")
    assert len(warned) == 1
    assert "there 1, is 0" in warned[0]


@pytest.mark.parametrize(
    "content", ["background:9,0,0::\ndog:1,1,1::\n", "name,color\nbackground,#000000\ndog,#010101"]
)
def test_other_backgrounds_than_cvats_are_classes(tmp_path, content):
    vocabulary, warned = read(tmp_path, "labelmap.txt" if "::" in content else "a.csv", content)
    assert vocabulary.names == ("background", "dog")
    assert not warned


def test_names_of_any_words_stay(tmp_path):
    lines = ["a 50:50 mix", "dog", "person=man,woman", "7 dwarfs", "it's", "x; y", "O'Neill's"]
    vocabulary, warned = read(tmp_path, "classes.txt", "\n".join(lines))
    assert vocabulary == Vocabulary.parse(lines)
    assert not warned


def test_a_comma_in_a_name_is_reported(tmp_path):
    vocabulary, warned = read(tmp_path, "classes.txt", "dog\nbed, cot\n")
    assert vocabulary.names == ("dog", "bed, cot")
    assert warned == [
        "line 2 of the classes: 'bed, cot' is one class; for synonyms, write 'bed=bed, cot'"
    ]


CRAFTED = {
    "one line of names": ("a.txt", "dog, cat, grass", "line 1: .* looks like several classes"),
    "csv of one row": ("a.csv", "dog,cat,grass", "line 1: .*which column has the names"),
    "a comment after a name": (
        "a.txt",
        "dog\ncat  # pet",
        "line 2: 'cat  # pet' looks like .* comm",
    ),
    "a comment after a number": ("a.txt", "0: dog # pet\n1: cat", "line 1: .* a comment"),
    "a torn label map": (
        "a.pbtxt",
        "item { id: 1 name: 'dog' }\nitem {",
        "line 1: .* like a table",
    ),
    "a label map without names": ("a.pbtxt", "item { id: 1 }", "expected a list of names"),
    "an item among names": ("a.txt", 'item { name: "dog" }\ncat', "line 1: .* looks like a table"),
    "partly numbered": ("a.txt", "dog\n2: cat", "line 2: '2: cat' looks numbered"),
    "partly quoted": ("a.txt", 'dog\n"cat"', "line 2: .* looks quoted"),
    "partly tabbed": ("a.txt", "dog\ncat\t3", "line 2: .* looks like a table"),
    "uneven table": ("a.csv", "id,name\n0,dog\n1,cat,x,y", "line 3: .* a row of a table"),
    "two texts": ("a.csv", "dog,pet\ncat,pet\n", "which column has the names is not clear"),
    "a number twice": ("a.json", '{"dog": 0, "cat": 0}', "two classes have the number 0"),
    "a name twice": ("a.json", '["dog", "dog"]', "class 'dog' is already there"),
    "a name twice in lines": ("a.txt", "dog\n\ndog", "line 3: .*already on line 1"),
    "xml": ("a.xml", '<View><Label value="dog"/></View>', "looks like XML"),
    "json of a number": ("a.json", "3", "expected a list of names"),
    "json of lists": ("a.json", '[["dog"]]', "expected a list of names"),
    "json of nulls": ("a.json", "[null, null]", "expected a list of names"),
    "json of empty synonyms": ("a.json", '{"animal": []}', "expected a list of words for the"),
    "json of groups": ("a.json", '{"animal": [{"dog": []}]}', "expected a class name in quotes"),
    "json of names that are none": ("a.json", '[{"name": 3}]', "class name in quotes, got 3"),
    "json of nested names": ("a.json", '[{"name": {"name": []}}]', "class name in quotes"),
    "json of a bad colour": ("a.json", '[{"name": "dog", "color": "red"}]', "expected a colour"),
    "empty json": ("a.json", "", "is not valid JSON"),
    "empty list": ("a.json", "[]", "no classes"),
    "empty dictionary": ("a.json", "{}", "expected a list of names"),
    "broken json": ("a.json", '["dog", ', "is not valid JSON"),
    "deep json": ("a.json", "[" * 10**6, "nested more than 100 deep"),
    "long number": ("a.json", "[" + "1" * 10**5 + "]", "thousands of digits"),
    "long numbers as names": ("a.json", json.dumps({"9" * 5000: "dog"}), "expected a list"),
    "surrogates": ("a.json", '["dog\\ud800"]', r"shown, \\ud800"),
    "noncharacter": ("a.json", '["dog\\uffff"]', r"shown, \\uffff"),
    "yaml of python": ("a.yaml", "!!python/object/apply:os.system {a: b}", "list of names"),
    "yaml of aliases": ("a.yaml", "a: &a [x]\nnames: [*a, *a]", "expected a list of names"),
    "yaml in itself": ("a.yaml", "names: &a [*a]", "is not valid YAML"),
    "deep yaml": ("a.yaml", "names: " + "[" * 1500, "nested too deeply"),
    "yaml without names": ("a.yaml", "train: images\nnc: 2\n", "expected a list of names"),
    "large yaml": ("a.yaml", "names: [" + "a," * 300_000, "more than 524,288 characters"),
    "broken yaml": ("a.yaml", "names: [a", "is not valid YAML"),
    "toml of a date": ("a.toml", 'classes = ["a"]\nbackground = 2020-01-01', "got datetime.date"),
    "toml of dates": ("a.toml", "classes = [2020-01-01]", "in quotes, got datetime.date"),
    "toml of tables": ("a.toml", 'classes = ["a"]\nbackground = {b = 1}', "got {'b': 1}"),
    "toml of a long number": ("a.toml", f'classes = ["a"]\nbackground = {"9" * 5000}', "digits"),
    "toml of a hex number": ("a.toml", f'classes = ["a"]\nbackground = 0x{"f" * 99}', "64 bits"),
    "toml of truth": ("a.toml", 'classes = ["a"]\nbackground = true', "between -1 and 1"),
    "toml of nan": ("a.toml", 'classes = ["a"]\nbackground = nan', "between -1 and 1"),
    "toml of nested names": ("a.toml", "classes = [[[[]]]]", "class name in quotes"),
    "toml of a nested key": ("a.toml", ".".join("a" * 200_000) + " = 1", "more than 32 dots"),
    "toml of a palette": ("a.toml", 'classes = ["a"]\npalette = [1]', "unknown palette"),
    "toml of colours": ("a.toml", 'classes = ["a"]\ncolors = [[1, 2, inf]]', "expected a colour"),
    "toml of an unknown key": ("a.toml", f'"\\u001b{"k" * 9999}" = 1', r"unknown key '\\x1bk"),
    "escape": ("a.txt", "dog\x1b[2J\n", r"line 1: .*\\x1b"),
    "bidi": ("a.txt", "dog\u202e\n", r"line 1: .*\\u202e"),
    "zero width": ("a.txt", "dog\u200b\n", r"line 1: .*\\u200b"),
    "nothing": ("a.txt", "\n\n# dog\n", "no classes"),
    "zero bytes": ("a.txt", b"dog\0\n", "zero bytes"),
    "an image": ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text"),
    "too many": ("a.txt", "\n".join(map(str, range(65_536))), "65,536 classes"),
    "json of one key twice": ("a.json", '{"classes": ["a"], "classes": ["b"]}', "is there twice"),
    "accents apart": ("a.txt", "caf\u00e9\ncafe\u0301\n", "is already on line 1"),
    "a long name": ("a.txt", "a" * 10**6, "has 1,000,000 characters: expected at most 1,000"),
    "csv of a huge cell": ("a.csv", "0,dog\n1," + "x" * 200_000, "line 2: not a row of a table"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_one_line(tmp_path, name, tally):
    file, content, message = CRAFTED[name]
    with pytest.raises(VocabularyError, match=message) as caught:
        read(tmp_path, file, content)
    line = str(caught.value)
    assert file in line
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 600
    tally("crafted class files", 1)


def test_mutated_files_are_classes_or_one_line(tmp_path, tally):
    """Bytes are changed, cut, repeated and put in: never another error, never a long one."""
    rng = random.Random(0)
    sound = [(file, c if isinstance(c, bytes) else c.encode()) for file, c in DOG_AND_CAT.values()]
    count, longest, lines = 300, 0, 0
    pieces = [b"[", b"{", b'"', b"\t", b"=", b",", b":", b"\n", b"\xff", b"9" * 50]
    for _ in range(count):
        file, content = rng.choice(sound)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(content))
            content = content[:at] + rng.choice(pieces) + content[at + rng.randint(0, 2) :]
        try:
            read(tmp_path, file, content)
        except VocabularyError as error:
            longest = max(longest, len(str(error)))
            lines = max(lines, len(str(error).splitlines()))
    assert lines == 1
    assert longest < 600
    tally("mutated class files", count)
