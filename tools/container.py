"""The Dockerfile, read and tried without Docker: `python -m tools.container`.

Its steps run one after the other in a folder that stands for the image: what they say of /opt and
/home lies in it, and a bare environment stands for the Python of the base image. Then the default
command is started there, its health check asks it, and SIGTERM ends it. What needs a system of its
own (users, volumes) is not tried. PyTorch is that of the lock: its build for CPUs comes from an
index that the lock does not know.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

from maskclip.client import Client
from maskclip.core.errors import MaskCLIPError
from maskclip.emoji.scenes import draw_scene

ROOT = Path(__file__).resolve().parents[1]
PLACES = re.compile(r"(?<![\w./-])/(?=(opt|home)/)")
"""What of an image's file system the steps write; a rehearsal has its own."""
ARGUMENTS = {"TORCH": ""}
KEY, PORT = "rehearsal", "8000"
PATIENCE = 300  # seconds until the service must be healthy


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its name, and what follows it on one line."""

    name: str
    rest: str


def read(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile: without comments, continued lines in one."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", "", kept).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]


def python_version() -> Version:
    """Return the version of Python that the image has, as 3.13."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (last,) = {step.rest.split()[0] for step in read(text) if step.rest.startswith("python:")}
    return Version(last.removeprefix("python:").partition("-")[0])


def faults(steps: list[Instruction], ignored: list[str], present: set[str]) -> list[str]:
    """Return what is wrong with a Dockerfile that none of its steps would show, a line each.

    Args:
        steps: its instructions.
        ignored: the lines of .dockerignore.
        present: names of the files and folders beside it.
    """
    last = {step.name: step.rest for step in steps}
    copied = [
        name
        for step in steps
        if step.name == "COPY" and not step.rest.startswith("--")
        for name in step.rest.split()[:-1]
    ]
    found = [f"{name}: missing" for name in ("HEALTHCHECK", "CMD") if name not in last]
    if last.get("USER", "root").split(":")[0] in ("root", "0"):
        found.append("USER: expected one that is not root")
    found += [f"COPY {name}: not in the repository" for name in copied if name not in present]
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    if "*" not in ignored or allowed != set(copied):
        found.append(f".dockerignore: expected * and {', '.join(f'!{name}' for name in copied)}")
    if "src" in copied and "requirements.txt" not in copied[: copied.index("src")]:
        found.append("COPY src: expected after requirements.txt, so that packages stay cached")
    return found


@dataclass
class Rehearsal:
    """A folder in which the steps of a Dockerfile run.

    Attributes:
        folder: it; `image` in it stands for the file system of the stage that is built, and
            `before` for those of the stages before.
        python: the folder of the programs of the base image.
        port: instead of the one that the Dockerfile names.
        workdir: where steps run.
        variables: what ARG and ENV have set.
        health: the command of the health check.
        command: the default command.
    """

    folder: Path
    python: Path
    port: int
    workdir: str = "/opt/"
    variables: dict[str, str] = field(default_factory=dict)
    health: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    @property
    def image(self) -> Path:
        """The file system of the stage that is built."""
        return self.folder / "image"

    def take(self, step: Instruction) -> None:
        """Do what an instruction says; those that say nothing of files or programs are passed."""
        rest = step.rest
        match step.name:
            case "FROM" if ":" in rest.split()[0]:  # of an image, and not of the stage before
                if self.image.exists():
                    self.image.rename(self.folder / "before")
                self.workdir, self.variables = "/opt/", {}
            case "ARG":
                name, _, value = rest.partition("=")
                self.variables[name] = ARGUMENTS.get(name, value)
            case "ENV":
                self.variables |= dict(pair.split("=", 1) for pair in rest.split())
                self.variables.pop("UV_CACHE_DIR", None)  # what is in this machine's is not fetched
            case "WORKDIR":
                self.workdir = f"{rest}/"
            case "COPY":
                self._copy(rest)
            case "RUN" if not rest.startswith("useradd"):
                command = re.sub(r"^(--mount=\S+ +)+", "", rest)
                self.run(["sh", "-c", self.here(command)]).check_returncode()
            case "HEALTHCHECK":
                self.health = json.loads(self.here(rest.partition("CMD ")[2]))
            case "CMD":
                self.command = json.loads(self.here(rest))

    def here(self, text: str) -> str:
        """Return words of the Dockerfile with the paths and the port of this rehearsal."""
        return PLACES.sub(f"{self.image}/", text).replace(PORT, str(self.port))

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of a step: this machine's, with what the Dockerfile sets."""
        path = f"{self.python}{os.pathsep}{os.environ['PATH']}"
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "MASKCLIP_KEY")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        given = {name: self.here(f" {value}")[1:] for name, value in self.variables.items()}
        given["PATH"] = given.get("PATH", "$PATH").replace("$PATH", path)
        return {**kept, **given, **more}

    def where(self) -> Path:
        """Return the folder in which a step runs."""
        folder = Path(self.here(self.workdir))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(self, command: list[str], *, quiet: bool = False) -> subprocess.CompletedProcess[bytes]:
        """Run a command as a step is run."""
        return subprocess.run(
            command, cwd=self.where(), env=self.environment(), capture_output=quiet
        )

    def _copy(self, rest: str) -> None:
        """Copy files of the repository, or of an earlier stage."""
        *names, target = re.sub(r"^--from=\S+ ", "", rest).split()
        base = self.folder / "before" if rest.startswith("--from=") else ROOT
        for name in names:
            source = base / name.lstrip("/")
            place = self.where() / self.here(target)
            if source.is_dir():  # its files, as COPY does; large ones are not doubled
                shutil.copytree(
                    source,
                    place,
                    symlinks=True,
                    dirs_exist_ok=True,
                    ignore=None if base != ROOT else shutil.ignore_patterns("__pycache__"),
                    copy_function=_link,
                )
            else:
                shutil.copy2(source, place)


