import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maskclip.data.sources import Source
from maskclip.tasks.label import ClassStats, LabelingError, Outcome
from maskclip.tasks.label.manifest import CHUNK, Counts, Manifest

SETTINGS = {"model": "emoji", "cleaning": {"confidence": 0.5}, "formats": ["png"]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "manifest.sqlite"


@pytest.fixture
def manifest(path):
    with Manifest(path) as opened:
        yield opened


def photos(*paths):
    return [Source(Path("/photos", path), path) for path in paths]


def many(count, start=0):
    return photos(*(f"{number:03}.jpg" for number in range(start, start + count)))


def tasks(manifest):
    return [task for chunk in manifest.chunks() for task in chunk]


def names(manifest):
    return [task.name for task in tasks(manifest)]


def done(task):
    return Outcome(task, 4, 3, (ClassStats(1, 9, 8, 0.75), ClassStats(0, 3, 0, 0.5)))


def failed(task):
    return Outcome(task, error=f"{task.path}: an empty file")


def test_photos_are_planned_under_their_names_and_paths(manifest):
    manifest.plan(photos("a.jpg", "sub/b.png"), SETTINGS)
    first, second = tasks(manifest)
    assert (first.path, first.relative_path, first.name) == (Path("/photos/a.jpg"), "a.jpg", "a")
    assert (second.relative_path, second.name) == ("sub/b.png", "sub/b")
    assert manifest.counts() == Counts(done=0, failed=0, left=2)
    assert list(manifest.outcomes()) == []


def test_what_became_of_photos_is_read_again_by_name(manifest):
    manifest.plan(photos("b.jpg", "a.jpg", "c.jpg"), SETTINGS)
    b, a, c = tasks(manifest)
    manifest.record([done(b), failed(a)])
    assert manifest.counts() == Counts(done=1, failed=1, left=1)
    assert manifest.counts().total == 3
    assert list(manifest.outcomes()) == [failed(a), done(b)]
    assert tasks(manifest) == [c]


def test_a_copy_holds_the_same_and_changes_nothing(path):
    with Manifest(path) as manifest:
        manifest.plan(photos("a.jpg", "b.jpg"), SETTINGS)
        manifest.record([done(tasks(manifest)[0])])
        expected = list(manifest.outcomes())
    content = path.read_bytes()
    copy = Manifest.copy_of(path)
    assert list(copy.outcomes()) == expected
    with pytest.raises(LabelingError, match="'emoji' there, 'RN50' wanted"):
        copy.check_settings({**SETTINGS, "model": "RN50"})
    copy.plan(photos("a.jpg", "c.jpg"), SETTINGS)
    assert names(copy) == ["c"]
    assert path.read_bytes() == content


def test_there_is_nothing_to_copy_where_there_is_no_file(path):
    assert Manifest.copy_of(path).counts() == Counts(0, 0, 0)
    assert not path.exists()


def test_failed_photos_are_planned_again_and_done_ones_are_not(manifest):
    manifest.plan(photos("a.jpg", "b.jpg"), SETTINGS)
    a, b = tasks(manifest)
    manifest.record([done(a), failed(b)])
    manifest.plan(photos("a.jpg", "b.jpg"), SETTINGS)
    assert tasks(manifest) == [b]
    manifest.record([done(b)])
    assert list(manifest.outcomes()) == [done(a), done(b)]


def test_photos_whose_files_are_missing_are_planned_again(manifest):
    manifest.plan(photos("a.jpg", "b.jpg"), SETTINGS)
    a, b = tasks(manifest)
    manifest.record([done(a), done(b)])
    manifest.plan(photos("a.jpg", "b.jpg"), SETTINGS, missing=[b.number])
    assert tasks(manifest) == [b]
    assert manifest.counts() == Counts(done=1, failed=0, left=1)
    manifest.record([done(b)])
    assert list(manifest.outcomes()) == [done(a), done(b)]


def test_photos_that_have_changed_are_planned_again(manifest, tmp_path):
    sources = [Source(tmp_path / path, path) for path in ("a.jpg", "b.jpg")]
    for source in sources:
        source.path.write_bytes(b"one")
    manifest.plan(sources, SETTINGS)
    a, b = tasks(manifest)
    manifest.record([done(a), done(b)])
    sources[1].path.write_bytes(b"another")
    for _ in range(2):  # also where the first of them was stopped
        manifest.plan(sources, SETTINGS)
        assert tasks(manifest) == [b]
    manifest.record([done(b)])
    sources[0].path.unlink()  # what is done stays
    manifest.plan(sources, SETTINGS)
    assert tasks(manifest) == []


def test_a_photo_that_vanished_and_came_back_as_it_was_is_not_done_again(manifest, tmp_path):
    sources = [Source(tmp_path / "a.jpg", "a.jpg")]
    sources[0].path.write_bytes(b"one")
    manifest.plan(sources, SETTINGS)
    manifest.record([done(*tasks(manifest))])
    for _ in range(2):
        sources[0].path.rename(tmp_path / "away")
        manifest.plan(sources, SETTINGS)  # from a list: it is named, and not there
        assert tasks(manifest) == []
        (tmp_path / "away").rename(sources[0].path)
        manifest.plan(sources, SETTINGS)
        assert tasks(manifest) == []
    sources[0].path.write_bytes(b"another")
    manifest.plan(sources, SETTINGS)
    assert len(tasks(manifest)) == 1


def test_progress_is_not_counted_in_the_file(manifest):
    manifest.plan(many(4 * CHUNK), SETTINGS)
    statements = []
    manifest._database.set_trace_callback(statements.append)
    for number, chunk in enumerate(manifest.chunks(), start=1):
        manifest.record([failed(chunk[0]), *map(done, chunk[1:])])
        left = CHUNK * (4 - number)
        assert manifest.counts() == Counts((CHUNK - 1) * number, number, left)
    assert not [line for line in statements if "count(" in line]
    manifest._database.set_trace_callback(None)
    assert manifest._counted() == manifest.counts()


def test_a_chunk_that_is_recorded_twice_counts_once(manifest):
    manifest.plan(photos("a.jpg", "b.jpg"), SETTINGS)
    a, _ = tasks(manifest)
    for _ in range(2):
        manifest.record([done(a)])
        assert manifest.counts() == Counts(done=1, failed=0, left=1) == manifest._counted()


def test_photos_that_are_not_given_any_more_are_forgotten_unless_done(manifest):
    manifest.plan(photos("done.jpg", "failed.jpg", "left.jpg", "kept.jpg"), SETTINGS)
    first, second, *_ = tasks(manifest)
    manifest.record([done(first), failed(second)])
    manifest.plan(photos("kept.jpg", "new.jpg"), SETTINGS)
    assert names(manifest) == ["kept", "new"]
    assert manifest.counts() == Counts(done=1, failed=0, left=2)


def test_names_stay_when_photos_of_the_same_name_come_later(manifest):
    manifest.plan(photos("x.jpg"), SETTINGS)
    manifest.plan(photos("x.png", "X.gif", "x.jpg"), SETTINGS)
    assert names(manifest) == ["x", "x_png", "X_gif"]
    manifest.plan(photos("x.jpg", "x.png", "X.gif", "x.bmp"), SETTINGS)
    assert names(manifest) == ["x", "x_png", "X_gif", "x_bmp"]


def test_photos_of_a_chunk_stay_together_after_a_partial_run(manifest, path):
    manifest.plan(many(2 * CHUNK + 3), SETTINGS)
    chunks = list(manifest.chunks())
    assert [len(chunk) for chunk in chunks] == [CHUNK, CHUNK, 3]
    manifest.record(map(done, chunks[1]))
    manifest.plan(many(2 * CHUNK + 5), SETTINGS)
    first, last, new = manifest.chunks()
    assert (first, last) == (chunks[0], chunks[2])
    assert [task.relative_path for task in new] == [f"{2 * CHUNK + more:03}.jpg" for more in (3, 4)]


def test_nothing_of_a_broken_record_stays(manifest):
    manifest.plan(photos("a.jpg", "b.jpg"), SETTINGS)
    a, b = tasks(manifest)

    def interrupted():
        yield done(a)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manifest.record(interrupted())
    assert list(manifest.outcomes()) == []
    assert tasks(manifest) == [a, b]
    manifest.record([done(a)])
    assert list(manifest.outcomes()) == [done(a)]


def test_other_settings_are_refused_with_the_difference(manifest, tmp_path):
    manifest.check_settings(SETTINGS)
    manifest.plan(photos("a.jpg"), SETTINGS)
    manifest.check_settings({**SETTINGS, "formats": ("png",)})
    other = {**SETTINGS, "cleaning": {"confidence": 0.7}, "model": "RN50"}
    with pytest.raises(LabelingError) as caught:
        manifest.check_settings(other)
    assert str(caught.value) == (
        f"{tmp_path} holds labels of other settings: model: 'emoji' there, 'RN50' wanted; "
        "cleaning.confidence: 0.5 there, 0.7 wanted. Choose another `out`"
    )
    manifest.check_settings(other, ignore=["model", "cleaning"])


def test_a_second_labelling_in_the_same_folder_is_refused(manifest, path):
    manifest.plan(photos("a.jpg"), SETTINGS)
    with pytest.raises(LabelingError, match="is in use: another labelling writes there"):
        Manifest(path)


def test_a_copy_of_a_manifest_in_use_is_refused_and_not_waited_for(manifest, path):
    manifest.plan(photos("a.jpg"), SETTINGS)
    answers = []

    def copy():
        try:
            answers.append(Manifest.copy_of(path).counts())
        except LabelingError as error:
            answers.append(str(error))

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    thread.join(10)
    assert answers == [f"{path} is in use: another labelling writes there"]


KILLED = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("pragma cache_size = 5")  # pages: more are written before the end
database.execute("begin immediate")
database.execute("update photos set relative_path = hex(randomblob(4000)), chunk = null")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("opened", [Manifest, Manifest.copy_of])
def test_what_was_being_written_when_it_was_killed_is_undone(path, opened):
    with Manifest(path) as manifest:
        manifest.plan(many(50), SETTINGS)
        expected = tasks(manifest)
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    with opened(path) as again:
        assert tasks(again) == expected


@pytest.mark.parametrize("opened", [Manifest, Manifest.copy_of])
def test_a_file_that_is_no_manifest_is_refused(path, opened):
    path.write_text("not a database " * 100)
    with pytest.raises(LabelingError, match="the record of what is done cannot be read or written"):
        opened(path)


@pytest.mark.parametrize(
    "edit",
    [
        "update settings set content = '{'",
        "update settings set content = '[1]'",
        "update photos set metadata = '[1]' where metadata is not null",
        """update photos set metadata = '{"width": "x", "z": 2}' where metadata is not null""",
        "update class_stats set class = 99999 where class = 1",
        "update class_stats set score = 'x'",
        "update photos set path = 5 where number = 1",
        "update photos set name = x'ff00' where number = 1",
        "update photos set name = '../../evil' || number",
        "update photos set name = '/tmp/evil' || number",
    ],
)
def test_an_edited_record_is_one_line(path, edit):
    settings = {**SETTINGS, "vocabulary": {"names": ["dog", "cat"]}}
    with Manifest(path) as manifest:
        manifest.plan(photos("a.jpg", "b.jpg"), settings)
        manifest.record([done(tasks(manifest)[0])])
        manifest.plan(photos("a.jpg", "b.jpg", "c.jpg"), settings)
    with sqlite3.connect(path) as database:
        database.execute(edit)
    database.close()

    def read():
        with Manifest(path) as manifest:
            manifest.check_settings(settings)
            manifest.plan(photos("a.jpg", "b.jpg", "c.jpg"), settings)
            return tasks(manifest), list(manifest.outcomes())

    with pytest.raises(LabelingError, match=r"the record of what is done is damaged .*remove it"):
        read()


def test_paths_that_are_not_utf8_are_kept(manifest):
    source = Source(Path(os.fsdecode(b"/photos/x\xff.jpg")), os.fsdecode(b"x\xff.jpg"))
    manifest.plan([source], SETTINGS)
    (task,) = tasks(manifest)
    assert task.path == source.path
    assert (task.relative_path, task.name) == ("x\\udcff.jpg", "x\\udcff")
    manifest.record([failed(task)])
    (outcome,) = manifest.outcomes()
    assert outcome.error == "/photos/x\\udcff.jpg: an empty file"
    manifest.plan([source], SETTINGS)
    assert tasks(manifest) == [task]
