import contextlib
import socket
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from maskclip.core import device as module
from maskclip.core.device import choose_precision, costing, free_memory, is_out_of_memory, machine
from maskclip.core.errors import MaskCLIPError

CPU = torch.device("cpu")
LARGE, SMALL = 86_000_000, 2_000_000


@pytest.mark.parametrize("pays", [True, False])
def test_auto_is_bfloat16_where_it_pays_and_never_for_small_networks(monkeypatch, pays):
    monkeypatch.setattr(module, "BFLOAT16", Mock(pays=lambda: pays))
    expected = torch.bfloat16 if pays else torch.float32
    assert choose_precision("auto", CPU, parameters=LARGE) == expected
    assert choose_precision("auto", CPU, parameters=SMALL) == torch.float32
    assert choose_precision("auto", torch.device("mps"), parameters=LARGE) == torch.float32


@pytest.mark.parametrize("emulated", [True, False])
def test_auto_is_never_bfloat16_where_a_gpu_only_emulates_it(monkeypatch, emulated):
    def supported(including_emulation=True):
        return not emulated or including_emulation

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    expected = torch.float32 if emulated else torch.bfloat16
    assert choose_precision("auto", torch.device("cuda"), parameters=LARGE) == expected


def test_want_of_memory_is_known_whatever_raises_it():
    with pytest.raises(RuntimeError) as raised:  # the CPU's, truly
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(MemoryError) as raised:
        np.empty(2**62, np.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(RuntimeError("Invalid buffer size: 24.00 GB"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.skipif(sys.platform != "linux", reason="known on Linux only")
def test_free_memory_is_less_than_all():
    assert 0 < free_memory() < 2**46


def test_a_precision_that_is_named_is_taken():
    assert choose_precision("float16", CPU, parameters=SMALL) == torch.float16
    with pytest.raises(MaskCLIPError, match="unknown precision 'half': expected auto, float32"):
        choose_precision("half", CPU, parameters=SMALL)


def test_the_cost_of_a_block_is_its_own():
    with costing(torch.device("cpu")) as small:
        pass
    with costing(torch.device("cpu")) as large:
        torch.ones(100 * 2**20, dtype=torch.uint8).sum()
    assert 0 <= small.seconds < large.seconds
    if small.memory is None or large.memory is None:
        pytest.skip("peak memory is not to be had here")
    assert large.memory - small.memory > 90 * 2**20


def test_where_the_peak_is_not_to_be_had_it_is_none(monkeypatch):
    monkeypatch.setattr(module, "_forget_peak", lambda device: False)
    with costing(torch.device("cpu")) as cost:
        pass
    assert cost.memory is None


def test_a_machine_is_described_without_names_of_people_or_hosts():
    described = machine(torch.device("cpu"))
    assert described["threads"] == torch.get_num_threads()
    assert described["gpu"] is None
    assert socket.gethostname() not in str(described)
