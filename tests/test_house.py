"""The house is as docs/architecture.md draws it; no two files import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "maskclip"
FILES = {
    ".".join(("maskclip", *path.relative_to(SOURCE).with_suffix("").parts)): path
    for path in SOURCE.rglob("*.py")
}


def imports(path):
    """Return the modules of the package that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {name if name in FILES else f"{name}.__init__" for name in found} & set(FILES)


@pytest.mark.parametrize("module", sorted(FILES))
def test_the_picture_names_every_module(module):
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = picture.partition("cli/          prints")[2].partition("```")[0]
    words = rooms.replace(",", " ").replace("(", " ").split()
    name = module.rpartition(".")[2]
    assert name.startswith("__") or name in words


def test_no_file_imports_one_that_imports_it():
    above = {module: imports(path) for module, path in FILES.items()}
    while above:  # what imports nothing that is left cannot lie on a circle
        ground = {module for module, below in above.items() if not below & set(above)}
        assert ground, f"among these are files that import each other: {sorted(above)}"
        above = {module: below for module, below in above.items() if module not in ground}


def below(arrows):
    """Return the rooms that each room can reach by arrows, over others too."""
    found = {room: set(rooms) for room, rooms in arrows.items()}
    for _ in found:
        found = {
            room: rooms.union(*(found.get(one, set()) for one in rooms))
            for room, rooms in found.items()
        }
    return found


def test_the_picture_draws_which_room_imports_which():
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = (
        line.partition("->") for line in picture.partition("```")[2].split("```")[0].split("\n")
    )
    drawn = {room.strip(): rooms.split() for room, _, rooms in lines if room.strip()}
    imported = {room: set() for room in drawn}
    for module, path in FILES.items():
        room = module.split(".")[1]
        if room in imported:
            imported[room] |= {name.split(".")[1] for name in imports(path)} - {room, "__init__"}
    assert below(imported) == below(drawn)
