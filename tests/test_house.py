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
