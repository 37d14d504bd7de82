import os
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskclip.core.files import atomic_path, make_durable, read_entry, remove_unfinished, write_text


def test_content_appears_under_the_name_wanted(tmp_path):
    target = tmp_path / "new" / "folders" / "grüße.png"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.suffix == ".png"
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == [target.name]  # noqa: PTH208 - names are what counts


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_failure_leaves_everything_as_it_was(tmp_path, failure, before):
    target = tmp_path / "a.txt"
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(failure), atomic_path(target) as temporary:  # noqa: PT012 - one manager
        temporary.write_bytes(b"half")
        raise failure
    assert [path.read_bytes() for path in tmp_path.iterdir()] == (
        [] if before is None else [before]
    )


def test_an_existing_file_is_replaced(tmp_path):
    target = tmp_path / "a.txt"
    for text in ("first, longer", "second"):
        with atomic_path(target) as temporary:
            temporary.write_text(text)
    assert target.read_text() == "second"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_results_have_the_permissions_of_ordinary_files(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        now = os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode
    assert now == mask


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_threads_leave_no_file_that_others_may_write(tmp_path, monkeypatch):
    before = os.umask(0o022)
    try:
        with monkeypatch.context() as patch, ThreadPoolExecutor(8) as pool:
            patch.setattr(os, "umask", lambda mask: pytest.fail("it is the whole process's"))
            list(pool.map(lambda index: write_text("x", tmp_path / f"{index}.txt"), range(400)))
    finally:
        now = os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert (modes, now, len(list(tmp_path.iterdir()))) == ({0o644}, 0o022, 400)


def test_a_file_in_the_way_of_a_folder_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"), atomic_path(tmp_path / "file" / "a.txt"):
        pytest.fail("the block must not run")


KILLED = """
import os, signal, sys
from maskclip.core.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_what_a_killed_process_leaves_can_be_removed(tmp_path):
    (tmp_path / "a").mkdir()
    kept = tmp_path / "a" / "photo.png"
    kept.write_text("whole")
    done = subprocess.run([sys.executable, "-c", KILLED, str(kept)], check=False)
    assert done.returncode == -9
    assert len(list(kept.parent.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.read_text() == "whole"


def test_files_and_their_folders_are_brought_to_the_disk(tmp_path, monkeypatch):
    synced, plain = set(), os.fsync

    def sync(handle):
        synced.add(os.fstat(handle).st_ino)
        plain(handle)

    monkeypatch.setattr(os, "fsync", sync)
    paths = [tmp_path / "a" / "x.txt", tmp_path / "b" / "y.txt"]
    for path in paths:
        write_text("text", path)
    make_durable(paths)
    folders = [path.parent for path in paths] if os.name == "posix" else []
    assert synced == {path.stat().st_ino for path in [*paths, *folders]}
    with pytest.raises(FileNotFoundError):
        make_durable([tmp_path / "gone"])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_entries_that_unpack_more_than_is_wanted_are_not_read(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("packed", bytes(100), method)
        archive.writestr("deflated", bytes(100), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        assert read_entry(archive, archive.getinfo("deflated"), most=7) == bytes(7)
        with pytest.raises(ValueError, match="a method that is not read"):
            read_entry(archive, archive.getinfo("packed"), most=7)
