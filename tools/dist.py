"""The files of a release: `make dist` builds, checks and tries them (CONTRIBUTING.md).

    python -m tools.dist              # all of it
    python -m tools.dist --check      # build and check alone: seconds, and nothing is installed
    python -m tools.dist --extras     # try what the extras add, too: some minutes more

The wheel is tried with the oldest Python that is here and the lowest versions of what it asks for,
and with the newest and the highest. Each environment takes some 6 GB where PyTorch comes with CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from maskclip.core.errors import MaskCLIPError
from tools import container

ROOT = Path(__file__).resolve().parents[1]
DIST, TRIES = ROOT / "dist", ROOT / "build" / "tries"
MOST = 25_000_000
"""Bytes of a file that is published."""
UV = (sys.executable, "-m", "uv", "--quiet")
SCRIPTS = "Scripts" if os.name == "nt" else "bin"

_SHOWN = 20  # files of a fault

Files = Mapping[str, bytes]


def read(archive: Path) -> dict[str, bytes]:
    """Return the files of a wheel or of a source archive, without the folder that holds them."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    found = {}
    with tarfile.open(archive) as source:
        for member in source:
            file = source.extractfile(member)
            if file is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found


def tracked() -> set[str]:
    """Return the names of the files that git keeps.

    Raises:
        MaskCLIPError: this is no clone.
    """
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise MaskCLIPError("a release is built in a clone: git knows which files are of it")
    return set(filter(None, done.stdout.split("\0")))


def refuse_changes(folder: Path) -> None:
    """Refuse to go on where files differ from the last commit: a release is what a commit holds.

    Raises:
        MaskCLIPError: some do.
    """
    command = ["git", "status", "--porcelain"]
    changed = subprocess.check_output(command, cwd=folder, text=True).splitlines()
    if changed:
        more = ["..."] if len(changed) > _SHOWN else []
        raise MaskCLIPError("\n".join(["commit these first:", *changed[:_SHOWN], *more]))


def faults_of_wheel(files: Files, kept: Iterable[str]) -> list[str]:
    """Return how a wheel differs from the package that git keeps, a line each.

    It holds the package and its metadata, and neither tests nor their data.
    """
    package = {name.removeprefix("src/") for name in kept if name.startswith("src/maskclip/")}
    about = re.compile(r"maskclip-[^/]+\.dist-info/")
    return _differences({name for name in files if not about.match(name)}, package)


def faults_of_source(files: Files, kept: Iterable[str]) -> list[str]:
    """Return how a source archive differs from what git keeps, a line each."""
    return _differences(set(files) - {"PKG-INFO"}, set(kept))


def _differences(found: set[str], expected: set[str]) -> list[str]:
    faults = [
        *(f"{name}: is in it, and not in git" for name in sorted(found - expected)),
        *(f"{name}: is missing" for name in sorted(expected - found)),
    ]
    more = len(faults) - _SHOWN
    return [*faults[:_SHOWN], f"and {more} more"] if more > 0 else faults


def faults_of_any(files: Files, size: int, private: Iterable[str]) -> list[str]:
    """Return what is wrong with a file of either kind, a line each.

    Args:
        files: what it holds.
        size: its bytes.
        private: folders of this machine, which nothing in it may name.
    """
    found = [f"{size:,} bytes: expected at most {MOST:,}"] if size > MOST else []
    for folder in private:
        if folder.count("/") < 3:  # such as /usr/, which every machine has
            continue
        named = re.compile(rb"(?<![\w./-])" + re.escape(folder.encode()))
        found += [f"{name}: names {folder}" for name, data in files.items() if named.search(data)]
    return found


def metadata_of(files: Files) -> Metadata:
    """Return the metadata of a wheel.

    Raises:
        MaskCLIPError: it is not what a package index takes.
    """
    (text,) = (data for name, data in files.items() if name.endswith(".dist-info/METADATA"))
    try:
        return Metadata.from_email(text, validate=True)
    except ExceptionGroup as error:
        said = "; ".join(str(one) for one in error.exceptions)
        raise MaskCLIPError(f"metadata: {said}") from None


def direct(metadata: Metadata, extra: str | None = None) -> list[str]:
    """Return what a package asks for itself, without extras or with one of them."""
    wanted = [
        one
        for one in metadata.requires_dist or ()
        if one.marker is None or one.marker.evaluate({"extra": extra or ""})
    ]
    return [str(one).partition(";")[0] for one in wanted]


class Python(NamedTuple):
    """A Python of this machine."""

    version: Version
    path: str


class Try(NamedTuple):
    """A Python, and which versions of the package's requirements are tried with it."""

    python: Python
    resolution: str


def tries(found: Iterable[Python], supported: SpecifierSet) -> list[Try]:
    """Return the oldest Python with the lowest versions, and the newest with the highest.

    Where there is one alone, it takes both.

    Raises:
        MaskCLIPError: none is supported.
    """
    fitting = sorted(python for python in found if python.version in supported)
    if not fitting:
        raise MaskCLIPError(f"no Python {supported} is here")
    return [Try(fitting[0], "lowest-direct"), Try(fitting[-1], "highest")]


