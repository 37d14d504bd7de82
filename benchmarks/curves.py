"""Draw how trainings went: `python benchmarks/curves.py NAME=RUN ... --out PICTURE.png`."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from results import curve

from maskclip.tasks.evaluation.charts import line_chart


def main() -> None:
    """Draw the mIoU of run folders over their steps."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="run folders of `train`")
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    parser.add_argument("--title", default="Students while they learn")
    how = parser.parse_args()
    lines = {}
    for run in how.runs:
        name, _, folder = run.partition("=")
        lines[name] = curve(Path(folder or name))
        if not lines[name]:
            parser.error(f"{folder or name}: no validation is in its logs")
    line_chart(lines, how.out, title=how.title, x_label="step", y_label="mIoU in validation, %")


if __name__ == "__main__":
    main()
