"""Images broken in every way that a seed can think of: each is a picture, or one clear line."""

import io
import random
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from maskclip.data.images import ImageError, image_size, load_image

CORPUS, SHARE = 1_000, 60
MOST = 4_000_000  # pixels that are allowed: a lie about the size may ask for as many
MOST_BYTES = 20 * MOST  # at the peak, as Python and NumPy count them


def scene(mode, size=(48, 36)):
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x * 5, y * 7, (x + y) * 3], axis=2).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((x * 1000 + y).astype(np.uint16))
    if mode == "F":
        return Image.fromarray((x / 48).astype(np.float32))
    return image.convert(mode)


def saved(image, format_name, **options):
    file = io.BytesIO()
    image.save(file, format=format_name, **options)
    return file.getvalue()


def sound_files():
    """Sound images of every format, by name."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, frames = scene("RGB"), [scene("L").rotate(90 * turn) for turn in range(1, 4)]
    animated = {"save_all": True, "append_images": frames}
    files = {
        "jpeg": saved(rgb, "JPEG", exif=exif),
        "progressive jpeg": saved(rgb, "JPEG", progressive=True, quality=95),
        "cmyk jpeg": saved(scene("CMYK"), "JPEG"),
        "png": saved(rgb, "PNG", exif=exif, icc_profile=bytes(500)),
        "palette png": saved(scene("P"), "PNG", transparency=3),
        "rgba png": saved(scene("RGBA"), "PNG"),
        "1-bit png": saved(scene("1"), "PNG"),
        "16-bit png": saved(scene("I;16"), "PNG"),
        "animated png": saved(rgb, "PNG", **animated),
        "gif": saved(scene("P"), "GIF"),
        "animated gif": saved(scene("P"), "GIF", **animated),
        "webp": saved(rgb, "WEBP", exif=exif),
        "lossless webp": saved(scene("RGBA"), "WEBP", lossless=True),
        "tiff": saved(rgb, "TIFF"),
        "deflate tiff": saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "lzw tiff": saved(rgb, "TIFF", compression="tiff_lzw"),
        "float tiff": saved(scene("F"), "TIFF"),
        "16-bit tiff": saved(scene("I;16"), "TIFF"),
        "tiff of pages": saved(rgb, "TIFF", **animated),
        "bmp": saved(rgb, "BMP"),
        "palette bmp": saved(scene("P"), "BMP"),
        "ppm": saved(rgb, "PPM"),
        "ico": saved(scene("RGBA"), "ICO"),
        "jpeg 2000": saved(rgb, "JPEG2000"),
        "avif": saved(rgb, "AVIF"),
        "mpo": saved(rgb, "MPO", save_all=True, append_images=[rgb]),
    }
    files |= files_of_plugins()
    return files


def files_of_plugins():
    files = {}
    try:
        import tifffile

        bands = np.arange(5 * 36 * 48, dtype=np.uint16).reshape(5, 36, 48)
        for name, packing in (("plain", None), ("deflate", "deflate")):
            file = io.BytesIO()
            options = {"planarconfig": "separate", "compression": packing}
            tifffile.imwrite(file, bands, photometric="minisblack", **options)
            files[f"{name} tiff of planes"] = file.getvalue()
    except ImportError:
        pass
    try:
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(scene("RGB", (64, 64))).save(file)
        files["heic"] = file.getvalue()
    except ImportError:
        pass
    try:
        import pillow_jxl  # noqa: F401  # registers itself

        files["jpeg xl"] = saved(scene("RGB"), "JXL")
    except ImportError:
        pass
    return files


def cut(content, chance):
    return content[: chance.randrange(len(content))]


def flip(content, chance):
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_the_start(content, chance):
    changed = bytearray(content)
    for _ in range(chance.choice([1, 2, 4])):
        changed[chance.randrange(min(64, len(changed)))] = chance.choice([0, 1, 127, 128, 255])
    return bytes(changed)


def swap(content, chance):
    a, b, c = sorted(chance.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def drop(content, chance):
    a = chance.randrange(len(content))
    return content[:a] + content[a + chance.choice([1, 2, 8, 100]) :]


def repeat(content, chance):
    a, b = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:b] + content[a:b] * chance.choice([1, 3]) + content[b:]


def fill(content, chance):
    a, b = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:a] + chance.choice([b"\0", b"\xff", b"A"]) * (b - a) + content[b:]


def large_number(content, chance):
    """Write an extreme 16- or 32-bit number somewhere, as a length or a size would be."""
    value = chance.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 100_000])
    code = chance.choice("<>") + ("I" if value > 0xFFFF or chance.random() < 0.5 else "H")
    packed = struct.pack(code, value)
    place = chance.randrange(len(content))
    return content[:place] + packed + content[place + len(packed) :]


def other_header(content, chance):
    start = chance.choice([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*",
                           b"BM", b"RIFF\x10\0\0\0WEBP", b"P6 9 9 255\n", b"\0\0\0\x0cftypavif",
                           b"\0\0\0\x18ftypheic", b"\xff\x0a", b"\0\0\1\0\1\0", b"II+\0",
                           b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n"])  # fmt: skip
    return start + content[chance.choice([0, len(start)]) :]


def png_chunk(content, chance):
    """Put a chunk of nonsense, with a sound checksum, behind the header of a PNG."""
    kind = chance.choice([b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"eXIf"])
    data = chance.choice([b"", chance.randbytes(40), b"a\0\0" + zlib.compress(bytes(3_000_000))])
    check = struct.pack(">I", zlib.crc32(kind + data))
    return content[:33] + struct.pack(">I", len(data)) + kind + data + check + content[33:]


WAYS = (cut, flip, flip, flip_the_start, flip_the_start, swap, drop, repeat, fill, large_number,
        large_number, other_header, png_chunk)  # fmt: skip


def check(path, tally):
    """Load an image: it is a picture, or an `ImageError` of one line that names it."""
    tracemalloc.start()
    try:
        image = load_image(path, max_pixels=MOST)
    except ImageError as error:
        line = str(error)
        assert line.startswith(f"{path}: ")
        assert "\n" not in line
        assert len(line) < 500
        tally("mutated images refused in one line")
    else:
        assert image.mode == "RGB"
        assert image.getpixel((image.width - 1, image.height - 1))
        assert image_size(path, max_pixels=MOST) == image.size
        tally("mutated images read")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_BYTES


def mutated(first, count):
    """Yield `count` mutated images, of numbers from `first`: each depends on its number alone."""
    files = list(sound_files().items())
    for number in range(first, first + count):
        chance = random.Random(number)
        name, content = files[number % len(files)]
        ways = [chance.choice(WAYS) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
        for way in ways:
            content = way(content or b"\0", chance)
        yield f"{number} {name}: {', '.join(way.__name__ for way in ways)}", content


def check_all(first, count, folder, tally):
    for title, content in mutated(first, count):
        path = folder / "image.bin"
        path.write_bytes(content)
        try:
            check(path, tally)
        except BaseException:
            sys.stderr.write(f"\n{title}\n")
            raise


def test_sound_files_are_read(tmp_path):
    for name, content in sound_files().items():
        (tmp_path / "image.bin").write_bytes(content)
        assert load_image(tmp_path / "image.bin").size, name


def test_a_share_of_the_corpus(tmp_path, tally):
    check_all(0, SHARE, tmp_path, tally)


@pytest.mark.full
@pytest.mark.parametrize("first", range(SHARE, CORPUS, 94))
def test_the_corpus(tmp_path, tally, first):
    check_all(first, min(94, CORPUS - first), tmp_path, tally)