def _link(source: str, target: str) -> None:
    """Give a file a second name, in place of what has that name."""
    Path(target).unlink(missing_ok=True)
    os.link(source, target)


def try_service(rehearsal: Rehearsal) -> None:
    """Start the default command, ask it what its health check and a program ask, and end it.

    Raises:
        MaskCLIPError: it does something else than the documents say.
    """
    environment = rehearsal.environment()
    refused = subprocess.run(rehearsal.command, env=environment, capture_output=True, text=True)
    said = refused.stderr.strip()
    _expect(
        refused.returncode != 0 and "\n" not in said, f"without a key: expected one line: {said}"
    )
    print(f"   without a key: {said}")
    with subprocess.Popen(
        rehearsal.command, cwd=rehearsal.where(), env=rehearsal.environment(MASKCLIP_KEY=KEY)
    ) as service:
        try:
            _wait_until_healthy(rehearsal, service)
            client = Client(f"http://127.0.0.1:{rehearsal.port}", key=KEY)
            found = client.segment(draw_scene(0, size=128).image, ["dog", "grass"], model="emoji")
            print(f"   healthy, and labelled a photo of {found.labels.shape} pixels")
            service.send_signal(signal.SIGTERM)
            code = service.wait(timeout=60)
        finally:
            service.kill()
    _expect(code == 0, f"SIGTERM: expected exit code 0, got {code}")


def _wait_until_healthy(rehearsal: Rehearsal, service: subprocess.Popen[bytes]) -> None:
    """Return when the health check passes."""
    until = time.monotonic() + PATIENCE
    while rehearsal.run(rehearsal.health, quiet=True).returncode:
        _expect(service.poll() is None, "the default command ended by itself")
        _expect(time.monotonic() < until, f"not healthy within {PATIENCE} s")
        time.sleep(1)


def _expect(is_so: bool, otherwise: str) -> None:
    """Refuse what is not so."""
    if not is_so:
        raise MaskCLIPError(f"Dockerfile: {otherwise}")


def _free_port() -> int:
    """Return a port that nothing is bound to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def rehearse(python: str, folder: Path) -> None:
    """Check the Dockerfile, run its steps in an empty folder, and try what they made.

    Args:
        python: a Python of the version that the image has.
        folder: to work in; it is emptied.

    Raises:
        MaskCLIPError: a step fails, or the service does something else than the documents say.
    """
    steps = read((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for fault in faults(steps, ignored, {path.name for path in ROOT.iterdir()}):
        raise MaskCLIPError(f"Dockerfile: {fault}")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder / "python"], check=True)
    rehearsal = Rehearsal(folder.resolve(), folder.resolve() / "python" / "bin", _free_port())
    for step in steps:
        print(f"   {step.name} {step.rest[:80]}", flush=True)
        try:
            rehearsal.take(step)
        except subprocess.CalledProcessError as error:
            raise MaskCLIPError(
                f"Dockerfile: exit code {error.returncode} of {step.rest}"
            ) from None
    try_service(rehearsal)
    shutil.rmtree(folder)


if __name__ == "__main__":
    try:
        rehearse(sys.executable, ROOT / "build" / "container")
    except MaskCLIPError as error:
        sys.exit(f"error: {error}")
