"""The notebooks of examples/: `python -m tools.notebooks [NAME ...]` runs them, and stores outputs.

Each runs from top to bottom in an empty folder, and is written with what it shows, made small: a
picture an output, as JPEG, and plain text. `page` turns one, as it is stored, into a page.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "examples"
WIDEST = 900  # px of a stored picture
_PICTURES = ("image/png", "image/jpeg")
_FAILED = re.compile(r"^(?:error:|Traceback|.*command not found).*", re.MULTILINE)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Notebook = dict[str, Any]
"""A notebook as its file holds it: JSON, by nbformat 4."""


def paths() -> list[Path]:
    """Return the files of all notebooks."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Notebook:
    """Return the notebook of a file."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def write(notebook: Notebook, path: Path) -> None:
    """Write the file of a notebook, as Jupyter does."""
    import nbformat

    whole = nbformat.from_dict(notebook)  # type: ignore[no-untyped-call]
    path.write_text(nbformat.writes(whole) + "\n", encoding="utf-8")  # type: ignore[no-untyped-call]


def text(cell: Mapping[str, Any], field: str = "source") -> str:
    """Return a field that files hold as lines, or as a whole."""
    return "".join(cell[field])


def run(notebook: Notebook, folder: Path, **parameters: object) -> Notebook:
    """Return the notebook as it is after every cell has run, in a kernel of this interpreter.

    Args:
        notebook: stays as it is.
        folder: where the kernel works.
        parameters: values that replace those of the cell with the tag `parameters`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        RuntimeError: a command in a cell printed an error, which does not end a notebook.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    text_of_file = json.dumps(_with_parameters(notebook, parameters))
    ready = nbformat.reads(text_of_file, as_version=4)  # type: ignore[no-untyped-call]
    kernels = str(Path(sys.prefix, "share", "jupyter", "kernels"))
    with tempfile.TemporaryDirectory(prefix="nb-") as own:
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[kernels]),
            connection_file=str(Path(own, "kernel.json")),
            transport="tcp" if sys.platform == "win32" else "ipc",
        )
        commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        client = NotebookClient(
            ready,
            km=manager,
            timeout=1800,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        quiet = "ignore:IProgress not found"  # widgets of Jupyter, which no cell needs
        own_places = {"PATH": commands, "IPYTHONDIR": own, "PYTHONWARNINGS": quiet}
        client.execute(env={**os.environ, **own_places}, cleanup_kc=True)
    done: Notebook = json.loads(nbformat.writes(ready))  # type: ignore[no-untyped-call]
    _check_commands(done)
    return done


def _check_commands(notebook: Notebook) -> None:
    """Refuse outputs in which a command says that it failed.

    Raises:
        RuntimeError: as `run`.
    """
    printed = [one for cell in notebook["cells"] for one in cell.get("outputs", ())]
    failed = _FAILED.search("".join(text(one, "text") for one in printed if "text" in one))
    if failed:
        raise RuntimeError(failed[0])


def _with_parameters(notebook: Notebook, parameters: Mapping[str, object]) -> Notebook:
    """Return a copy of a notebook in which its parameters are others."""
    copy: Notebook = json.loads(json.dumps(notebook))
    for cell in copy["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            lines = [f"{name} = {value!r}" for name, value in parameters.items()]
            cell["source"] = "\n".join([text(cell), *lines])
    return copy


def small(notebook: Notebook) -> Notebook:
    """Return a notebook that has run as it is stored."""
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        if cell["cell_type"] == "code":
            cell["outputs"] = _joined([_small_output(one) for one in cell["outputs"]])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


def _small_output(output: dict[str, Any]) -> dict[str, Any]:
    if "text" in output:
        plain = _CONTROL.sub("", text(output, "text")).replace("\r\n", "\n")
        return {**output, "text": plain}
    data = output["data"]
    kinds = [kind for kind in _PICTURES if kind in data]
    if not kinds:
        return output
    picture = Image.open(io.BytesIO(base64.b64decode(text(data, kinds[0])))).convert("RGB")
    picture.thumbnail((WIDEST, 4 * WIDEST))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82, optimize=True)
    stored = base64.b64encode(file.getvalue()).decode()
    others = {kind: value for kind, value in data.items() if kind not in _PICTURES}
    return {**output, "data": {**others, "image/jpeg": stored}, "metadata": {}}


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return outputs with neighbouring pieces of one stream in one."""
    joined: list[dict[str, Any]] = []
    for one in outputs:
        if joined and "text" in one and one.get("name") == joined[-1].get("name"):
            joined[-1]["text"] += one["text"]
        else:
            joined.append(one)
    return joined


def page(notebook: Notebook, name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and the pictures that it shows, by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(text(cell))
            continue
        parts.append(f"```python\n{text(cell)}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/jpeg" in data:
                file = f"{name}-{len(pictures)}.jpg"
                pictures[file] = base64.b64decode(text(data, "image/jpeg"))
                parts.append(f"![What the cell shows]({file})")
            else:
                shown = text(output, "text") if "text" in output else text(data, "text/plain")
                parts.append(f"```text\n{shown.rstrip()}\n```")
    origin = f"This page is the notebook `examples/{name}.ipynb`, with what a run of it showed."
    return "\n\n".join([parts[0], origin, *parts[1:], ""]), pictures


def main() -> None:
    """Run the notebooks that are named, or all, and store what they show."""
    found = {path.stem: path for path in paths()}
    for name in sys.argv[1:]:
        if name not in found:
            sys.exit(f"error: no notebook {name!r}: expected some of {', '.join(found)}")
    for path in [found[name] for name in sys.argv[1:] or found]:
        began, before = time.monotonic(), _processor_seconds()
        with tempfile.TemporaryDirectory() as folder:
            done = small(run(read(path), Path(folder)))
        write(done, path)
        seconds, processor = time.monotonic() - began, _processor_seconds() - before
        size = path.stat().st_size / 1000
        print(f"{path.name}: {seconds:.0f} s, {processor:.0f} s of processor time, {size:.0f} kB")


def _processor_seconds() -> float:
    """Return the processor time of kernels that have ended, and of what they ran."""
    used = os.times()
    return used.children_user + used.children_system


if __name__ == "__main__":
    main()
