import json
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
        f'this needs matplotlib, no_such_module, not installed yet: pip install "{root}[eval]"'
    )
    with pytest.raises(MaskCLIPError, match=f"^{re.escape(expected)}$"):
        require_extra("eval", "numpy", "matplotlib", "no_such_module")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Return what pretends that the package was installed from somewhere."""

    def install(record):
        place = tmp_path / "site-packages"
        metadata = place / "maskclip-1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Name: maskclip\nVersion: 1\n")
        if record is not None:
            (metadata / "direct_url.json").write_text(json.dumps(record))
        monkeypatch.setattr(errors, "__file__", str(place / "maskclip" / "core" / "errors.py"))
        monkeypatch.syspath_prepend(place)

    return install


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (None, 'pip install "maskclip[ray]"'),
        (
            {"url": "file:///some%20where/maskclip-1-py3-none-any.whl", "archive_info": {}},
            'pip install "maskclip[ray] @ file:///some%20where/maskclip-1-py3-none-any.whl"',
        ),
        (
            {"url": "https://host/a.git", "vcs_info": {"vcs": "git", "commit_id": "0ab1"}},
            'pip install "maskclip[ray] @ git+https://host/a.git@0ab1"',
        ),
        (
            {"url": "file:///no/such/folder", "dir_info": {}},
            'pip install ".[ray]" in a clone of maskclip',
        ),
    ],
)
def test_an_installed_package_is_extended_from_where_it_came(record, command, installed):
    installed(record)
    with pytest.raises(MaskCLIPError, match=f": {re.escape(command)}$") as caught:
        require_extra("ray", "no_such_module")
    assert errors.without_commands(str(caught.value)) == (
        "this needs no_such_module, not installed yet: the extra `ray` is missing there"
    )


@pytest.mark.parametrize("editable", [False, True])
@pytest.mark.parametrize(("name", "quote"), [("my clone", '"'), ("$HOME", "'")])
def test_a_clone_is_named_by_its_folder(editable, name, quote, installed, tmp_path):
    clone = tmp_path / name
    clone.mkdir()
    installed({"url": clone.as_uri(), "dir_info": {"editable": editable}})
    assert errors.install_command("web") == f"pip install {quote}{clone}[web]{quote}"


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
