"""`python -m tools.models`: write the list of open_clip's published weights into the package.

That is `src/maskclip/clip/models.json`. Parameters are counted on no device, which takes a minute
for all architectures; those of the list are taken from it, unless `--anew` is given.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from maskclip.clip.catalog import read_open_clip

LIST = Path(__file__).resolve().parents[1] / "src" / "maskclip" / "clip" / "models.json"


def main(*, anew: bool) -> None:
    """Write the list.

    Args:
        anew: count all parameters, those that the list has too.
    """
    before = {} if anew or not LIST.exists() else json.loads(LIST.read_text())["architectures"]
    found = read_open_clip({name: about["parameters"] for name, about in before.items()})
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in found)
    release = json.dumps(version("open_clip_torch"))
    LIST.write_text(f'{{"open_clip": {release}, "architectures": {{\n{lines}\n}}}}\n')
    print(f"-> {LIST} ({len(found)} architectures)")


if __name__ == "__main__":
    main(anew="--anew" in sys.argv[1:])
