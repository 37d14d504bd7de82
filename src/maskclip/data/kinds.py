"""What kind of file something is, by its suffix and by its first bytes: read, or why it is not."""

from __future__ import annotations

from importlib.util import find_spec

from maskclip.core.errors import install_command

# fmt: off
_READ = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".png", ".apng", ".webp", ".avif",
    ".gif", ".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".ico",
))
_HEIF = frozenset((".heic", ".heif", ".hif"))
_JXL = frozenset((".jxl",))
RAW_SUFFIXES = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25",
    ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl",
    ".sr2", ".srf", ".srw", ".x3f",
))
_VIDEOS = frozenset((
    ".3gp", ".avi", ".flv", ".insv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".webm", ".wmv",
))
# fmt: on

RAW = "camera raw: develop it first, and save it as JPEG or TIFF"
_VIDEO = "video: save the frames that you want as images"

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STARTS = {  # what files begin with -> what they are
    b"FUJIFILMCCD-RAW": RAW,
    b"IIRO": RAW,
    b"IIRS": RAW,
    b"MMOR": RAW,
    b"IIU\0": RAW,
    b"\0MRM": RAW,
    b"FOVb": RAW,
    b"\x1aE\xdf\xa3": _VIDEO,
    b"%PDF": "a PDF: save its pages as images",
    b"%!PS": "PostScript: save it as PNG",
    b"8BPS": "a Photoshop document: save it as PNG or TIFF",
    b"gimp xcf": "a GIMP document: save it as PNG",
    b"<svg": "an SVG drawing: save it as PNG",
    b"<?xml": "XML, or an SVG drawing: save that as PNG",
    b"<!DOCTYPE": "a web page: the download went wrong",
    b"<!doctype": "a web page: the download went wrong",
    b"<html": "a web page: the download went wrong",
    b"version https://": "a Git LFS pointer: fetch the file with `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
}


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of images that are read here, lower case: HEIC's with its plugin."""
    heif = _HEIF if find_spec("pillow_heif") else frozenset[str]()
    return _READ | heif | (_JXL if find_spec("pillow_jxl") else frozenset[str]())


def why_not_read(suffix: str) -> str:
    """Return why files of a suffix are not read, and what to do; empty if nothing is known."""
    if suffix in RAW_SUFFIXES:
        return RAW
    if suffix in _VIDEOS:
        return _VIDEO
    if suffix in _HEIF and not find_spec("pillow_heif"):
        return f"HEIC: {install_command('images')}"
    if suffix in _JXL and not find_spec("pillow_jxl"):
        return _WITHOUT_JXL
    return ""


_WITHOUT_JXL = "JPEG XL: pip install pillow-jxl-plugin"


def is_heif(start: bytes) -> bool:
    """Tell whether a file that begins so may be HEIC; AVIF shares two of its marks."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def is_jxl(start: bytes) -> bool:
    """Tell whether a file that begins so is JPEG XL, bare or in a container."""
    return start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"))


def kind_of(start: bytes) -> str:
    """Return what a file is that begins so and is no image that is read; empty if unknown."""
    if is_heif(start):
        return f"HEIC: {install_command('images')}"
    if is_jxl(start):
        return _WITHOUT_JXL
    if start[4:8] == b"ftyp":
        return RAW if start[8:12] == b"crx " else _VIDEO
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return _VIDEO
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, kind in _STARTS.items():
        if start.startswith(beginning) or text.startswith(beginning):
            return kind
    return ""
