from dataclasses import FrozenInstanceError, replace

import pytest

from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import BASELINE, CLEAN, PUBLISHED, Middle
from maskclip.core.methods import METHODS, SOURCES, get_method


@pytest.mark.parametrize(
    ("wanted", "method"),
    [("clean", CLEAN), ("published", PUBLISHED), ("baseline", BASELINE), (PUBLISHED, PUBLISHED)],
)
def test_methods_by_name(wanted, method):
    assert get_method(wanted) is method


def test_a_method_of_ones_own_passes():
    mine = replace(CLEAN, name="mine", residual=True)
    assert get_method(mine) is mine


@pytest.mark.parametrize("name", ["", "Clean", "paper"])
def test_unknown_names_list_the_known(name):
    with pytest.raises(MaskCLIPError, match="clean, published, baseline"):
        get_method(name)


def test_both_are_attributes_of_the_class():
    assert (METHODS["clean"], METHODS["published"]) == (CLEAN, PUBLISHED)
    assert CLEAN != PUBLISHED


def test_methods_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        CLEAN.name = "other"


def test_every_method_says_where_it_is_from():
    assert SOURCES.keys() == METHODS.keys()
    assert all(method.name == name for name, method in METHODS.items())


def test_a_file_changes_fields_of_another_method(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "naclip"\nwindow = 3\nmlp = true\n'
        "middle = { blocks = [2, 3], weight = 1 }\n[kernels]\nkk = 0.8\nqq = 0.2\n"
    )
    expected = replace(
        METHODS["naclip"],
        name="mine",
        window=3.0,
        mlp=True,
        kernels=(("kk", 0.8), ("qq", 0.2)),
        middle=Middle(blocks=(2, 3), weight=1.0),
    )
    assert get_method(str(path)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw = 1", r"unknown field windw \(did you mean window\?\): the fields are name, "),
        ("window = 'wide'", "window: expected a number, got 'wide'"),
        ("window = -1", "window: expected a number between 0 and 10000, got -1"),
        ("window = 1e300", "window: expected a number between 0 and 10000"),
        ("temperature = 0", "temperature: expected a number above 0"),
        ("temperature = -100", "temperature: expected a number above 0"),
        ("layer_norm_eps = -1.0", "layer_norm_eps: expected a number above 0"),
        ("std = [0.2, 0, 0.2]", "std: expected a number above 0"),
        ("unit_iterations = 1000000000", "unit_iterations: expected 0 to 100"),
        ("unit_temperature = 0.0", "unit_temperature: expected a number above 0"),
        ("kernels = { qq = 0.0 }", "kernels: expected names with weights other than 0"),
        ("middle = { blocks = [1000000000] }", "middle.blocks: expected some"),
        ("base = 'scclip'\npurification = { threshold = 5.0 }", "threshold: expected .* -1 and 1"),
        ("base = 'scclip'\npurification = { stages = [5, 3] }", "stages first and last"),
        ("window = nan", "window: expected a number"),
        ("kernels = {}", "kernels: expected names with weights .*at least one"),
        ("kernels = ['kk']", "kernels: expected a list of .*, got "),
        ("blocks = 0", "blocks: expected at least 1, got 0"),
        ("blocks = true", "blocks: expected a whole number, got True"),
        ("position_filter = 'cubic'", "position_filter: expected 'bicubic' or "),
        ("middle = 3", "middle: expected a table, got 3"),
        ("middle = { blocks = [] }", "middle.blocks: expected some, counted from 0"),
        ("middle = { weigth = 1 }", "unknown field middle.weigth"),
        ("purification = { share = 2 }", "purification.share: expected a number between 0 and 1"),
        ("base = 'nothing'", "base: expected one of clean, "),
        ("base = [", "is not valid TOML"),
    ],
)
def test_a_file_that_is_no_method_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(MaskCLIPError, match=message) as caught:
        get_method(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
