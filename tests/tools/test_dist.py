"""What `make dist` refuses, without building or installing anything."""

import subprocess
import tarfile
import tomllib
import zipfile

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from maskclip.core.errors import MaskCLIPError
from tests.conftest import ROOT
from tools import dist

KEPT = {"src/maskclip/__init__.py", "src/maskclip/core/words.toml", "tests/test_a.py", "README.md"}
WHEEL = {
    "maskclip/__init__.py": b"",
    "maskclip/core/words.toml": b"",
    "maskclip-1.0.dist-info/RECORD": b"",
}
SOURCE = {**dict.fromkeys(KEPT, b""), "PKG-INFO": b""}
METADATA = """Metadata-Version: 2.4
Name: maskclip
Version: 1.0
Requires-Python: >=3.11
Requires-Dist: torch>=2.11
Provides-Extra: web
Requires-Dist: fastapi>=1; extra == 'web'
"""


def test_what_git_keeps_and_nothing_else_is_released():
    assert dist.faults_of_wheel(WHEEL, KEPT) == []
    assert dist.faults_of_source(SOURCE, KEPT) == []


@pytest.mark.parametrize(
    "name",
    [
        "tests/test_a.py",
        "maskclip/core/__pycache__/a.pyc",
        "shared/photo.jpg",
        "other-1.dist-info/A",
    ],
)
def test_a_stray_file_is_refused(name):
    (said,) = dist.faults_of_wheel({**WHEEL, name: b""}, KEPT)
    assert said == f"{name}: is in it, and not in git"


def test_a_missing_file_is_refused():
    files = {name: data for name, data in WHEEL.items() if "words" not in name}
    assert dist.faults_of_wheel(files, KEPT) == ["maskclip/core/words.toml: is missing"]
    (said,) = dist.faults_of_source({"README.md": b"", "PKG-INFO": b""}, ["README.md", "Makefile"])
    assert said == "Makefile: is missing"


def test_a_folder_that_has_strayed_in_is_said_in_some_lines():
    files = {**WHEEL, **{f"cache/{number:03}": b"" for number in range(60)}}
    said = dist.faults_of_wheel(files, KEPT)
    assert said[0].startswith("cache/000")
    assert said[20:] == ["and 40 more"]


def test_large_files_and_paths_of_the_machine_are_refused():
    files = {"a.py": b"open('/home/somebody/clone/a')", "b.py": b"/home"}
    assert dist.faults_of_any(files, dist.MOST, ["/home/other/"]) == []
    large, named = dist.faults_of_any(files, dist.MOST + 1, ["/home/somebody/clone/"])
    assert large == "25,000,001 bytes: expected at most 25,000,000"
    assert named == "a.py: names /home/somebody/clone/"


def test_what_every_machine_has_is_not_private():
    files = {"RECORD": b"tests/home/a/b.py\n/usr/bin/env"}
    assert dist.faults_of_any(files, 1, ["/usr/", "/home/a/"]) == []


def test_what_no_commit_holds_is_not_released(tmp_path):
    git = ("git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c")
    (tmp_path / "a.py").write_text("1")
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "a.py"], check=True)
    with pytest.raises(MaskCLIPError, match=r"commit these first:\nA  a\.py"):
        dist.refuse_changes(tmp_path)
    subprocess.run([*git, "commit", "--quiet", "--message", "a"], check=True)
    dist.refuse_changes(tmp_path)


def test_both_kinds_of_archive_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("maskclip/a.py", "1")
    (tmp_path / "a.py").write_text("1")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as source:
        source.add(tmp_path / "a.py", "maskclip-1.0/src/maskclip/a.py")
    assert dist.read(tmp_path / "a.whl") == {"maskclip/a.py": b"1"}
    assert dist.read(tmp_path / "a.tar.gz") == {"src/maskclip/a.py": b"1"}


def test_metadata_are_those_that_an_index_takes():
    files = {"maskclip-1.0.dist-info/METADATA": METADATA.encode()}
    found = dist.metadata_of(files)
    assert dist.direct(found) == ["torch>=2.11"]
    assert dist.direct(found, "web") == ["torch>=2.11", "fastapi>=1"]
    files = {name: data.replace(b"Version: 1.0", b"Version: one") for name, data in files.items()}
    with pytest.raises(MaskCLIPError, match=r"metadata: .*'one' is invalid"):
        dist.metadata_of(files)


def test_the_oldest_python_takes_the_lowest_versions_and_the_newest_the_highest():
    here = [dist.Python(Version(one), one) for one in ("3.13.0", "3.9.1", "3.12.1", "3.11.7")]
    supported = SpecifierSet(">=3.11")
    assert [(one.python.path, one.resolution) for one in dist.tries(here, supported)] == [
        ("3.11.7", "lowest-direct"),
        ("3.13.0", "highest"),
    ]
    alone = dist.tries(here[2:3], supported)
    assert [one.python.path for one in alone] == ["3.12.1", "3.12.1"]
    with pytest.raises(MaskCLIPError, match=r"no Python >=3\.11 is here"):
        dist.tries(here[1:2], supported)


def test_the_version_is_written_alike_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    headings = [
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line[:3] == "## "
    ]
    assert headings[0] == "## Unreleased"
    assert headings[1].startswith(f"## {version} - ")
