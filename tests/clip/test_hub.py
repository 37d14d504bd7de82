"""Downloads from a hub on this machine: whole, broken off, wrong, refused."""

import errno
import shutil
from pathlib import Path

import pytest

from maskclip.clip import hub as module
from maskclip.clip.hub import (
    DownloadError,
    NoSuchFileError,
    cache_folder,
    cached_file,
    fetch_address,
    hub_file,
    hub_folder,
)
from maskclip.core.errors import MaskCLIPWarning
from tests.hub_server import COMMIT, running, serving

WEIGHTS = bytes(range(256)) * 1000
NAME, FILE = "someone/tiny", "open_clip_model.safetensors"


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # its retries wait
    with serving(monkeypatch) as hub:
        hub.files[f"{NAME}/{FILE}"] = WEIGHTS
        yield hub


def left_behind():
    """Return the files of the cache that hold content, by their size."""
    folder = cache_folder(NAME) / "blobs"
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.exists() else {}


def test_a_file_is_downloaded_once_and_lies_where_the_hubs_client_finds_it(hub):
    assert cached_file(NAME, FILE) is None
    path = hub_file(NAME, FILE)
    assert path.read_bytes() == WEIGHTS
    assert path == cache_folder(NAME) / "snapshots" / COMMIT / FILE == cached_file(NAME, FILE)
    sent = len(hub.requests)
    assert hub_file(NAME, FILE) == path
    assert len(hub.requests) == sent


def test_the_first_that_there_is_is_taken(hub):
    assert hub_file(NAME, "better.bin", FILE).name == FILE
    with pytest.raises(NoSuchFileError, match=r"someone/tiny at http.*has no a\.bin and no b\.bin"):
        hub_file(NAME, "a.bin", "b.bin")


def test_other_revisions_are_files_of_their_own(hub):
    assert hub_file(NAME, FILE, revision="v1").read_bytes() == WEIGHTS
    assert cached_file(NAME, FILE) is None
    with pytest.raises(DownloadError, match="has no revision v9"):
        hub_file(NAME, FILE, revision="v9")


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, monkeypatch, capsys):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    real = file_download.http_get

    def once(*arguments, **options):
        return real(*arguments, **options, _nb_retries=0)

    monkeypatch.setattr(file_download, "http_get", once)
    hub.breaks_after = 100_000
    with pytest.raises(DownloadError, match="someone/tiny: "):
        hub_file(NAME, FILE)
    assert cached_file(NAME, FILE) is None
    ((name, size),) = left_behind().items()
    assert name.endswith(".unfinished")
    assert size == 100_000
    assert "Error while" not in capsys.readouterr().err
    hub.breaks_after, hub.requests = None, []
    assert hub_file(NAME, FILE).read_bytes() == WEIGHTS
    assert ("GET", f"/{NAME}/resolve/main/{FILE}", f"bytes={size}-") in hub.requests
    assert not any(name.endswith(".unfinished") for name in left_behind())


def test_a_wrong_hash_is_refused_and_leaves_nothing_behind(hub):
    hub.damaged.add(f"{NAME}/{FILE}")
    with pytest.raises(DownloadError, match=r"its hash is not .* and it was thrown away") as error:
        hub_file(NAME, FILE)
    assert "\n" not in str(error.value)
    assert left_behind() == {}
    assert cached_file(NAME, FILE) is None
    hub.damaged.clear()
    assert hub_file(NAME, FILE).read_bytes() == WEIGHTS


def test_what_was_left_of_another_file_is_found_out(hub):
    import hashlib

    blobs = cache_folder(NAME) / "blobs"
    blobs.mkdir(parents=True)
    unfinished = blobs / f"{hashlib.sha256(WEIGHTS).hexdigest()}.unfinished"
    unfinished.write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="hash"):
        hub_file(NAME, FILE)
    unfinished.write_bytes(b"x" * (len(WEIGHTS) + 1))  # longer than the file: begun anew
    assert hub_file(NAME, FILE).read_bytes() == WEIGHTS


