import datetime
import tomllib
from importlib.resources import files

import pytest

from maskclip.clip import catalog
from maskclip.clip.catalog import COMMERCIAL, family_of, license_of, published_weights, read_size
from maskclip.clip.hub import cache_folder
from maskclip.clip.open_clip_models import count_parameters
from maskclip.core.errors import MaskCLIPError
from tools.models import count

AGAIN = "write the list again: python -m tools.models"


def cached(repository, **contents):
    """Put files into the hub's cache, as if they had been downloaded."""
    folder = cache_folder(repository)
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    for name, content in contents.items():
        path = folder / "snapshots" / "abc" / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_the_list_is_open_clips():
    known = catalog._table()
    parameters = {name: about["parameters"] or 1 for name, about in known.items()}
    for name, about in catalog.read_open_clip(parameters).items():
        for key in ("image_size", "tags"):
            assert known[name][key] == about[key], AGAIN
        assert about["read"] or not known[name]["read"], AGAIN


@pytest.mark.parametrize("architecture", ["RN50", "ViT-S-32-alt", "PE-Core-T-16-384"])
def test_parameters_are_counted(architecture):
    assert catalog._table()[architecture]["parameters"] == count_parameters(architecture), AGAIN


def test_every_size_is_known_those_of_text_towers_of_transformers_by_their_shapes():
    assert all(weights.size for weights in published_weights())
    listed = catalog._table()["nllb-clip-base"]["parameters"]
    assert count("nllb-clip-base") == listed == 501_885_185  # as open_clip's own table has it
    assert count_parameters("nllb-clip-base") is None  # whose config.json is not on this machine


@pytest.mark.full
def test_what_has_become_readable_is_listed():
    known = catalog._table()
    parameters = {name: about["parameters"] or 1 for name, about in known.items()}
    for name, about in catalog.read_open_clip(parameters).items():
        assert known[name]["read"] == about["read"], AGAIN


@pytest.mark.full
def test_all_parameters_are_counted():
    for architecture, about in catalog._table().items():
        counted = count(architecture)
        assert counted is None or about["parameters"] == counted, AGAIN


def test_of_another_release_of_open_clip_its_own_list_is_read(monkeypatch):
    monkeypatch.setattr(catalog, "version", lambda _: "99.0")
    monkeypatch.setattr(catalog, "read_open_clip", lambda known: {"asked": known})
    assert catalog._table.__wrapped__()["asked"]["RN50"] > 1e8


def test_every_licence_has_a_source_and_is_about_weights_that_there_are():
    text = files("maskclip.clip").joinpath("licenses.toml").read_text("utf-8")
    entries = tomllib.loads(text)["license"]
    repositories = {
        catalog.hub_files(where)[0]
        for about in catalog._table().values()
        for where in about["tags"].values()
    }
    for entry in entries:
        assert entry["source"].startswith("https://")
        assert isinstance(entry["read"], datetime.date)
        for pattern in entry["repositories"]:
            assert any(catalog.fnmatchcase(each, pattern) for each in repositories), pattern


def test_unknown_licences_and_those_for_research_are_not_commercial():
    for weights in published_weights():
        assert weights.commercial == (weights.license in COMMERCIAL)
        assert (weights.source == "") == (weights.license == "unknown")
    assert not {"unknown", "apple-amlr", "cc-by-nc-4.0", "other"} & COMMERCIAL


@pytest.mark.parametrize(
    ("card", "name"),
    [
        (b"---\nlicense: bsd-3-clause\ntags: [a]\n---\n# Card", "bsd-3-clause"),
        (b"---\nlicense: other\nlicense_name: Own-1.0\n---\n", "own-1.0"),
        (b"---\nlicense: other\n---\n", "other"),
        (b"# No head\n---\nlicense: mit\n---\n", "unknown"),
        (b"---\nlicense: [mit]\n---\n", "unknown"),
        (b"---\nlicense: 'm\\x1bit'\n---\n", "unknown"),
        (b"---\n{" + b"[" * 5000, "unknown"),
        (b"\xff\xfe\x00", "unknown"),
    ],
)
def test_a_model_card_on_this_machine_says_the_licence(card, name):
    cached("someone/tiny", README__md=card)
    assert license_of("someone/tiny")[0] == name


def test_weights_on_this_machine_have_their_own_size():
    before = {each.name: each for each in published_weights()}["ViT-B-16:openai"]
    assert before.path is None
    cached(before.repository, open_clip_model__safetensors=b"x" * 123)
    found = {each.name: each for each in published_weights()}["ViT-B-16:openai"]
    assert found.size == 123
    assert found.path.name == "open_clip_model.safetensors"
    here = catalog.Filter(here=True)
    assert [each.name for each in published_weights() if here.passes(each)] == [
        "ViT-B-16:openai",
        "ViT-B-16-quickgelu:openai",
    ]


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("RN50x4-quickgelu", "resnet"),
        ("ViT-B-16", "vit"),
        ("ViT-H-14-worldwide-378", "metaclip2"),
        ("ViT-L-14-CLIPA-336", "clipa"),
        ("ViT-SO400M-14-SigLIP-384", "siglip"),
        ("ViT-gopt-16-SigLIP2-256", "siglip2"),
        ("nllb-clip-base-siglip", "nllb"),
        ("MobileCLIP-S1", "mobileclip"),
        ("MobileCLIP2-L-14", "mobileclip2"),
        ("PE-Core-bigG-14-448", "pe-core"),
        ("EVA02-E-14-plus", "eva"),
        ("coca_roberta-ViT-B-32", "coca"),
        ("convnext_xxlarge", "convnext"),
        ("ViTamin-XL-384", "vitamin"),
        ("xlm-roberta-large-ViT-H-14", "multilingual"),
        ("swin_base_patch4_window7_224", "swin"),
    ],
)
def test_families_are_told_by_name(architecture, family):
    assert family_of(architecture) == family


@pytest.mark.parametrize(
    ("text", "size"),
    [("600MB", 600_000_000), ("1.5 gb", 1_500_000_000), ("2GiB", 2**31), ("7", 7), ("3k", 3000)],
)
def test_sizes_are_read(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "2 bananas", "1.GB", "9" * 5 + "x"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(MaskCLIPError, match="expected a size such as"):
        read_size(text)
