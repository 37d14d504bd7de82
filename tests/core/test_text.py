"""Whatever a text file holds, the answer is its text or one line; what is shown is harmless."""

import json
import os
from xml.etree import ElementTree

import pytest
import yaml

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import (
    brief,
    hidden_character,
    json_escaped,
    parse_json,
    parse_toml,
    printable,
    read_json,
    read_text,
    read_toml,
    xml_quoted,
    yaml_quoted,
)


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b[2J", r"\x1b[2J"),
            ("a\nb\r\tc\x7f", r"a\nb\r\tc\x7f"),
            ("\x9b31m", r"\x9b31m"),
            ("gpj.\u202eexe", r"gpj.\u202eexe"),
            ("\u2066a\u2069", r"\u2066a\u2069"),
            ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
            ("a\u2028b", r"a\u2028b"),
            ("caf\udce9", r"caf\udce9"),
            ("a\uffff\ufdd0", r"a\uffff\ufdd0"),
            ("\U0001ffff\U000e0041", r"\U0001ffff\U000e0041"),
        ],
    )
    def test_what_is_obeyed_or_not_seen_is_escaped(self, text, shown):
        assert printable(text) == shown
        assert hidden_character(text) in shown
        assert printable(shown) == shown

    @pytest.mark.parametrize(
        "text",
        ["", "dog", r"C:\photos\new", "Frau Müller", "狗", "کتاب‌ها", "👩‍👩‍👧", "❤️", "a\xa0b", "�"],
    )
    def test_words_of_all_languages_and_emoji_stay(self, text):
        assert printable(text) == text
        assert hidden_character(text) is None


ALL_CHARACTERS = "".join(
    chr(code) for code in (*range(0xD800), *range(0xE000, 0x11000), 0x1F436, 0xE0041, 0x10FFFF)
)


class TestEscapes:
    """Strict parsers read back what was written, and nothing hidden stands in the files."""

    def test_json(self):
        text = json_escaped(json.dumps([ALL_CHARACTERS, "🐶"], ensure_ascii=False, indent=2))
        assert json.loads(text) == [ALL_CHARACTERS, "🐶"]
        assert "🐶" in text
        assert hidden_character(text.replace("\n", "")) is None

    def test_yaml(self):
        text = yaml_quoted(ALL_CHARACTERS)
        assert yaml.safe_load(f"x: {text} # a note") == {"x": ALL_CHARACTERS}
        assert hidden_character(text) is None

    def test_xml(self):
        held = [c for c in ALL_CHARACTERS if c in "\t\n\r" or c >= " "]
        held = "".join(c for c in held if c not in "\ufffe\uffff")
        text = xml_quoted(held)
        assert ElementTree.fromstring(f"<a b={text}/>").get("b") == held
        assert hidden_character(text) is None

    def test_xml_shows_what_it_cannot_hold(self):
        text = xml_quoted("\x00\x1b[31m\ufffe\ud800")
        assert ElementTree.fromstring(f"<a b={text}/>").get("b") == r"\x00\x1b[31m\ufffe\ud800"


class TestBrief:
    def test_short_values_are_as_python_writes_them(self):
        for value in ("dog", 3, None, ["a", 1.5], {"a": "b"}):
            assert brief(value) == repr(value)

    def test_long_values_are_shortened_and_harmless(self):
        nested: list = []
        for _ in range(100_000):
            nested = [nested]
        for value in ("x" * 10**6, 10**100_000, ["a"] * 1000, nested, {"a" * 1000: nested}):
            assert len(brief(value)) < 500
        assert brief("\x1b\u202e") == r"'\x1b\u202e'"