def test_a_mirror_without_hashes_is_warned_of(hub):
    hub.says_hash = False
    with pytest.warns(MaskCLIPWarning, match="does not say the hash"):
        assert hub_file(NAME, FILE).read_bytes() == WEIGHTS


def test_the_token_of_the_environment_goes_to_the_hub(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub_file(NAME, FILE)
    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_files_that_lie_elsewhere_come_from_there_without_the_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running() as elsewhere:
        elsewhere.files[f"{NAME}/{FILE}"] = WEIGHTS
        hub.elsewhere = elsewhere
        assert hub_file(NAME, FILE).read_bytes() == WEIGHTS
        assert [method for method, *_ in elsewhere.requests] == ["GET"]
        assert elsewhere.tokens == [None]
    assert "Bearer hf_secret" in hub.tokens


@pytest.mark.parametrize(
    ("status", "part"),
    [
        ((403, "GatedRepo"), "is gated: accept its terms .* HF_TOKEN"),
        ((401, "GatedRepo"), "is gated: accept its terms .* HF_TOKEN"),
        ((401, "RepoNotFound"), "no such repository, or it is private: .*HF_TOKEN"),
        ((404, "RepoNotFound"), "no such repository, or it is private"),
        ((500, ""), "answered with HTTP 500"),
    ],
)
def test_refusals_are_one_line(hub, status, part, monkeypatch):
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    hub.status[NAME] = status
    with pytest.raises(DownloadError, match=part) as error:
        hub_file(NAME, FILE)
    assert "\n" not in str(error.value)
    assert NAME in str(error.value)


@pytest.mark.parametrize("name", ["a/b/c", "a b/c", "../x", "", "a/b:c", "a--b/..c"])
def test_what_is_no_name_of_a_repository_is_one_line(hub, name):
    with pytest.raises(DownloadError) as error:
        hub_file(name, FILE)
    assert "\n" not in str(error.value)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"the disk is full .* free\): make room.*HF_HUB_CACHE"):
        hub_file(NAME, FILE)
    assert not any(method == "GET" for method, *_ in hub.requests)


@pytest.mark.parametrize(
    ("number", "part"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot be written .*HF_HUB_CACHE")],
)
def test_a_cache_that_cannot_be_written_is_one_line(hub, number, part, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(number, "of the system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DownloadError, match=part) as error:
        hub_file(NAME, FILE)
    assert "\n" not in str(error.value)


class TestAddresses:
    def test_of_their_own_are_checked_by_the_hash_that_they_hold(self, hub, tmp_path):
        import hashlib

        digest = hashlib.sha256(WEIGHTS).hexdigest()
        url = f"{hub.address}/{NAME}/resolve/main/{FILE}"
        target = tmp_path / "clip" / "tiny.pt"
        fetch_address(url, target, digest=digest[:8])
        assert target.read_bytes() == WEIGHTS
        target.unlink()
        with pytest.raises(DownloadError, match="its hash is not 00000000"):
            fetch_address(url, target, digest="0" * 8)
        assert list(target.parent.iterdir()) == []

    def test_no_token_is_sent_there(self, hub, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        fetch_address(f"{hub.address}/{NAME}/resolve/main/{FILE}", tmp_path / "x", digest="")
        assert set(hub.tokens) == {None}


def test_a_folder_of_small_files_is_complete_once_one_of_the_needed_is_there(hub):
    hub.files[f"{NAME}/tokenizer.json"], hub.files[f"{NAME}/config.json"] = b"{}", b"{ }"
    names = ("tokenizer.json", "vocab.json", "config.json")
    folder = hub_folder(NAME, names[:2], names)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    sent = len(hub.requests)
    assert hub_folder(NAME, names[:2], names) == folder
    assert len(hub.requests) == sent
    with pytest.raises(NoSuchFileError, match=r"has none of vocab\.txt"):
        hub_folder(NAME, ["vocab.txt"], ["vocab.txt"])
