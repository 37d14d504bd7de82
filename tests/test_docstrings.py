"""The public names: examples of their docstrings run, and the reference shows what is public."""

import doctest
import io
import logging
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from functools import cache
from pathlib import Path

import griffe
import pytest
from fastapi.testclient import TestClient

import maskclip
from maskclip.cli import main
from maskclip.plus.files import VERSION
from maskclip.web.app import create_app
from maskclip.web.engine import Engine
from maskclip.web.models import Models
from tools.site import MEMBERS, PARTS, PYTHON

ROOT = Path(__file__).resolve().parents[1]
SHOWN = [name for names in PARTS.values() for name in names]


@cache
def module(name):
    """Return a module as the builder of the site reads it, which imports nothing."""
    path = ROOT.joinpath("src", *name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return griffe.visit(name, filepath=file, code=file.read_text(encoding="utf-8"))


def shown(name):
    """Return what the reference shows of a public name: itself, then its members."""
    found = module(maskclip._HOMES[name])[name]
    if not found.is_class:
        return [found]
    public = [one for one in found.members if not one.startswith("_") and found[one].has_docstring]
    return [found, *(found[one] for one in MEMBERS.get(name, public))]


def blocks(kind):
    """Return the blocks of code of that kind in the reference, before the names."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PYTHON, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the examples, with what the commands of the reference make, and no more."""
    monkeypatch.chdir(tmp_path)
    for line in blocks("sh")[0].splitlines():
        verb, *arguments = shlex.split(line)
        if verb == "maskclip":
            assert main(arguments) == 0
        else:
            subprocess.run(line, shell=True, check=True)


@pytest.fixture
def service(monkeypatch):
    """The service of the reference's command, at its port, which answers in this process."""
    _, command = blocks("sh")
    verb, option, model = shlex.split(command)[1:]
    assert (verb, option) == ("serve", "--model")
    app = create_app(Engine(Models([model], device="cpu")))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:

        def urlopen(request, timeout):
            method, headers = request.get_method(), dict(request.header_items())
            sent = {"content": request.data, "headers": headers}
            answer = client.request(method, request.full_url, **sent)
            assert answer.status_code == 200, answer.text
            return io.BytesIO(answer.content)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        yield


def test_the_first_example_of_the_reference_runs(folder):
    (code,) = blocks("python")
    exec(code, {})
    assert Path("labels.png").is_file()
    assert Path("overlay.png").is_file()


def failures(docstring, known):
    """Run a docstring's examples; return what went otherwise, and the names known after them."""
    place = docstring.parent.path
    test = doctest.DocTestParser().get_doctest(docstring.value, known, place, None, None)
    said = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False)
    return "".join(said), test.globs


@pytest.mark.parametrize("name", [None, *maskclip.__all__])
def test_examples_run(name, folder, request):
    if "service" in next((part for part, names in PARTS.items() if name in names), ""):
        request.getfixturevalue("service")
    first, *members = [module("maskclip")] if name is None else shown(name)
    assert ">>>" in first.docstring.value, f"{first.path} has no example"
    wrong, known = failures(first.docstring, {"maskclip": maskclip})
    for member in members:  # goes on from the example of its class
        wrong += failures(member.docstring, known)[0]
    assert not wrong, wrong


@pytest.mark.parametrize("name", maskclip.__all__)
def test_methods_teach_by_an_example(name):
    functions = [one for one in shown(name) if one.is_function]
    assert all(">>>" in one.docstring.value for one in functions)


@pytest.mark.parametrize("name", maskclip.__all__)
def test_examples_fit_the_page(name):
    lines = [line for one in shown(name) for line in one.docstring.value.splitlines()]
    code = [line.strip() for line in lines if re.match(r" *(>>>|\.\.\.) ", line)]
    assert [line for line in code if len(line) > 80] == []


@pytest.mark.parametrize("name", maskclip.__all__)
def test_docstrings_name_all_parameters_and_no_others(name, caplog):
    for one in shown(name):
        text = one.docstring.value
        for parameter in one.parameters if one.is_function else ():
            known = parameter.name in ("self", "cls") or re.search(rf"\b{parameter.name}\b", text)
            assert known, f"{one.path} says nothing of {parameter.name}"
    with caplog.at_level(logging.WARNING, logger="griffe"):
        for one in shown(name):
            assert one.docstring.parse("google")
    assert caplog.messages == []


def test_the_reference_shows_every_public_name_once():
    assert sorted(SHOWN) == sorted(maskclip.__all__)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_reference_shows_what_an_example_teaches(name):
    members = module(maskclip._HOMES[name])[name].members.values()
    taught = {one.name for one in members if one.docstring and ">>>" in one.docstring.value}
    assert taught == set(MEMBERS[name])


def test_the_page_on_versions_names_what_is_public():
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    table = page.partition("| name |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sorted(maskclip.__all__)


def test_the_page_on_versions_says_what_is_needed():
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    (torch,) = [line[7:] for line in project["dependencies"] if line.startswith("torch>=")]
    assert project["requires-python"] == f">={pythons[0]}"
    assert f"| Python | {pythons[0]} to {pythons[-1]} |" in page
    assert f"| PyTorch | {torch} and later |" in page
    assert f"its format has version {VERSION}," in page


def test_importing_the_package_or_its_client_loads_no_torch():
    code = (
        "import sys, maskclip; dir(maskclip); print(maskclip.__version__); maskclip.Client; "
        "maskclip.MaskCLIPError; assert not {'torch', 'open_clip', 'cv2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+\.\d+", done.stdout)


def test_what_is_not_public_is_not_an_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        maskclip.nothing  # noqa: B018
    assert {*maskclip.__all__, "__version__"} <= set(dir(maskclip))
    assert (ROOT / "src" / "maskclip" / "py.typed").is_file()
