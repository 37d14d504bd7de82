from dataclasses import FrozenInstanceError, replace

import pytest

from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import BASELINE, CLEAN, PUBLISHED, Method, get_method


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
    assert (Method.CLEAN, Method.PUBLISHED) == (CLEAN, PUBLISHED)
    assert CLEAN != PUBLISHED


def test_methods_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        CLEAN.name = "other"
