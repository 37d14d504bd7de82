import re
import sys
from pathlib import Path

import pytest

from maskclip.core import errors
from maskclip.core.errors import MaskCLIPError, differences, require_extra


def test_what_is_installed_passes():
    require_extra("train", "torch", "numpy")


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    root = Path(__file__).resolve().parents[2]
    expected = (
        f'this needs matplotlib, no_such_module, not installed yet: pip install ".[eval]" in {root}'
    )
    with pytest.raises(MaskCLIPError, match=f"^{re.escape(expected)}$"):
        require_extra("eval", "numpy", "matplotlib", "no_such_module")


def test_an_installed_package_is_extended_by_its_name(monkeypatch, tmp_path):
    installed = tmp_path / "site-packages" / "maskclip" / "core" / "errors.py"
    monkeypatch.setattr(errors, "__file__", str(installed))
    with pytest.raises(MaskCLIPError, match=re.escape(': pip install "maskclip[ray]"')):
        require_extra("ray", "no_such_module")


def test_differences_of_long_lists_are_short():
    (line,) = differences({"names": ["word"] * 1000}, {"names": []})
    assert line.startswith("names: word,word,")
    assert line.endswith(" ... there, none wanted")
    assert len(line) < 250


def test_differences_of_lists_are_written_as_they_are_typed():
    saved = {"refine": ["tlp", "pamr"], "dilations": [8, 16], "names": ["a,b"], "boxes": [[1]]}
    wanted = {"refine": [], "dilations": [8], "names": ["a", "b"], "boxes": []}
    assert differences(saved, wanted) == [
        "refine: tlp,pamr there, none wanted",
        "dilations: 8,16 there, 8 wanted",
        "names: ['a,b'] there, a,b wanted",
        "boxes: [[1]] there, none wanted",
    ]
