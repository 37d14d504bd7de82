"""Help says every default; messages name arguments in Python, and the verb's own options here."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

import maskclip
from maskclip.cli import app, console, main, train_inputs
from maskclip.cli import options as options_module
from maskclip.core.class_lists import read_background
from maskclip.core.errors import MaskCLIPError

SOURCE = Path(maskclip.__file__).parent
OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*|-c\b)")


def commands(command=None, words=()):
    """Yield (words, command) of every verb."""
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from commands(below, (*words, name))
    else:
        yield words, command


COMMANDS = dict(commands())


def options(command):
    return {option for each in command.params for option in each.opts} | {"--help"}


def strings(path, within=None):
    """Yield the strings of a file or a function, f-strings whole, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if within is not None:
        tree = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == within)
    skipped = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in ast.walk(node)}
            parts = [str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def named(text):
    """Return the options that a text names by themselves, and the whole commands it gives."""
    given = [line for line in re.findall(r"`([^`]*)`", text) if line.startswith("maskclip ")]
    return set(OPTION.findall(re.sub(r"`maskclip [^`]*`", "", text))), given


def check_command(line):
    words = line.split()[1:]
    verb = next((v for v in ((*words[:2],), (*words[:1],)) if v in COMMANDS), None)
    assert verb is not None or words[0] == "{}", f"no such command: {line}"
    if verb is not None:
        assert set(OPTION.findall(line)) <= options(COMMANDS[verb]), line


LIBRARY = [path for path in SOURCE.rglob("*.py") if "cli" not in path.relative_to(SOURCE).parts]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(SOURCE)))
def test_messages_of_the_library_name_arguments_not_options(path):
    for line, text in strings(path):
        alone, given = named(text)
        assert not alone, f"{path}:{line} names {alone}: write `argument`, which the CLI translates"
        for command in given:
            check_command(command)


OF_FILES = {  # what a file says by its own keys, which no option changes
    "{}: short_side: expected px from {} to {}, got {}",
    "method: expected one of {}, got {}",
}


