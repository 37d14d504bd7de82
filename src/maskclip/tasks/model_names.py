"""What the name of a model names: a CLIP, a student, the preview, an exported file.

Quick to import, so that a wrong name is refused before torch is there.
"""

from __future__ import annotations

from pathlib import Path

from maskclip.clip.hub import names_folder
from maskclip.core.config import ALIASES, EMBEDDED, PREVIEWS
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import refuse_missing_model
from maskclip.export.description import PROGRAM_SUFFIX, SUFFIX
from maskclip.plus.files import is_student_file, student_file


def names_exported(name: str) -> bool:
    """Return whether the name of a model is that of an exported file.

    Raises:
        MaskCLIPError: there is no such file.
    """
    if Path(name).suffix.lower() != SUFFIX:
        return False
    refuse_missing_model(name)
    return True


def names_clip(name: str) -> bool:
    """Return whether the name of a model is a CLIP's: no preview's, student's or exported file's.

    Raises:
        MaskCLIPError: as `names_student`.
    """
    return name not in PREVIEWS and not names_student(name) and not names_exported(name)


def names_student(name: str) -> bool:
    """Return whether the name of a model is the file of a student, or a run folder with one.

    Raises:
        MaskCLIPError: it names a file that there is not, or a folder that is no run folder.
    """
    if "://" in name:
        raise MaskCLIPError(f"{name} is an address: download the file, and give its path")
    if names_folder(name):
        return False
    if Path(name).suffix == PROGRAM_SUFFIX:
        raise MaskCLIPError(
            f"{name}: a program of torch.export, which its readers run without maskclip: give the "
            f"model, or a file exported as {SUFFIX}"
        )
    if name in {*EMBEDDED, *ALIASES, *PREVIEWS}:
        return False
    refuse_missing_model(name)
    if Path(name).is_dir() and student_file(Path(name)) == Path(name) and not _is_clip(name):
        raise MaskCLIPError(
            f"{name} is a folder, but no run folder: expected student.safetensors or best.ckpt in "
            "it, as `maskclip train` leaves them, or open_clip_config.json, as open_clip does"
        )
    return is_student_file(Path(name))


def _is_clip(name: str) -> bool:
    from maskclip.clip.published import architectures

    return name.partition(":")[0] in architectures()
