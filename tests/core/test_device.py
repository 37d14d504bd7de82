import pytest
import torch

from maskclip.core import device as module
from maskclip.core.device import choose_precision
from maskclip.core.errors import MaskCLIPError

CPU = torch.device("cpu")
LARGE, SMALL = 86_000_000, 2_000_000


@pytest.mark.parametrize("pays", [True, False])
def test_auto_is_bfloat16_where_it_pays_and_never_for_small_networks(monkeypatch, pays):
    monkeypatch.setattr(module, "_bfloat16_pays", lambda: pays)
    expected = torch.bfloat16 if pays else torch.float32
    assert choose_precision("auto", CPU, parameters=LARGE) == expected
    assert choose_precision("auto", CPU, parameters=SMALL) == torch.float32
    assert choose_precision("auto", torch.device("mps"), parameters=LARGE) == torch.float32


def test_the_probe_decides():
    assert isinstance(module._bfloat16_pays(), bool)


def test_a_precision_that_is_named_is_taken():
    assert choose_precision("float16", CPU, parameters=SMALL) == torch.float16
    with pytest.raises(MaskCLIPError, match="unknown precision 'half': expected auto, float32"):
        choose_precision("half", CPU, parameters=SMALL)
