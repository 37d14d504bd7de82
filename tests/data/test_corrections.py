"""What people make of a labelling is on the disk when it is answered, and can be undone."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from maskclip.core.errors import MaskCLIPError
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
    assert dict(Corrections(out).photos) == {"a": Correction(ACCEPTED)}
    with CorrectionJournal(out, WORDS) as written:
        written.mark("sub/b", REJECTED)
    assert Corrections(out).of("sub/b") == Correction(REJECTED)
    assert journal(out).read_bytes().startswith(whole)


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
