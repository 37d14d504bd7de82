"""What people make of a labelling is on the disk when it is answered, and can be undone."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import (
    ACCEPTED,
    OPEN,
    REJECTED,
    UNTOUCHED,
    Correction,
    CorrectionJournal,
    Corrections,
)
from maskclip.data.formats.base import Labeled
from maskclip.data.formats.per_photo import Palette

WORDS = Vocabulary.parse(["dog", "grass"])
MODELS = np.zeros((4, 6), np.uint8)


@pytest.fixture
def out(tmp_path):
    """The folder of a labelling of two photos, all of which is dog."""
    for name in ("a", "sub/b"):
        Palette(WORDS, tmp_path / "png").write(Labeled(name, f"{name}.jpg", MODELS))
    return tmp_path


def edited(column):
    labels = MODELS.copy()
    labels[:, column] = 1
    return labels


def journal(out):
    return out / "corrections" / "journal.jsonl"


def test_actions_are_on_the_disk_at_once(out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
        written.edit("sub/b", edited(2))
        read = Corrections(out)
        assert dict(read.photos) == {"a": Correction(ACCEPTED), "sub/b": Correction(OPEN, 2)}
        assert (read.read_labels("sub/b", WORDS) == edited(2)).all()
        assert (read.read_labels("a", WORDS) == MODELS).all()
        assert read.line() == "2 photos reviewed: 1 accepted, 1 with corrected labels"


def test_everything_is_undone_and_done_again_also_by_the_next_process(out):
    with CorrectionJournal(out, WORDS) as written:
        written.edit("a", edited(0))
        written.edit("a", edited(1))
        written.mark("a", REJECTED)
    with CorrectionJournal(out, WORDS) as written:
        assert written.undo() == "a"
        assert written.of("a") == Correction(OPEN, 2)
        assert written.undo() == "a"
        assert (written.read_labels("a", WORDS) == edited(0)).all()
        assert written.undo() == "a"
        assert written.of("a") == UNTOUCHED
        assert written.undo() is None
    with CorrectionJournal(out, WORDS) as written:
        assert written.redo() == "a"
        assert (written.read_labels("a", WORDS) == edited(0)).all()
        written.mark("sub/b", ACCEPTED)
        assert written.redo() is None  # something else was done since
        assert written.undo() == "sub/b"


def test_labels_of_the_model_stay_known_when_label_has_written_corrected_ones(out):
    with CorrectionJournal(out, WORDS) as written:
        written.edit("a", edited(3))
        Palette(WORDS, out / "png").write(Labeled("a", "a.jpg", edited(3)))
        written.reset("a")
        assert (written.read_labels("a", WORDS) == MODELS).all()


def test_an_edit_opens_a_rejected_photo_and_keeps_an_accepted_one(out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", REJECTED)
        assert written.edit("a", edited(0)) == Correction(OPEN, 2)
        written.mark("a", ACCEPTED)
        assert written.edit("a", edited(1)).state == ACCEPTED


def test_what_was_half_written_counts_as_not_done(out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
    whole = journal(out).read_bytes()
    journal(out).write_bytes(whole + b'{"step": 2, "photo": "sub/b", "act')
    with pytest.warns(MaskCLIPWarning, match="the last line is incomplete and left out"):
        assert dict(Corrections(out).photos) == {"a": Correction(ACCEPTED)}
    with pytest.warns(MaskCLIPWarning), CorrectionJournal(out, WORDS) as written:
        written.mark("sub/b", REJECTED)
    assert Corrections(out).of("sub/b") == Correction(REJECTED)
    assert journal(out).read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 512, b'{"step": 3, "photo": "\xc3', b"\xff\xfe", b'{"step": 3}\0\0', b"12", b"  "],
)
def test_what_a_power_cut_left_after_the_last_line_counts_as_not_done(tail, out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
        written.mark("sub/b", ACCEPTED)
    whole = journal(out).read_bytes()
    journal(out).write_bytes(whole + tail)
    with pytest.warns(MaskCLIPWarning, match="the last line is incomplete and left out"):
        assert len(Corrections(out).photos) == 2
    with pytest.warns(MaskCLIPWarning), CorrectionJournal(out, WORDS) as written:
        written.mark("sub/b", REJECTED)
    assert Corrections(out).of("sub/b") == Correction(REJECTED)
    added = journal(out).read_bytes().removeprefix(whole)
    assert added.startswith(b'{"step": 3,')
    assert added.count(b"\n") == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_ends_of_lines_of_an_editor_lose_no_action(end, last, out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
        written.mark("sub/b", REJECTED)
    saved = end.join(journal(out).read_text().splitlines()) + end * last
    journal(out).write_bytes(saved.encode())
    with CorrectionJournal(out, WORDS) as written:
        assert written.of("sub/b") == Correction(REJECTED)
        assert written.undo() == "sub/b"
        assert written.undo() == "a"
    assert journal(out).read_bytes().startswith(saved.encode())
    assert not Corrections(out).photos


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_journal_in_another_encoding_is_refused_and_left_as_it_is(encoding, end, out):
    with CorrectionJournal(out, WORDS) as written:
        written.edit("a", edited(1))
    saved = (journal(out).read_text().rstrip("\n") + end).encode(encoding)
    journal(out).write_bytes(saved)
    for opened in (Corrections, lambda out: CorrectionJournal(out, WORDS)):
        with pytest.raises(MaskCLIPError, match=r"in plain UTF-8, got .*: restore it") as refused:
            opened(out)
        assert "\n" not in str(refused.value)
    assert journal(out).read_bytes() == saved


def remove(path):
    path.unlink()


def replace(path):
    path.with_name("new").write_bytes(path.read_bytes())
    path.rename(path.with_name("old"))
    path.with_name("new").rename(path)


def empty(path):
    path.write_bytes(b"")


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\n")


ACTIONS = [
    lambda written: written.mark("a", REJECTED),
    lambda written: written.edit("sub/b", edited(1)),
    lambda written: written.reset("a"),
    lambda written: written.undo(),
]


def contents(out):
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("change", [remove, replace, empty, lengthen])
def test_a_journal_that_others_changed_while_it_was_open_is_not_added_to(change, out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
        written.mark("a", OPEN)
        change(journal(out))
        left = contents(out)
        for action in ACTIONS:
            with pytest.raises(MaskCLIPError, match=r"expected .* as it was read .* nothing was"):
                action(written)
        assert contents(out) == left
        assert written.of("a") == UNTOUCHED


def test_a_journal_that_another_made_meanwhile_is_not_added_to(out):
    with CorrectionJournal(out, WORDS) as written:
        journal(out).write_text('{"classes": ["dog", "grass"]}\n')
        left = contents(out)
        for action in ACTIONS[:3]:
            with pytest.raises(MaskCLIPError, match="as it was read"):
                action(written)
        assert contents(out) == left


@pytest.mark.parametrize("lines", [0, 1, None])
def test_a_journal_without_the_actions_that_were_answered_is_refused(lines, out):
    with CorrectionJournal(out, WORDS) as written:
        written.edit("a", edited(0))
        written.edit("sub/b", edited(1))
    if lines is None:
        journal(out).unlink()
    else:
        journal(out).write_bytes(b"".join(journal(out).read_bytes().splitlines(True)[:lines]))
    left = contents(out)
    for opened in (Corrections, lambda out: CorrectionJournal(out, WORDS)):
        with pytest.raises(MaskCLIPError, match="got 0 actions, labels up to that of step 2: rest"):
            opened(out)
    assert Corrections.are_in(out)
    assert contents(out) == left


def test_a_journal_that_lost_its_last_actions_is_refused(out):
    with CorrectionJournal(out, WORDS) as written:
        for column in range(4):
            written.edit("a", edited(column))
    journal(out).write_bytes(b"".join(journal(out).read_bytes().splitlines(True)[:3]))
    with pytest.raises(MaskCLIPError, match="got 2 actions, labels up to that of step 4"):
        Corrections(out)


def test_a_first_action_that_was_killed_before_its_line_counts_as_not_done(out):
    with CorrectionJournal(out, WORDS) as written:
        written.edit("a", edited(0))
    journal(out).unlink()  # which is made with the first action in it
    assert not Corrections(out).photos
    assert not Corrections.are_in(out)
    with CorrectionJournal(out, WORDS) as written:
        written.edit("sub/b", edited(1))
        written.edit("a", edited(2))
    assert (Corrections(out).read_labels("a", WORDS) == edited(2)).all()


def test_a_full_disk_at_the_first_action_leaves_no_journal(out, monkeypatch):
    with CorrectionJournal(out, WORDS) as written:
        for action in ACTIONS[:3]:
            for fails in range(1, 4):
                calls = iter(range(1, 100))

                def fsync(_, calls=calls, fails=fails):
                    if next(calls) >= fails:
                        raise OSError(28, "full")

                with monkeypatch.context() as patched:
                    patched.setattr(os, "fsync", fsync)
                    with pytest.raises(OSError, match="full"):
                        action(written)
                assert not journal(out).exists()
        written.mark("a", REJECTED)
    assert Corrections(out).of("a") == Correction(REJECTED)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{}", "an unknown entry"),
        ("[1, 2]", "an unknown entry"),
        ("no JSON", "not valid JSON"),
        ('{"step": 9, "action": "undo"}', "step 2 is expected, got 9"),
        ('{"step": 2, "action": "redo"}', "an unknown entry"),
        ('{"step": 2, "photo": "../x", "action": "a", "state": "open", "edit": 1}', "called"),
        ('{"step": 2, "photo": "a", "action": "a", "state": "open", "edit": 7}', "step 7"),
    ],
)
def test_a_damaged_journal_is_refused_in_one_line(line, why, out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
    with journal(out).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(MaskCLIPError, match=f"line 3 is damaged .*{why}"):
        Corrections(out)


def test_two_processes_do_not_correct_the_same_labels(out):
    with (
        CorrectionJournal(out, WORDS),
        pytest.raises(MaskCLIPError, match="another process corrects these labels"),
    ):
        CorrectionJournal(out, WORDS)


def test_corrections_of_other_classes_are_refused(out):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
    with pytest.raises(MaskCLIPError, match=r"corrections are of \['dog', 'grass'\]"):
        CorrectionJournal(out, Vocabulary.parse(["cat", "grass"]))


def test_a_full_disk_leaves_the_journal_as_it_was(out, monkeypatch):
    with CorrectionJournal(out, WORDS) as written:
        written.mark("a", ACCEPTED)
        whole = journal(out).read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(OSError, match="full"):
                written.mark("a", REJECTED)
        assert journal(out).read_bytes() == whole
        assert written.of("a").state == ACCEPTED
        written.mark("a", REJECTED)
    assert Corrections(out).of("a").state == REJECTED


KILLED = """
import sys
from pathlib import Path
import numpy as np
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import CorrectionJournal

journal = CorrectionJournal(Path(sys.argv[1]), Vocabulary.parse(["dog", "grass"]))
while True:
    labels = np.zeros((4, 6), np.uint8)
    labels[:, journal._history.step % 6] = 1
    print(journal.edit("a", labels).edit, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_killed_process_loses_nothing_that_it_answered(out):
    command = [sys.executable, "-c", KILLED, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answered = [int(process.stdout.readline()) for _ in range(25)]
    process.kill()
    answered += map(int, process.stdout.read().split())
    process.wait()
    with CorrectionJournal(out, WORDS) as journal:
        last = journal.of("a").edit
        assert last in (answered[-1], answered[-1] + 1)  # answered, or on the disk before that
        assert (journal.read_labels("a", WORDS) == edited((last - 1) % 6)).all()
        for _ in range(last):
            assert journal.undo() == "a"
        assert journal.of("a") == UNTOUCHED
