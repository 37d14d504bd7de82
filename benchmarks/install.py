"""How much an installation downloads: `.venv/bin/python benchmarks/install.py [PYPROJECT]`.

Sums the sizes of the wheels that pip would take on this machine, in the versions of
requirements.txt: for the package alone, and with each extra. Only metadata are downloaded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = (
    *("", "eval", "train", "ray", "images", "photo", "regions", "web", "cvat"),
    *("hf", "export", "openvino", "all"),
)
TAGS = {tag: rank for rank, tag in enumerate(sys_tags())}


def wheels(pyproject: Path, extra: str) -> dict[str, int]:
    """Return the download size in bytes of everything that is installed, by package."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        uv = str(Path(sys.executable).with_name("uv"))
        command = [uv, "pip", "compile", "--quiet", "--format=pylock.toml"]
        command += [f"--constraints={ROOT / 'requirements.txt'}", f"--output-file={lock}"]
        command += [f"--extra={extra}"] if extra else []
        subprocess.run([*command, str(pyproject)], check=True)
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    return {package["name"]: size_of(package) for package in packages if "wheels" in package}


def size_of(package: dict) -> int:
    """Return the size of the wheel that suits this machine best."""
    ranks = {}
    for wheel in package["wheels"]:
        name = wheel.get("name") or wheel["url"].rpartition("/")[2]
        fitting = [TAGS[tag] for tag in parse_wheel_filename(name)[3] if tag in TAGS]
        if fitting:
            ranks[min(fitting)] = wheel["size"]
    return ranks[min(ranks)]


def is_torch(name: str) -> bool:
    """Whether a package is torch or comes with its build for CUDA."""
    return name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))


def main() -> None:
    pyproject = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "pyproject.toml"
    known = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = [extra for extra in EXTRAS if not extra or extra in known["optional-dependencies"]]
    print("| installed | packages | download, MB | without torch and CUDA |\n|---|---|---|---|")
    for extra in extras:
        sizes = wheels(pyproject, extra)
        total = sum(sizes.values()) / 1e6
        rest = sum(size for name, size in sizes.items() if not is_torch(name)) / 1e6
        name = f"maskclip[{extra}]" if extra else "maskclip"
        print(f"| `{name}` | {len(sizes)} | {total:,.0f} | {rest:,.0f} |")


if __name__ == "__main__":
    main()