class TestReadText:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_byte_order_marks_are_no_part_of_the_text(self, tmp_path, encoding):
        (tmp_path / "a.txt").write_bytes("dög\n".encode(encoding))
        assert read_text(tmp_path / "a.txt", "words") == "dög\n"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("dög".encode("latin-1"), r"is not UTF-8 text \(byte 1\): expected words"),
            ("dog".encode("utf-16-le"), r"is not UTF-8 text \(it has zero bytes\)"),
            (b"\xff\xfed", "is not UTF-8 text"),
            (b"x" * 101, r"expected words, got more than 100 bytes \(101 bytes\)"),
        ],
    )
    def test_what_is_no_text_is_one_line(self, tmp_path, content, message):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(MaskCLIPError, match=rf"a\.txt:? {message}") as caught:
            read_text(tmp_path / "a.txt", "words", limit=100)
        assert "\n" not in str(caught.value)

    def test_the_size_is_looked_at_before_the_file_is_read(self, tmp_path):
        with (tmp_path / "huge.txt").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(MaskCLIPError, match=r"more than 16\.0 MiB \(1,048,576\.0 MiB\)"):
            read_text(tmp_path / "huge.txt", "words")

    def test_missing_files_and_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no such file: .*a\.txt \(expected words\)"):
            read_text(tmp_path / "a.txt", "words")
        with pytest.raises(MaskCLIPError, match="expected words, got a folder"):
            read_text(tmp_path, "words")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
    def test_a_pipe_is_refused_and_one_of_the_shell_is_read(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(MaskCLIPError, match="expected words, got a pipe"):
            read_text(tmp_path / "pipe", "words")
        reader, writer = os.pipe()
        os.write(writer, b"dog\n")
        os.close(writer)
        try:
            assert read_text(f"/dev/fd/{reader}", "words") == "dog\n"
        finally:
            os.close(reader)


class TestJson:
    def test_values(self, tmp_path):
        (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": ["]]", "\\"[", 1.5]}')
        assert read_json(tmp_path / "a.json", "names") == {"a": ["]]", '"[', 1.5]}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "Expecting value"),
            ("{'a': 1}", "Expecting property name"),
            ('"open', "Unterminated string"),
            ("[" * 101 + "]" * 101, "nested more than 100 deep"),
            ("[" * 10**6, "nested more than 100 deep"),
            ('{"a":' * 10**5, "nested more than 100 deep"),
            ("1" * 10**5, "a whole number of thousands of digits"),
        ],
    )
    def test_whatever_it_holds_the_answer_is_one_line(self, text, message):
        with pytest.raises(MaskCLIPError, match=rf"^a\.json is not valid JSON \(.*{message}") as e:
            parse_json(text, "a.json", "words")
        assert len(str(e.value)) < 200

    def test_brackets_in_strings_are_no_nesting(self):
        words = ["[" * 1000, '\\"{' * 1000]
        assert parse_json(json.dumps(words), "a.json", "words") == words


class TestToml:
    def test_values(self, tmp_path):
        (tmp_path / "a.toml").write_bytes('\ufeffa.b = "]"  # [[[[\n'.encode())
        assert read_toml(tmp_path / "a.toml", "names") == {"a": {"b": "]"}}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a = [", "Invalid value"),
            (".".join("a" * 200_000) + " = 1", "a key of more than 32 dots"),
            ("[" + " . ".join(["'a'"] * 200_000) + "]", "a key of more than 32 dots"),
            ("b = {" + ".".join(["a"] * 200_000) + " = 1}", "a key of more than 32 dots"),
            ("a" * 400_000, "Expected '='"),
            ("a = " + "[" * 10**6, "nested more than 100 deep"),
            ("a = " + "{a = " * 10**5, "nested more than 100 deep"),
            ("a = " + "1" * 10**5, "a whole number of thousands of digits"),
            ("a = [{b = 0x" + "f" * 10**5 + "}]", "more than 64 bits"),
            ('a = """' + '\\"""' * 10**5, "Unterminated string"),
            ("a = 2020-13-45", ""),
        ],
    )
    def test_whatever_it_holds_the_answer_is_one_line(self, text, message):
        with pytest.raises(MaskCLIPError, match=rf"^a\.toml is not valid TOML \(.*{message}") as e:
            parse_toml(text, "a.toml", "words")
        assert len(str(e.value)) < 200

    def test_dots_and_brackets_in_strings_and_comments_are_none_of_keys(self):
        words = ["." * 1000, "a." * 1000, "[" * 1000]
        lines = [f'a = "{words[0]}"', f"b = '{words[1]}'", f'c = """\n{words[2]}"""']
        table = parse_toml("\n".join([*lines, "# " + "a." * 1000]), "a.toml", "words")
        assert list(table.values()) == words