def test_messages_of_the_library_mark_the_arguments_that_they_name():
    """Only within backticks do they become options on the command line."""
    names = {
        each.name
        for command in COMMANDS.values()
        for each in command.params
        if any(option.startswith("--") for option in each.opts)
    }
    long = "|".join(sorted(name for name in names if "_" in name))
    bare = re.compile(rf"(?<![\w.=])({long})(?![\w=(.])|^({'|'.join(sorted(names))}): ")
    unmarked = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path in LIBRARY
        for line, text in strings(path)
        if " " in text and text not in OF_FILES and bare.search(re.sub("`[^`]*`", "", text))
    ]
    assert unmarked == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--short-side", "4"], "--short-side: 4 px are less than half of one position"),
        (["--window", "2"], "--window: 2 px are less than half of one position"),
        (["--stride", "9"], "--stride needs --window"),
        (["--key-smoothing", "2"], "--key-smoothing is a threshold in [0, 1], got 2.0"),
        (["--regions", "nowhere"], "--regions: no folder of label maps: nowhere"),
    ],
)
def test_what_is_out_of_range_is_named_as_the_option(options, line, tmp_path, capsys):
    photo = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(photo)
    words = ["-c", "dog", "-c", "cat", "--model", "emoji", "--device", "cpu"]
    assert main(["segment", str(photo), *words, "--out", str(tmp_path), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--student", "nope"], "--student: no 'nope'"),
        (["--student", "unet:nope"], "--student: timm has no 'nope'"),
        (["--student", "unett:resnet18"], "--student: no decoder 'unett' (did you mean unet"),
        (["--lr", "0.001", "--min-lr", "1"], "--min-lr: expected a rate above 0, at most that of"),
        (["--teacher-short-side", "9999"], "--teacher-short-side: expected at most 4096 px"),
    ],
)
def test_what_a_training_cannot_use_is_named_as_the_option(options, line, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in "ab":
        Image.new("RGB", (64, 64)).save(photos / f"{name}.png")
    command = ["train", "--out", str(out), "--images", str(photos), "-c", "dog", "-c", "cat"]
    assert main([*command, "--model", "emoji", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {line}")


def verbs_of(module):
    """Return the verbs whose functions a module of the command line defines."""
    return {
        words: command
        for words, command in COMMANDS.items()
        if command.callback.__module__ == f"maskclip.cli.{module}"
    }


@pytest.mark.parametrize("module", [path.stem for path in (SOURCE / "cli").glob("[a-z]*.py")])
def test_messages_of_a_verb_name_its_own_options(module):
    path = SOURCE / "cli" / f"{module}.py"
    verbs = verbs_of(module)
    shared = {"inputs": ["open_data", "read_vocabulary", "read_words"]}
    if module in shared:  # what one of its functions says, every verb that calls it says
        for function in shared[module]:
            callers = [v for v in COMMANDS.values() if _calls(v, function)]
            assert callers
            for line, text in strings(path, within=function):
                for verb in callers:
                    if (function, verb.name) == ("open_data", "train"):
                        continue  # which opens published data sets alone
                    assert named(text)[0] <= options(verb), f"{path}:{line} {verb.name}"
        return
    if module in ("lists", "models"):  # their tables are about the other verbs
        verbs = COMMANDS
    elif module.startswith("train"):
        verbs = verbs_of("train")
    known = set().union(*map(options, verbs.values())) if verbs else None
    for line, text in strings(path):
        alone, given = named(text)
        for command in given:
            check_command(command)
        if known is not None:
            assert alone <= known, f"{path}:{line}"


def _calls(verb, function):
    module = sys.modules[verb.callback.__module__]
    if verb.name == "train":
        module = train_inputs
    alone = len(verbs_of(module.__name__.rpartition(".")[2])) < 2
    return f"{function}(" in inspect.getsource(module if alone else verb.callback)


def test_the_command_line_names_the_options_of_its_verb(monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise MaskCLIPError(
            "give `weights=FILE` or `model=emoji`, leave `weights` out, `resume=True`, `other=3`, "
            "`maskclip models`, `student_weights=random`"
        )

    monkeypatch.setattr("maskclip.cli.segment.read_words", fail)
    monkeypatch.setattr("maskclip.cli.train_inputs.read_vocabulary", fail)
    assert main(["segment", "a.jpg"]) == 2
    assert main(["train", "--out", str(tmp_path), "--images", "photos"]) == 2
    segment, train = capsys.readouterr().err.splitlines()
    assert segment == (
        "error: give --weights FILE or --model emoji, leave --weights out, `resume=True`, "
        "`other=3`, `maskclip models`, `student_weights=random`"
    )
    assert train.endswith("out, --resume, `other=3`, `maskclip models`, --student-weights random")


def test_outside_a_verb_arguments_stay(capsys):
    console.error_line("give `weights=FILE`")
    assert capsys.readouterr().err == "error: give `weights=FILE`\n"


INPUTS = {  # what there is none of, unless it is given
    *("names", "classes", "vocabulary", "photos", "listed", "dataset", "data", "images", "masks"),
    *("class_names", "recipe", "predictions", "initial", "name", "labels"),
}


@pytest.mark.parametrize("verb", COMMANDS, ids=" ".join)
def test_help_has_patterns_as_code_so_that_no_asterisk_is_lost(verb):
    for each in COMMANDS[verb].params:
        assert "*" not in re.sub(r"`[^`]*`", "", getattr(each, "help", None) or ""), each.opts


@pytest.mark.parametrize("verb", COMMANDS, ids=" ".join)
def test_help_says_every_default(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main([*verb, "--help"]) == 0
    shown = capsys.readouterr().out
    for each in COMMANDS[verb].params:
        if each.required or each.name == "help" or getattr(each, "is_flag", False):
            continue
        if each.default in (None, "") or each.default == []:
            known = each.name in INPUTS or "default" in each.help.lower()
            assert known, f"{each.opts}: say in its help what holds where it is not given"
        else:
            row = shown[shown.index(f"{max(each.opts, key=len)} ") :]
            assert f"[default: {each.default}]" in row, each.opts


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["segment", "{photo}", "-c", "dog", "cat"],
            "cat: no such file or folder; for several classes, repeat -c: -c dog -c cat",
        ),
        (
            ["label", "-c", "dog", "red car"],
            "red car: no such file or folder; for several classes, repeat -c: -c dog -c 'red car'",
        ),
        (
            ["segment", "https://a.b/c.jpg", "-c", "dog", "-c", "cat"],
            "https://a.b/c.jpg is an address: download it first, and give the file's path",
        ),
        (
            ["label", "s3://bucket/photos", "-c", "dog"],
            "s3://bucket/photos is an address: download it first, and give the file's path",
        ),
        (
            ["segment", "{photo}", "-c", "dog", "--model", "https://a.b/c.pt"],
            "https://a.b/c.pt is an address: download the file, and give its path",
        ),
        (
            ["label", "{photo}"],
            "no classes: give -c NAME (repeat it for more), --classes FILE, or --vocabulary NAME "
            "(see `maskclip vocabularies`)",
        ),
        (
            ["segment", "{photo}", "--classes", "voc21"],
            "voc21: no such file; the built-in set is --vocabulary voc21",
        ),
        (
            ["segment", "{photo}", "--vocabulary", "{classes}"],
            "{classes} is a file: give it as --classes {classes}",
        ),
        (
            ["segment", "{photo}", "-c", "{classes}"],
            "{classes} is a file: give it as --classes {classes}",
        ),
        (
            ["train", "--out", "{out}", "--images", "{photo}", "-c", "dog", "cat"],
            "cat: no such file or folder; for several classes, repeat -c: -c dog -c cat",
        ),
        (
            ["segment", "{photo}", "-c", "dog", "--model", "{photo}"],
            "{photo} is a folder, but no run folder: expected student.safetensors or best.ckpt in "
            "it, as `maskclip train` leaves them, or open_clip_config.json, as open_clip does",
        ),
        (
            ["eval", "emoji", "--limit", "1", "--model", "{photo}"],
            "{photo} is a folder, but no run folder: expected student.safetensors or best.ckpt in "
            "it, as `maskclip train` leaves them, or open_clip_config.json, as open_clip does",
        ),
        (
            ["train", "emoji-annofree-rn", "--out", "{out}", "--model", "{photo}"],
            "{photo} is a folder without open_clip_config.json: expected the name of a CLIP, a "
            "file of weights, or a folder as open_clip writes it",
        ),
        (
            ["segment", "{photo}", "-c", "dog", "-c", "cat", "--background", "0,5"],
            "--background 0,5: write a threshold with a point, such as 0.5",
        ),
        (
            ["segment", "{photo}", "-c", "dog", "-c", "cat", "--background", "1.5"],
            "expected a background threshold: a probability between 0 and 1 (with the method "
            "published a similarity between -1 and 1), got 1.5",
        ),
        (
            ["eval", "emoji", "--refine-size", "64"],
            "--refine-size needs --refine pamr or --refine tlp",
        ),
        (
            ["eval", "emoji", "--refine", "tlp+dominant", "--pamr-iterations", "5"],
            "--pamr-iterations needs --refine pamr",
        ),
        (
            ["segment", "{photo}", "-c", "dog", "--refine", "tlp+crf"],
            "unknown refinement 'crf': expected some of surgery, dominant, tlp, pamr, or none",
        ),
    ],
)
def test_what_is_meant_otherwise_gets_the_right_hint(arguments, line, tmp_path, capsys):
    places = {name: str(tmp_path / name) for name in ("photo", "classes", "out")}
    places["classes"] += ".txt"
    Path(places["photo"]).mkdir()
    Path(places["classes"]).write_text("dog\ncat\n")
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert capsys.readouterr().err == f"error: {line.format(**places)}\n"


@pytest.mark.parametrize("text", ["50%", "0,5", ".5.", "1/2", "<0.5", "½", "5,0%"])
def test_a_threshold_in_another_notation_is_no_word(text):
    with pytest.raises(MaskCLIPError, match="write a threshold with a point"):
        read_background(text)


def test_words_and_a_threshold_do_not_go_together():
    with pytest.raises(MaskCLIPError, match="give words, or a threshold such"):
        read_background("sky,50%")
    assert read_background("7 dwarfs, U2") == ["7 dwarfs", "U2"]


@pytest.mark.parametrize(
    ("option", "wording"),
    [
        ("--classes", options_module.CLASS_FORMATS),
        ("--method", options_module.METHODS),
        ("--templates", options_module.TEMPLATES),
    ],
)
def test_what_an_option_takes_is_said_alike_by_every_verb(option, wording):
    helps = [
        each.help for command in COMMANDS.values() for each in command.params if option in each.opts
    ]
    assert len(helps) > 2
    assert all(wording in text for text in helps)


def test_a_trailing_comma_is_no_background_word():
    assert read_background("sky, wall,") == ["sky", "wall"]


def test_settings_that_differ_are_named_as_options(capsys):
    changes = (
        "cleaning.confidence: 0.4 there, 0.5 wanted; vocabulary.names: ['a'] there, ['b'] wanted; "
        "other.thing: 1 there, 2 wanted; model: 'x' there, 'y' wanted"
    )
    named = {"confidence": "--confidence", "classes": "--classes", "model": "--model"}
    with console.speaking_of(named):
        console.error_line(f"/a.b/c holds others: {changes}")
    assert capsys.readouterr().err == (
        "error: /a.b/c holds others: --confidence: 0.4 there, 0.5 wanted; --classes: ['a'] "
        "there, ['b'] wanted; other.thing: 1 there, 2 wanted; model: 'x' there, 'y' wanted\n"
    )


def test_who_teaches_a_student_is_called_the_teacher():
    """It may be the preview, or another student's CLIP: only its names say which."""
    files = [*SOURCE.glob("cli/train*.py"), SOURCE / "tasks/overlays.py", *SOURCE.glob("plus/*.py")]
    pattern = re.compile(r"CLIP('s)? (labels|sees|maps|is less sure)\b|CLIP's\b(?! features)")
    texts = [text for path in files for _, text in strings(path)]
    assert [text for text in texts if pattern.search(text)] == []
