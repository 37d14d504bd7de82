"""Golden files as arguments: a test that takes one of them runs on every file found."""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("MASKCLIP_GOLDEN")
    or Path(__file__).resolve().parents[2].parent / "shared" / "golden"
)
PATTERNS = {
    "golden_start": "maskclip_plus/*_init.safetensors",
    "golden_checkpoint": "maskclip_plus/*.pth",
    "golden_layout": "layouts/*.json",
}


def pytest_generate_tests(metafunc):
    for name in PATTERNS.keys() & set(metafunc.fixturenames):
        found = [pytest.param(p, id=p.stem) for p in sorted(FOLDER.glob(PATTERNS[name]))]
        reason = f"no {PATTERNS[name]} under {FOLDER}: set MASKCLIP_GOLDEN to the golden folder"
        absent = pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))
        metafunc.parametrize(name, found or [absent])