def pythons() -> list[Python]:
    """Return the Pythons of this machine: on the path, of uv, and of pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [str(folder) for folder in root.glob(f"versions/*/{SCRIPTS}")]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    listed = subprocess.run(
        [sys.executable, "-m", "uv", "python", "list", "--only-installed", "--output-format=json"],
        env={**os.environ, "PATH": path},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # of Pythons that do not start
    )
    return [
        Python(Version(one["version"]), one["path"])
        for one in json.loads(listed.stdout)
        if one["implementation"] == "cpython" and one["variant"] == "default"
    ]


def build() -> tuple[Path, Path]:
    """Build both files into an empty dist/, and return the wheel and the source archive."""
    shutil.rmtree(DIST, ignore_errors=True)
    _hatch(ROOT)
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    return wheel, source


def _hatch(folder: Path, *options: str) -> None:
    """Build what lies in a folder, and print nothing if that works."""
    command = [sys.executable, "-m", "hatchling", "build", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MaskCLIPError(f"hatchling: {done.stderr.strip()}")


def rebuilt(source: Path) -> dict[str, bytes]:
    """Return the files of the wheel that a source archive builds."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        _hatch(unpacked, "--target", "wheel")
        (wheel,) = unpacked.glob("dist/*.whl")
        return read(wheel)


def check(wheel: Path, source: Path) -> Metadata:
    """Check what was built, and return its metadata.

    Raises:
        MaskCLIPError: something is wrong, in as many lines.
    """
    kept, private = tracked(), (f"{ROOT}/", f"{sys.prefix}/")
    in_wheel, in_source = read(wheel), read(source)
    found = [
        *(f"{wheel.name}: {one}" for one in faults_of_wheel(in_wheel, kept)),
        *(f"{source.name}: {one}" for one in faults_of_source(in_source, kept)),
    ]
    for path, files in ((wheel, in_wheel), (source, in_source)):
        size = path.stat().st_size
        found += [f"{path.name}: {one}" for one in faults_of_any(files, size, private)]
        print(f"   {path.name}: {size / 1e6:.1f} MB, {len(files)} files")
    if not found and rebuilt(source) != in_wheel:
        found.append(f"{source.name}: builds another wheel")
    if found:
        raise MaskCLIPError("\n".join(found))
    return metadata_of(in_wheel)


def try_wheel(wheel: Path, metadata: Metadata, one: Try, *, extras: bool) -> None:
    """Install a wheel in a bare environment, and run there what .ci/try says.

    Args:
        wheel: the file.
        metadata: of it; what it asks for is named beside it, since uv takes the lowest versions
            of what it is given itself alone.
        one: with what.
        extras: whether the extras are installed and tried after that.

    Raises:
        MaskCLIPError: an installation or a command fails.
    """
    folder = TRIES / f"{one.python.version}-{one.resolution}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = folder / "environment"
    wanted = folder / "requirements.txt"
    variables = {**os.environ}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        variables.pop(name, None)
    variables["MASKCLIP"] = str(environment / SCRIPTS / "maskclip")
    install = [*UV, "pip", "install", "--python", environment, "--resolution", one.resolution]

    def run(*command: object) -> None:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=folder, env=variables)
        if done.returncode:
            raise MaskCLIPError(f"exit code {done.returncode} of {shlex.join(words)}; see {folder}")

    run(*UV, "venv", "--python", one.python.path, environment)
    for extra, script in ((None, "try"), ("all", "try-extras"))[: 1 + extras]:
        print(f"== Python {one.python.version}, {one.resolution}: .ci/{script}", flush=True)
        wanted.write_text("\n".join(direct(metadata, extra)))
        run(*install, wheel, "--requirement", wanted)
        run("sh", ROOT / ".ci" / script)
    shutil.rmtree(folder)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="build and check alone")
    parser.add_argument("--extras", action="store_true", help="try what the extras add, too")
    given = parser.parse_args()
    print("== building dist/", flush=True)
    wheel, source = build()
    print("== checking it", flush=True)
    metadata = check(wheel, source)
    if given.check:
        return
    refuse_changes(ROOT)
    here = pythons()
    plan = tries(here, metadata.requires_python or SpecifierSet())
    if len({one.python for one in plan}) == 1:
        print(f"== only Python {plan[0].python.version} is here: other versions are not tried")
    for one in plan:
        try_wheel(wheel, metadata, one, extras=given.extras)
    if os.name == "nt":
        print("== the steps of the Dockerfile are tried on Linux and macOS alone")
        return
    print("== the steps of the Dockerfile, and the service that they make", flush=True)
    wanted = container.python_version()
    same = [one for one in here if one.version.release[:2] == wanted.release]
    chosen = max(same, default=plan[-1].python)
    if not same:
        print(f"   Python {wanted} is not here: {chosen.version} stands for it")
    container.rehearse(chosen.path, ROOT / "build" / "container")


if __name__ == "__main__":
    try:
        main()
    except MaskCLIPError as error:
        sys.exit(f"error: {error}")
