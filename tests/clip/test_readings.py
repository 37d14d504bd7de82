"""The table of `maskclip models --methods`: what runs with what."""

import json

import open_clip
import pytest

from maskclip.cli import main
from maskclip.clip.families import traits_of_config
from maskclip.clip.published import architectures, model_config
from maskclip.clip.readings import EXAMPLES, families, reading_of
from maskclip.core.methods import METHODS

NO_CLASS_TOKEN = {"SigLIP, SigLIP 2", "PE-Core bigG", "ViTamin", "ViT-M, a mean"}
NO_BLOCKS = ["CLIP's ResNets", "MobileCLIP-S0 to S2", "MobileCLIP2-S3, S4", "ConvNeXt", "Swin"]
OF_BLOCKS = set(METHODS) - {"clean", "published", "baseline"}


@pytest.fixture(scope="module")
def table():
    return dict(families())


def test_every_family_has_a_row(table):
    kinds = {traits_of_config(model_config(name)) for name in architectures()}
    shown = {traits_of_config(model_config(name)) for name in EXAMPLES.values()}
    assert kinds == shown
    assert list(table) == list(EXAMPLES)
    assert set(EXAMPLES.values()) <= set(open_clip.list_models())


def test_the_methods_of_a_family_are_those_that_its_network_has_the_parts_for(table):
    for family, reading in table.items():
        if family in NO_BLOCKS:
            assert set(reading.refused) == OF_BLOCKS
        elif family in NO_CLASS_TOKEN:
            assert set(reading.refused) == {"scclip", "sfp"}
        else:
            assert not reading.refused, family
        assert reading.methods() == [name for name in METHODS if name not in reading.refused]
        assert all("\n" not in reason for reason in reading.refused.values())
        assert reading.keys == (family not in NO_BLOCKS[1:])


def test_it_describes_towers(table):
    found = table["CLIP's ViTs"]
    assert (found.architecture, found.cell, found.parameters) == ("ViT-B-16", 16, 86_192_640)
    assert reading_of("ViT-B-32").cell == 32


def test_models_prints_it(capsys):
    assert main(["models", "--methods"]) == 0
    lines = capsys.readouterr().out
    assert "all but scclip, sfp" in lines
    assert "SigLIP" in lines
    assert "all 13" in lines
    assert main(["models", "--methods", "--json"]) == 0
    found = {entry["family"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(found["ViTamin"]["refused"]) == {"scclip", "sfp"}
