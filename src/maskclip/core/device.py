"""Choosing where and how precisely to compute, at run time."""

from __future__ import annotations

import torch

from maskclip.core.errors import MaskCLIPError

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` prefers CUDA, then Apple's GPU, then the CPU.

    Raises:
        MaskCLIPError: no such device, or not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # a device without values, `meta`, fails here too
    except (RuntimeError, AssertionError) as error:
        raise MaskCLIPError(
            f"device {name!r} is not to be had here: expected auto, cpu, cuda, cuda:N or mps, "
            "of those that `maskclip doctor` lists"
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `name`; `auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        MaskCLIPError: no such precision.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in PRECISIONS:
        raise MaskCLIPError(f"unknown precision {name!r}: expected auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
