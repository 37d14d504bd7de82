"""The tokenizers of text towers: CLIP's own, and those of transformers, from a folder or the hub.

A folder of transformers' files is a stranger's: what it says is read before transformers sees it,
and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from maskclip.clip.checkpoint import MissingWeightsError, WeightsError
from maskclip.clip.hub import cache_folder, hub_address, hub_file, hub_folder
from maskclip.clip.model import Tokenizer
from maskclip.core.errors import MaskCLIPError, did_you_mean, quiet_loggers, require_extra
from maskclip.core.files import file_fingerprint
from maskclip.core.text import brief, printable, read_json

CONTEXT_LENGTH = 77
"""Tokens of a text where a configuration does not say how many."""

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
"""One of these is in each folder of a tokenizer of transformers."""

CONFIG = "config.json"
"""It says how a text tower of transformers is built."""

OTHER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    CONFIG,
)
"""What may lie beside it, and is read."""

_LARGEST = 256 << 20  # bytes; the tokenizer.json of SigLIP 2 has 34 MB
_MOST_EXTRA = 1000  # tokens that T5's has beside those of its vocabulary, which has 100
_MOST_BLOCKS = 256  # of a text tower; the largest known has 24
_MOST_TOKENS = 2_000_000  # that a text tower knows, its channels, and all other numbers of it
_TEXT_MODELS = ("bert", "m2m_100", "mt5", "roberta", "xlm-roberta")  # those that open_clip pools


class TokenizerError(WeightsError):
    """A tokenizer cannot be read, or is not the text tower's."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """Where the tokenizer of a text tower comes from.

    Attributes:
        model: the architecture, for messages.
        text: its `text_cfg`, as open_clip writes it.
        given: a folder of transformers' files to be taken instead of the hub's.
        language: the language of the words, of tokenizers that write it before them; None is
            English.

    Raises:
        TokenizerError: the tower has CLIP's own tokenizer, which has neither.
    """

    model: str
    text: Mapping[str, Any]
    given: Path | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.repository is None and (self.given is not None or self.language is not None):
            what = "tokenizer" if self.given is not None else "language"
            raise TokenizerError(
                f"`{what}`: {self.model} reads words with CLIP's own tokenizer, which knows "
                f"English alone and comes with open_clip: leave `{what}` out"
            )

    @property
    def repository(self) -> str | None:
        """The repository of the hub that has its files; None is CLIP's own tokenizer."""
        return self.text.get("hf_tokenizer_name") or self.text.get("hf_model_name") or None

    @property
    def context_length(self) -> int:
        """How many tokens of a text the tower reads."""
        return int(self.text.get("context_length") or CONTEXT_LENGTH)

    def folder(self) -> Path:
        """Return the folder of its files: the given one, or the hub's, downloaded if need be.

        Raises:
            MissingWeightsError: it is neither on this machine nor to be downloaded.
            TokenizerError: what it says of itself cannot be used.
            MaskCLIPError: the extra of transformers is missing.
        """
        repository = self.repository
        if repository is None:
            raise TokenizerError(f"{self.model} reads words with CLIP's own tokenizer")
        require_extra("hf", "transformers")
        if self.given is not None:
            found = self.given
        else:
            try:
                found = hub_folder(repository, VOCABULARY_FILES, (*VOCABULARY_FILES, *OTHER_FILES))
            except OSError as error:
                raise MissingWeightsError(self._cannot_download(repository, error)) from error
        check_folder(found)
        return found

    def _cannot_download(self, repository: str, why: OSError) -> str:
        beside = ", config.json" if "hf_model_name" in self.text else ""
        return (
            f"the tokenizer of {self.model} (tokenizer.json, tokenizer_config.json{beside} and "
            f"what lies beside them in {repository} at {hub_address()}) is not on this machine "
            f"and cannot be downloaded ({why}); it would be cached in {cache_folder(repository)}. "
            "Give a folder with these files: `tokenizer=DIR`"
        )

    def identity(self) -> str:
        """Return what tells its tokens from those of other tokenizers; "" for CLIP's own."""
        if self.repository is None:
            return ""
        parts = (self.language, self.text.get("tokenizer_kwargs"))
        files = folder_fingerprint(self.folder())
        return hashlib.sha256(f"{parts!r} {files}".encode()).hexdigest()[:16]

    def load(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            WeightsError: it is not to be had, damaged, or another tower's.
        """
        settings = dict(self.text.get("tokenizer_kwargs") or {})
        settings.pop("reduction_mask", None)  # of training: which words of long texts are left out
        language = settings.pop("language", None)
        if self.repository is None:
            with _one_line(f"{self.model}: tokenizer_kwargs {brief(settings)}"):
                own: Tokenizer = open_clip.SimpleTokenizer(
                    context_length=self.context_length, **settings
                )
            return own
        folder, language = self.folder(), self.language or language
        with _one_line(str(folder)):
            tokenizer = open_clip.tokenizer.HFTokenizer(
                str(folder),
                context_length=self.context_length,
                tokenizer_mode=self.text.get("tokenizer_mode"),
                **settings,
                local_files_only=True,
                trust_remote_code=False,
            )
            tokenizer.tokenizer.padding_side = "right"  # as all these towers were trained
            if language is not None:
                _set_language(tokenizer.tokenizer, language, folder)
            known = self.text.get("vocab_size") or _read(folder / CONFIG).get("vocab_size")
            found = FolderTokenizer(tokenizer, folder, known=known)
            found([""])  # damage of some kinds shows at the first text
            if not found.special_tokens and not self.text.get("tokenizer_mode"):
                raise TokenizerError(
                    f"{folder}: it marks neither the start nor the end of a text, and text towers "
                    "are trained with one of them: its files are not those of "
                    f"{self.repository}"
                )
        return found


class FolderTokenizer:
    """open_clip's wrapper of a tokenizer of transformers, as its own tokenizer is used.

    Args:
        tokenizer: open_clip's wrapper.
        folder: where it is from, for messages.
        known: how many tokens the text tower knows; None where that is not known.

    Attributes:
        context_length: tokens of each text, those that stand for its start and end among them.
        special_tokens: how many of these there are.
    """

    def __init__(self, tokenizer: Any, folder: Path, *, known: int | None = None) -> None:
        self.context_length: int = tokenizer.context_length
        self._tokenizer, self._folder, self._known = tokenizer, folder, known
        with_them = len(tokenizer.tokenizer("a")["input_ids"])
        self.special_tokens: int = with_them - len(self.encode("a"))

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the tokens of texts, (n, context_length) int64, cut where they are too long.

        Raises:
            TokenizerError: the text tower does not know them.
        """
        tokens: Tensor = self._tokenizer(texts)
        largest = int(tokens.max())
        if self._known is not None and largest >= self._known:
            raise TokenizerError(
                f"{self._folder}: a word has the token {largest:,}, and the text tower knows "
                f"{self._known:,} tokens: expected the tokenizer that it was trained with"
            )
        return tokens

    def encode(self, text: str) -> list[int]:
        """Return all tokens of a text but those of its start and end."""
        cleaned = self._tokenizer.clean_fn(text)
        found: list[int] = self._tokenizer.tokenizer(cleaned, add_special_tokens=False)["input_ids"]
        return found


def text_config(source: TokenizerSource) -> dict[str, Any]:
    """Return a `text_cfg` that open_clip builds without a connection and without weights.

    Text towers of transformers are built from the config.json beside their tokenizer.

    Raises:
        TokenizerError: there is none, or it is no text tower that open_clip takes.
    """
    text = dict(source.text)
    if "hf_model_name" not in text:
        return text
    path = source.folder() / CONFIG
    if source.given is None and not path.is_file():
        with suppress(OSError):
            path = hub_file(text["hf_model_name"], path.name)
    if not path.is_file():
        raise TokenizerError(
            f"{path}: no such file, and {source.model} builds its text tower from it: copy the "
            f"config.json of {text['hf_model_name']} there"
        )
    found = _read(path)
    kind = found.get("model_type")
    if kind not in _TEXT_MODELS:
        raise TokenizerError(
            f"{path}: expected a text tower of the kinds {', '.join(_TEXT_MODELS)}, got "
            f"{brief(kind)}"
        )
    for name, value in found.items():
        most = _MOST_BLOCKS if "layers" in name else _MOST_TOKENS
        if isinstance(value, int | float) and abs(value) > most:
            raise TokenizerError(f"{path}: {name}: expected at most {most:,}, got {brief(value)}")
    return {**text, "hf_model_name": str(path.parent), "hf_model_pretrained": False}


@contextmanager
def building_text(text: Mapping[str, Any]) -> Iterator[None]:
    """Turn what is raised while a model is built of a stranger's config.json into one line.

    Args:
        text: of `text_config`; towers of open_clip's own are not looked after.

    Raises:
        TokenizerError: in place of any other exception, where transformers builds the text tower.
    """
    if "hf_model_name" not in text:
        yield
        return
    file = Path(text["hf_model_name"]) / CONFIG
    with _one_line(str(file), "configuration of a text tower"):
        yield


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the files of a tokenizer's folder: 16 hex digits."""
    digest = hashlib.sha256()
    for name in (*VOCABULARY_FILES, *OTHER_FILES):
        path = folder / name
        if path.is_file():
            digest.update(f"{name} {file_fingerprint(path)}\n".encode())
    return digest.hexdigest()[:16]


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no tokenizer's, or whose files would have code run.

    Raises:
        TokenizerError: as said.
    """
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "nothing"
        raise TokenizerError(f"`tokenizer`: expected a folder, got {kind}: {folder}")
    there = [name for name in VOCABULARY_FILES if (folder / name).is_file()]
    if not there:
        raise TokenizerError(
            f"{folder}: not the folder of a tokenizer: expected tokenizer.json, or one of "
            f"{', '.join(VOCABULARY_FILES[1:])}"
        )
    for name in there:
        if (folder / name).stat().st_size > _LARGEST:
            raise TokenizerError(f"{folder / name}: more than {_LARGEST >> 20} MiB: no tokenizer's")
    for name in ("tokenizer_config.json", CONFIG):
        path = folder / name
        if not path.is_file():
            continue
        found = _read(path)
        if "auto_map" in found:
            raise TokenizerError(
                f"{path} names code of its own (auto_map), which is not run: expected one of the "
                "tokenizers of transformers"
            )
        extra = found.get("extra_ids", 0)
        if type(extra) is not int or not 0 <= extra <= _MOST_EXTRA:
            raise TokenizerError(
                f"{path}: extra_ids: expected 0 to {_MOST_EXTRA} tokens, got {brief(extra)}"
            )
        named = found.get("tokenizer_class")
        if named is not None and not _is_tokenizer_class(named):
            raise TokenizerError(f"{path}: {brief(named)} is no tokenizer of transformers")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, "settings of a tokenizer") if path.exists() else {}
    except (MaskCLIPError, OSError) as error:
        raise TokenizerError(str(error)) from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path}: expected a table, got {brief(found)}")
    return found


def _is_tokenizer_class(name: object) -> bool:
    """Whether transformers has a tokenizer of a name: others of its classes load what they like."""
    import transformers

    if not isinstance(name, str) or not name.isidentifier():
        return False
    known = [getattr(transformers, name.removesuffix(end), None) for end in ("", "Fast")]
    base = transformers.PreTrainedTokenizerBase
    return any(isinstance(kind, type) and issubclass(kind, base) for kind in known)


def _set_language(tokenizer: Any, language: str, folder: Path) -> None:
    """Have a tokenizer of transformers write a language before words."""
    added = tokenizer.get_added_vocab()
    codes = [token for token in added if len(token) == 8 and token[3] == "_"]  # as eng_Latn
    if not hasattr(tokenizer, "src_lang") or not codes:
        raise TokenizerError(
            f"`language`: the tokenizer of {folder} takes no language: leave `language` out"
        )
    if language not in codes:
        raise TokenizerError(
            f"`language`: expected one of the {len(codes)} codes of the tokenizer, such as "
            f"eng_Latn, got {brief(language)}{did_you_mean(language, codes)}"
        )
    # Not open_clip's set_language: each call of the tokenizer goes back to its src_lang.
    tokenizer.src_lang = language


@contextmanager
def _one_line(source: str, what: str = "tokenizer") -> Iterator[None]:
    """Turn whatever is raised over a folder, or over settings, into one line that names them."""
    try:
        # its notes are of several lines, and for programmers
        with quiet_loggers("transformers", level=logging.CRITICAL):
            yield
    except MaskCLIPError:
        raise
    except BaseException as error:
        # The tokenizers library panics over some damage, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = printable(str(error).strip().partition("\n")[0])[:200]
        raise TokenizerError(
            f"{source}: not a {what} that can be used ({reason or type(error).__name__})"
        ) from error
