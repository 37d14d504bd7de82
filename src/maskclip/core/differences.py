"""What is not the same in two sets of settings."""

from __future__ import annotations

from typing import Any


def differences(kept: Any, wanted: Any, name: str = "") -> list[str]:
    """Return in which values two trees of plain values differ: `name: kept there, wanted asked`."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*kept, *wanted])
        found = [
            differences(kept.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
            for key in keys
        ]
        return [change for changes in found for change in changes]
    return [] if kept == wanted else [f"{name}: {kept!r} there, {wanted!r} asked for"]


def listed(changes: list[str], *, most: int = 5) -> str:
    """Return the first differences as one line."""
    return "; ".join(changes[:most]) + ("; ..." if len(changes) > most else "")
