"""`maskclip download`, from a hub on this machine."""

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save

from maskclip.cli import main
from maskclip.clip.hub import cached_file
from maskclip.clip.weights import load_clip
from tests.hub_server import serving

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
CONFIG = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
STATISTICS = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    state = open_clip.CLIP(**CONFIG).state_dict()
    return save({key: value.contiguous() for key, value in state.items()})


@pytest.fixture
def hub(monkeypatch, weights):
    """Serve the weights of a small architecture that open_clip knows, and its tokenizer."""
    text = {**TEXT, "hf_tokenizer_name": "someone/words"}
    for name, words in (("ViT-tiny-16", TEXT), ("ViT-words-16", text)):
        config = {**CONFIG, "text_cfg": words}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        tags = {"laion": {"hf_hub": "someone/tiny/", "quick_gelu": True, **STATISTICS}}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    with serving(monkeypatch) as hub:
        hub.files |= {
            f"someone/tiny/{WEIGHTS}": weights,
            "someone/tiny/README.md": b"---\nlicense: mit\n---\n",
            "someone/words/tokenizer.json": b"{}",
            "someone/words/tokenizer_config.json": b"{}",
        }
        yield hub


def sent(hub, method="GET"):
    return [path for kind, path, _ in hub.requests if kind == method and "/resolve/" in path]


def test_what_a_model_needs_is_downloaded_once(hub, capsys):
    assert main(["download", "ViT-words-16"]) == 0
    printed = capsys.readouterr()
    assert "ViT-words-16:laion: someone/tiny; licence: unknown, not known to" in printed.err
    for repository, file in (
        ("someone/tiny", WEIGHTS),
        ("someone/tiny", "README.md"),
        ("someone/words", "tokenizer.json"),
        ("someone/words", "tokenizer_config.json"),
    ):
        assert f"-> {cached_file(repository, file)}\n" in printed.out
    before = len(sent(hub))
    assert main(["download", "ViT-words-16:laion"]) == 0
    assert len(sent(hub)) == before
    assert "licence: mit\n" in capsys.readouterr().err  # by the model card, which is here now


def test_a_model_becomes_a_folder_that_any_machine_reads(hub, tmp_path, capsys, monkeypatch):
    assert main(["download", "ViT-tiny-16:laion", "--out", str(tmp_path / "models")]) == 0
    folder = tmp_path / "models" / "ViT-tiny-16--laion"
    assert f"-> {folder}\n" in capsys.readouterr().out
    own = load_clip("ViT-tiny-16:laion")
    there = load_clip(str(folder))
    assert there.fingerprint == own.fingerprint
    assert "QuickGELU" in repr(there.visual)
    assert (there.mean, there.std) == (STATISTICS["mean"], STATISTICS["std"])
    again = tmp_path / "again"
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    hub.files["someone/tiny/open_clip_config.json"] = (
        tmp_path / "open_clip_config.json"
    ).read_bytes()
    assert main(["download", "hf-hub:someone/tiny@v1", "--out", str(again)]) == 0
    assert load_clip(str(again / "someone--tiny--v1")).fingerprint == own.fingerprint


def test_the_list_asks_nobody_and_says_what_to_put_where(hub, weights, capsys):
    assert main(["download", "ViT-tiny-16:laion", "--list"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert hub.requests == []
    assert f"{hub.address}/someone/tiny/resolve/main/{WEIGHTS}" in lines
    start = lines.index("For a machine without a connection, put these files there into:")
    folder, reference = lines[start + 1 : start + 3]
    word, _, file = reference.removeprefix("and the word ").partition(" into the text file ")
    for path, content in ((Path(folder) / WEIGHTS, weights), (Path(file), word.encode())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    load_clip("ViT-tiny-16:laion")
    assert hub.requests == []
    assert main(["download", "ViT-tiny-16:laion", "--list"]) == 0
    assert "weights: here" in capsys.readouterr().out


def test_what_is_here_is_copied_as_it_is(hub, capsys):
    del hub.files["someone/tiny/README.md"]  # no model needs it
    assert main(["download", "ViT-tiny-16:laion"]) == 0
    capsys.readouterr()
    assert main(["download", "ViT-tiny-16:laion", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "copy with the links in them:\n" in printed
    assert printed.rstrip().endswith("models--someone--tiny")


def test_unknown_models_are_refused_before_anything_is_downloaded(hub, capsys):
    assert main(["download", "ViT-tiny-16:laion", "ViT-tinny-16"]) == 2
    assert "unknown model 'ViT-tinny-16'; nearest: ViT-tiny-16" in capsys.readouterr().err
    assert sent(hub) == []


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda hub: hub.damaged.add(f"someone/tiny/{WEIGHTS}"), "its hash is not"),
        (lambda hub: hub.status.update({"someone/tiny": (403, "GatedRepo")}), "is gated"),
        (lambda hub: hub.files.pop(f"someone/tiny/{WEIGHTS}"), "has no open_clip_model"),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(hub, spoil, line, capsys):
    spoil(hub)
    assert main(["download", "ViT-tiny-16:laion"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ViT-tiny-16:laion cannot be downloaded (")
    assert line in error
    assert "`maskclip download ViT-tiny-16:laion --list` says what to copy by hand" in error


def test_what_comes_with_the_package_needs_no_download(tmp_path, capsys):
    assert main(["download", "emoji", "photo"]) == 0
    assert capsys.readouterr().out == "emoji needs no download\nphoto needs no download\n"
    (tmp_path / "own.pt").write_bytes(b"")
    assert main(["download", str(tmp_path / "own.pt")]) == 2
    assert "is a file or folder of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--list",)], ids=("download", "list"))
@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:../../etc", "hf-hub:a/b/c@main"])
def test_what_is_no_name_of_a_repository_is_one_line_of_what_is(name, options, capsys):
    assert main(["download", name, *options]) == 2
    expected = f"error: '{name}' is no name of a repository: expected hf-hub:org/name"
    assert capsys.readouterr().err.startswith(expected)


def test_an_out_that_is_a_file_is_refused_before_the_download(hub, tmp_path, capsys):
    (tmp_path / "models").touch()
    assert main(["download", "ViT-tiny-16:laion", "--out", str(tmp_path / "models")]) == 2
    assert "models is a file: expected a folder" in capsys.readouterr().err
    assert not sent(hub)


def test_a_list_takes_no_folder(hub, tmp_path, capsys):
    assert main(["download", "ViT-tiny-16:laion", "--list", "--out", str(tmp_path)]) == 2
    assert "--list writes nothing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["./models/mine", "../mine:laion"])
def test_a_path_that_is_not_there_is_said_to_be_missing_as_it_was_written(name, capsys):
    assert main(["download", name]) == 2
    wanted = f"unknown model '{name.partition(':')[0]}', and no file or folder of this name"
    assert wanted in capsys.readouterr().err


def test_a_repository_without_its_prefix_is_said_how_to_write(capsys):
    assert main(["download", "laion/tiny"]) == 2
    assert "(a repository of the hub is written hf-hub:laion/tiny)" in capsys.readouterr().err
