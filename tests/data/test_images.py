import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from maskclip.data.images import ImageError, image_size, load_image, load_reduced

RED, WHITE = (255, 0, 0), (255, 255, 255)


def gradient(width=40, height=30):
    """A colour image none of whose mirrored or turned copies is equal to it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=2).astype(np.uint8)


def png_chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png_header(width, height):
    """A well-formed PNG that claims a size and has no pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def color_at(image, x=0, y=0):
    assert image.mode == "RGB"
    return image.getpixel((x, y))


class TestKinds:
    def test_rgb_is_unchanged(self, tmp_path):
        path = tmp_path / "photo.png"
        Image.fromarray(gradient()).save(path)
        assert np.array_equal(np.asarray(load_image(path)), gradient())
        assert np.array_equal(np.asarray(load_image(str(path))), gradient())

    @pytest.mark.parametrize("name", ["Фото 狗 ü.png", "a [1].png", "#%&'.png"])
    def test_unusual_paths(self, tmp_path, name):
        Image.fromarray(gradient()).save(tmp_path / name)
        assert load_image(tmp_path / name).size == (40, 30)

    def test_a_wrong_suffix_does_not_matter(self, tmp_path):
        Image.fromarray(gradient()).save(tmp_path / "really.jpg", format="PNG")
        assert np.array_equal(np.asarray(load_image(tmp_path / "really.jpg")), gradient())

    @pytest.mark.parametrize("size", [(1, 1), (4096, 64), (64, 4096)])
    def test_odd_sizes(self, tmp_path, size):
        Image.new("RGB", size, RED).save(tmp_path / "odd.png")
        assert load_image(tmp_path / "odd.png").size == size

    def test_cmyk(self, tmp_path):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
        red, green, blue = color_at(load_image(tmp_path / "print.jpg"))
        assert red > 240
        assert max(green, blue) < 15

    @pytest.mark.parametrize(("mode", "value"), [("L", 77), ("1", 1)])
    def test_grey_and_black_and_white(self, tmp_path, mode, value):
        Image.new(mode, (8, 8), value).save(tmp_path / "grey.png")
        level = 77 if mode == "L" else 255
        assert color_at(load_image(tmp_path / "grey.png")) == (level,) * 3

    def test_16_bit_grey_png(self, tmp_path):
        values = np.array([[0, 257, 128 * 257, 65_535]], np.uint16)
        Image.fromarray(values).save(tmp_path / "deep.png")
        assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 1, 128, 255]

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
    def test_a_dark_16_bit_image_stays_dark(self, mode):
        assert color_at(load_image(Image.new(mode, (2, 2), 200))) == (1, 1, 1)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
            (np.array([[0, 257, 65_535]], np.int32), [0, 1, 255]),
            (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
            (np.array([[0, 70_000]], np.int32), [0, 255]),
            (np.array([[-5, -5]], np.int32), [0, 0]),
            (np.array([[0.0, 0.2, 1.0]], np.float32), [0, 51, 255]),
            (np.array([[0.0, 51.0, 255.0]], np.float32), [0, 51, 255]),
            (np.array([[0.0, 25_700.0]], np.float32), [0, 100]),
            (np.array([[-1.0, 1.0]], np.float32), [0, 255]),
            (np.array([[np.nan, 1.0]], np.float32), [0, 255]),
        ],
    )
    def test_deep_greys_follow_the_documented_rule(self, tmp_path, values, expected):
        Image.fromarray(values).save(tmp_path / "deep.tif")
        assert np.asarray(load_image(tmp_path / "deep.tif"))[0, :, 1].tolist() == expected

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_is_laid_on_white(self, tmp_path, mode):
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        image.putpixel((1, 0), (0, 0, 0, 255))
        image.convert(mode).save(tmp_path / "glass.png")
        loaded = load_image(tmp_path / "glass.png")
        assert color_at(loaded) == WHITE
        assert color_at(loaded, 1) == (0, 0, 0)

    def test_half_transparent_red(self, tmp_path):
        Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "glass.webp", lossless=True)
        assert color_at(load_image(tmp_path / "glass.webp")) == (255, 127, 127)

    def test_a_palette_with_transparency(self, tmp_path):
        image = Image.new("P", (2, 1))
        image.putpalette([0, 255, 0, 255, 0, 0])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "palette.png", transparency=0)
        loaded = load_image(tmp_path / "palette.png")
        assert color_at(loaded) == WHITE
        assert color_at(loaded, 1) == RED

    def test_transparent_colour_keys_and_palette_with_alpha_channel(self, tmp_path):
        Image.new("RGB", (2, 1), RED).save(tmp_path / "key.png", transparency=RED)
        assert color_at(load_image(tmp_path / "key.png")) == WHITE
        Image.new("L", (2, 1), 9).save(tmp_path / "grey.png", transparency=9)
        assert color_at(load_image(tmp_path / "grey.png")) == WHITE
        pa = Image.new("RGBA", (2, 1), (255, 0, 0, 0)).convert("PA")
        assert color_at(load_image(pa)) == WHITE

    @pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
    def test_the_first_frame_of_an_animation(self, tmp_path, suffix):
        frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 255, 0), (0, 0, 255))]
        extra = {"lossless": True} if suffix == "webp" else {}
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **extra)
        assert color_at(load_image(path)) == RED

    @pytest.mark.parametrize("suffix", ["bmp", "ppm", "tif", "jp2", "ico", "avif", "jpg"])
    def test_other_formats(self, tmp_path, suffix):
        Image.new("RGB", (16, 16), (200, 40, 60)).save(tmp_path / f"photo.{suffix}")
        loaded = np.asarray(load_image(tmp_path / f"photo.{suffix}")).astype(int)
        assert np.abs(loaded - (200, 40, 60)).max() < 12


# The orientation tag says where the stored first row and column lie in the upright picture.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 3),
}


def save_tiff(path, bands, **options):
    """Write (bands, H, W) in planes or side by side, uncompressed unless told."""
    tifffile = pytest.importorskip("tifffile")
    if options.get("planarconfig") != "separate":
        bands = np.moveaxis(bands, 0, -1)
        options["planarconfig"] = "contig"
    tifffile.imwrite(path, bands, **options)


def ramps(count, dtype, most):
    """(count, 20, 30): each band rises another way, from 0 to `most`."""
    y, x = np.mgrid[:20, :30]
    ways = [x / 29, y / 19, (x + y) / 48, 1 - x / 29, 1 - y / 19]
    return np.stack([np.round(way * most).astype(dtype) for way in ways[:count]])


class TestTiff:
    """Layouts that Pillow takes for others or does not know."""

    def loaded(self, path):
        return np.moveaxis(np.asarray(load_image(path)).astype(int), -1, 0)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("planes", ["contig", "separate"])
    @pytest.mark.parametrize("bands", [3, 4, 5])
    @pytest.mark.parametrize("packing", [None, "deflate"])
    @pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
    @pytest.mark.parametrize(
        ("dtype", "most"), [("u1", 255), ("u2", 65_535), ("f4", 1), ("u4", 65_535)]
    )
    def test_the_first_three_bands_are_red_green_and_blue(
        self, tmp_path, dtype, most, photometric, packing, bands, planes, order
    ):
        path = tmp_path / "bands.tif"
        content = (ramps(bands, "f8", 65_535) * most / 65_535).astype(dtype)
        save_tiff(
            path,
            content,
            photometric=photometric,
            planarconfig=planes,
            byteorder=order,
            compression=packing,
            extrasamples=[0] * (bands - (3 if photometric == "rgb" else 1)),
        )
        expected = content[:3].astype(float) * 255 / most
        assert np.abs(self.loaded(path) - expected).max() <= 1
        assert image_size(path) == (30, 20)

    def test_a_deep_grey_whose_white_is_zero(self, tmp_path):
        tifffile = pytest.importorskip("tifffile")
        content = ramps(1, "u2", 65_535)
        tifffile.imwrite(tmp_path / "x.tif", content[0], photometric="miniswhite")
        expected = 255 - content[0] / 257
        assert np.abs(self.loaded(tmp_path / "x.tif") - expected).max() <= 1

    @pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
    def test_what_is_transparent_is_white(self, tmp_path, kind):
        content = ramps(4, "u2", 65_535)
        content[3] = 0
        if kind == "assocalpha":
            content[:3] = 0
        options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [kind]}
        save_tiff(tmp_path / "x.tif", content, **options)
        assert (self.loaded(tmp_path / "x.tif") == 255).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_it_is_turned_upright(self, tmp_path, orientation):
        path, stored = tmp_path / "x.tif", STORED[orientation](gradient())
        save_tiff(
            path,
            np.moveaxis(stored, -1, 0).astype("u2") * 257,
            photometric="rgb",
            planarconfig="separate",
            extratags=[(274, 3, 1, orientation, True)],
        )
        assert np.array_equal(np.asarray(load_image(path)), gradient())
        assert image_size(path) == (40, 30)

    def test_without_the_library_the_line_says_what_it_is_and_how_to_read_it(
        self, tmp_path, monkeypatch
    ):
        save_tiff(tmp_path / "x.tif", ramps(5, "u2", 9), photometric="minisblack")
        monkeypatch.setattr("maskclip.data.tiff.find_spec", lambda name: None)
        with pytest.raises(ImageError, match=r"a TIFF of 5 bands of 16 bits: pip install .*images"):
            load_image(tmp_path / "x.tif")

    def test_what_nobody_reads_is_named_and_not_called_damaged(self, tmp_path):
        save_tiff(tmp_path / "x.tif", ramps(4, "u4", 9), photometric="separated")
        with pytest.raises(ImageError, match="a TIFF of 4 bands of 32 bits, which is not read"):
            load_image(tmp_path / "x.tif")

    def test_a_part_that_unpacks_to_more_than_its_size_is_refused(self, tmp_path):
        path = tmp_path / "bomb.tif"
        noise = np.random.default_rng(0).integers(0, 65_536, (5, 20, 30)).astype("u2")
        save_tiff(path, noise, photometric="minisblack", compression="deflate", rowsperstrip=20)
        content, (start, count) = path.read_bytes(), strip_of(path)
        bomb = zlib.compress(bytes(1_500_000), 9)
        assert len(bomb) < count
        path.write_bytes(content[:start] + bomb.ljust(count, b"\0") + content[start + count :])
        with pytest.raises(ImageError, match="unpack to more than their size"):
            load_image(path)

    def test_a_size_that_no_file_so_small_can_hold_is_refused(self, tmp_path):
        tifffile = pytest.importorskip("tifffile")
        path = tmp_path / "x.tif"
        save_tiff(path, ramps(5, "f8", 9), photometric="minisblack")
        with tifffile.TiffFile(path, mode="r+b") as file:
            for tag in ("ImageWidth", "ImageLength"):
                file.pages[0].tags[tag].overwrite(12_000)
        with pytest.raises(ImageError, match="GiB unpacked: too much"):
            load_image(path)

    def test_a_preview_is_not_taken_for_the_picture(self, tmp_path):
        tifffile = pytest.importorskip("tifffile")
        with tifffile.TiffWriter(tmp_path / "x.tif") as file:
            file.write(gradient(8, 6), photometric="rgb", subfiletype=1)
            file.write(gradient(), photometric="rgb")
        assert np.array_equal(np.asarray(load_image(tmp_path / "x.tif")), gradient())
        assert image_size(tmp_path / "x.tif") == (40, 30)


def strip_of(path):
    import tifffile

    with tifffile.TiffFile(path) as file:
        return file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]


class TestCameraRaw:
    """Refused by what they hold, whatever their name: what Pillow finds in them is a preview."""

    @pytest.fixture(params=["preview of raw data", "DNG version", "filter array", "CR2"])
    def raw(self, request, tmp_path):
        tifffile = pytest.importorskip("tifffile")
        path = tmp_path / "photo.tif"
        small, data = gradient(8, 6), gradient()[:, :, 0]
        with tifffile.TiffWriter(path) as file:
            match request.param:
                case "preview of raw data":
                    file.write(small, photometric="rgb", subfiletype=1, subifds=1)
                    file.write(data, photometric="minisblack")
                case "DNG version":
                    file.write(
                        small, photometric="rgb", extratags=[(50706, 1, 4, (1, 4, 0, 0), True)]
                    )
                case "filter array":
                    file.write(data, photometric=32803)
                case "CR2":
                    file.write(small, photometric="rgb")
        if request.param == "CR2":
            content = path.read_bytes()
            directory = content[struct.unpack("<I", content[4:8])[0] :]
            path.write_bytes(b"II*\0" + struct.pack("<I", 16) + b"CR\2\0" + bytes(4) + directory)
        return path

    def test_it_is_refused_by_its_content(self, raw):
        for read in (load_image, image_size):
            with pytest.raises(ImageError, match="camera raw: develop it first"):
                read(raw)

    @pytest.mark.parametrize("start", [b"FUJIFILMCCD-RAW ", b"IIRO\x08\0", b"\0\0\0\x18ftypcrx "])
    def test_other_cameras_too(self, tmp_path, start):
        (tmp_path / "x.jpg").write_bytes(start + bytes(100))
        with pytest.raises(ImageError, match="camera raw"):
            load_image(tmp_path / "x.jpg")

    def test_by_its_suffix_where_it_is_a_tiff_and_not_where_it_is_a_jpeg(self, tmp_path):
        Image.fromarray(gradient()).save(tmp_path / "x.dng", format="TIFF")
        with pytest.raises(ImageError, match="camera raw"):
            load_image(tmp_path / "x.dng")
        Image.fromarray(gradient()).save(tmp_path / "y.dng", format="JPEG")
        assert load_image(tmp_path / "y.dng").size == (40, 30)


class TestPngMetadata:
    """What is beside the picture is no reason not to read it."""

    def chunk(self, kind):
        packed = zlib.compress(bytes(3_000_000), 9)
        match kind:
            case "zTXt":
                return png_chunk(b"zTXt", b"Comment\0\0" + packed)
            case "iTXt":
                return png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed)
            case "iCCP":
                return png_chunk(b"iCCP", b"profile\0\0" + packed)
            case "tEXt":
                return png_chunk(b"tEXt", b"Comment\0" + bytes(20_000_000))
            case "wrong checksum":
                return png_chunk(b"tEXt", b"Comment\0")[:-1] + b"!"
            case "broken EXIF":
                return png_chunk(b"eXIf", b"MM\0*")[:-1] + b"!"
            case "impossible animation":
                return png_chunk(b"fcTL", bytes(26))
            case "broken profile":
                return png_chunk(b"iCCP", b"profile\0\0" + b"garbage")

    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize(
        "kind",
        [
            "zTXt",
            "iTXt",
            "iCCP",
            "tEXt",
            "wrong checksum",
            "broken profile",
            "broken EXIF",
            "impossible animation",
        ],
    )
    def test_it_is_read(self, tmp_path, kind, late):
        path = tmp_path / "x.png"
        Image.fromarray(gradient()).save(path)
        content, end = path.read_bytes(), png_chunk(b"IEND", b"")
        place = len(content) - len(end) if late else 33  # behind the pixels, or the header
        path.write_bytes(content[:place] + self.chunk(kind) + content[place:])
        assert np.array_equal(np.asarray(load_image(path)), gradient())
        assert image_size(path) == (40, 30)

    def test_an_orientation_among_it_counts(self, tmp_path):
        path = tmp_path / "x.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(gradient()).save(path, exif=exif, icc_profile=bytes(2_000_000))
        assert load_image(path).size == image_size(path) == (30, 40)


class TestPlugins:
    def test_heic(self, tmp_path):
        pillow_heif = pytest.importorskip("pillow_heif")
        path = tmp_path / "x.heic"
        pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 60))).save(path, quality=95)
        assert np.abs(np.asarray(load_image(path)).astype(int) - (200, 40, 60)).max() < 12
        assert image_size(path) == (64, 48)
        with pytest.raises(ImageError, match="over the limit"):
            load_image(path, max_pixels=100)

    def test_heic_is_upright(self, tmp_path):
        pillow_heif = pytest.importorskip("pillow_heif")
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.new("RGB", (64, 48), RED)
        pillow_heif.register_heif_opener()
        image.save(tmp_path / "x.heic", exif=exif.tobytes())
        assert load_image(tmp_path / "x.heic").size == image_size(tmp_path / "x.heic") == (48, 64)

    @pytest.mark.parametrize("size", [(1, 1), (8, 8), (201, 150), (4001, 3), (640, 480)])
    @pytest.mark.parametrize("container", [False, True])
    def test_jpeg_xl(self, tmp_path, size, container):
        pytest.importorskip("pillow_jxl")
        image, path = Image.new("RGB", size, (200, 40, 60)), tmp_path / "x.jxl"
        image.save(path, lossless=True, use_container=container)
        assert load_image(path).tobytes() == image.tobytes()
        assert image_size(path) == size

    @pytest.mark.parametrize(
        ("start", "what"),
        [
            (b"\0\0\0\x18ftypheic", r"HEIC: pip install .*images"),
            (b"\xff\x0a", "JPEG XL: pip install"),
            (b"\0\0\0\x18ftypisom", "video"),
            (b"%PDF-1.7", "a PDF"),
            (b"<!DOCTYPE html>", "a web page: the download went wrong"),
            (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ],
    )
    def test_what_is_not_read_is_named(self, tmp_path, start, what, monkeypatch):
        for module in ("images", "kinds"):
            monkeypatch.setattr(f"maskclip.data.{module}.find_spec", lambda name: None)
        (tmp_path / "x.jpg").write_bytes(start + bytes(100))
        with pytest.raises(ImageError, match=rf"not an image that can be read \({what}"):
            load_image(tmp_path / "x.jpg")


class TestReduced:
    def load(self, path, least):
        return load_reduced(path, lambda size: least)

    def test_a_jpeg_comes_reduced_and_no_smaller_than_wanted(self, tmp_path):
        path = tmp_path / "x.jpg"
        Image.fromarray(gradient(403, 302)).save(path)
        assert [self.load(path, least)[0].size for least in [(403, 302), (200, 100), (50, 30)]] == [
            (403, 302),
            (202, 151),
            (51, 38),
        ]
        assert self.load(path, (50, 30))[1] == (403, 302)

    def test_it_is_upright(self, tmp_path):
        TestOrientation().save(tmp_path / "x.jpg", 6)
        image, size = self.load(tmp_path / "x.jpg", (20, 15))
        assert (image.size, size) == ((20, 15), (40, 30))

    def test_other_formats_come_whole(self, tmp_path):
        Image.fromarray(gradient()).save(tmp_path / "x.png")
        assert self.load(tmp_path / "x.png", (1, 1)) == (load_image(tmp_path / "x.png"), (40, 30))

    def test_a_jpeg_that_is_cut_short_is_damaged(self, tmp_path):
        path = tmp_path / "x.jpg"
        Image.fromarray(gradient(400, 300)).save(path)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(ImageError, match="damaged or cut short"):
            self.load(path, (50, 30))


class TestOrientation:
    def save(self, path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = np.ascontiguousarray(STORED.get(orientation, STORED[1])(gradient()))
        Image.fromarray(stored).save(path, exif=exif, quality=100, subsampling=0)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_orientation_is_turned_upright(self, tmp_path, orientation, suffix):
        path = tmp_path / f"turned.{suffix}"
        self.save(path, orientation)
        loaded = np.asarray(load_image(path)).astype(int)
        assert loaded.shape == gradient().shape
        assert np.abs(loaded - gradient()).mean() < 2

    def test_it_is_turned_only_once(self, tmp_path):
        self.save(tmp_path / "turned.jpg", 6)
        once = load_image(tmp_path / "turned.jpg")
        assert load_image(once).tobytes() == once.tobytes()

    def test_an_impossible_orientation_is_ignored(self, tmp_path):
        self.save(tmp_path / "turned.jpg", 99)
        assert load_image(tmp_path / "turned.jpg").size == (40, 30)

    def test_broken_exif_does_not_cost_the_picture(self, tmp_path):
        path = tmp_path / "broken.jpg"
        Image.fromarray(gradient()).save(path, exif=b"Exif\x00\x00XX*\x00garbage")
        assert load_image(path).size == (40, 30)


class TestSize:
    """`image_size` says what `load_image` would give, and decodes nothing for that."""

    @pytest.fixture
    def no_pixels(self, monkeypatch):
        def load(self):
            raise AssertionError("decoded")

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
    @pytest.mark.parametrize("orientation", [*range(1, 9), 99])
    def test_it_is_that_of_the_upright_image(self, tmp_path, orientation, suffix, no_pixels):
        TestOrientation().save(tmp_path / f"turned.{suffix}", orientation)
        assert image_size(tmp_path / f"turned.{suffix}") == (40, 30)

    @pytest.mark.parametrize("suffix", ["gif", "bmp", "ppm", "jp2", "avif", "ico"])
    def test_other_formats(self, tmp_path, suffix):
        path = tmp_path / f"it.{suffix}"
        Image.fromarray(gradient()).save(path)
        assert image_size(path) == load_image(path).size

    @pytest.mark.parametrize("kind", ["EXIF", "XMP"])
    def test_an_orientation_behind_the_pixels_of_a_png(self, tmp_path, kind):
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
        exif = Image.Exif()
        exif[0x0112] = 6
        late = {
            "EXIF": png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),
            "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        }[kind]
        path = tmp_path / "turned.png"
        Image.fromarray(gradient()).save(path)
        end = png_chunk(b"IEND", b"")
        path.write_bytes(path.read_bytes().removesuffix(end) + late + end)
        assert image_size(path) == load_image(path).size == (30, 40)

    def test_another_text_behind_the_pixels_costs_no_decoding(self, tmp_path, no_pixels):
        path = tmp_path / "dated.png"
        Image.fromarray(gradient()).save(path)
        end = png_chunk(b"IEND", b"")
        date = png_chunk(b"tEXt", b"date:create\x002020-02-02")
        path.write_bytes(path.read_bytes().removesuffix(end) + date + end)
        assert image_size(path) == (40, 30)

    def test_a_png_cut_within_its_chunks(self, tmp_path):
        path = tmp_path / "cut.png"
        Image.fromarray(gradient()).save(path)
        path.write_bytes(path.read_bytes()[:-30])
        assert image_size(path) == (40, 30)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such file"),
            (b"", "an empty file"),
            (b"text", "not an image that can be read"),
            (png_header(50_000, 50_000), "over the limit of"),
        ],
        ids=["missing", "empty", "text", "too large"],
    )
    def test_the_errors_are_those_of_loading(self, tmp_path, content, message):
        path = tmp_path / "bad.png"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ImageError, match=message) as of_size:
            image_size(path)
        with pytest.raises(ImageError) as of_loading:
            load_image(path)
        assert str(of_size.value) == str(of_loading.value)


class TestMemory:
    def test_a_pillow_image_is_copied(self):
        image = Image.new("RGB", (3, 2), RED)
        loaded = load_image(image)
        loaded.putpixel((0, 0), (1, 2, 3))
        assert color_at(image) == RED

    @pytest.mark.parametrize(("shape", "expected"), [((2, 3), (9, 9, 9)), ((2, 3, 3), (9, 9, 9))])
    def test_arrays(self, shape, expected):
        loaded = load_image(np.full(shape, 9, np.uint8))
        assert loaded.size == (3, 2)
        assert color_at(loaded) == expected

    def test_an_array_with_alpha_is_laid_on_white(self):
        assert color_at(load_image(np.zeros((2, 2, 4), np.uint8))) == WHITE

    def test_views_that_are_not_contiguous(self):
        flipped = gradient()[:, ::-1]
        assert np.array_equal(np.asarray(load_image(flipped)), flipped)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((2, 2, 3), np.float32),
            np.zeros((3, 20, 20), np.uint8),
            np.zeros((2,), np.uint8),
            np.zeros((1, 2, 2, 3), np.uint8),
        ],
    )
    def test_other_arrays_are_refused(self, array):
        with pytest.raises(ImageError, match="expected a uint8 array") as caught:
            load_image(array)
        assert str(array.shape) in str(caught.value)

    def test_nothing_and_other_things_are_refused(self):
        with pytest.raises(ImageError, match="no pixels"):
            load_image(np.zeros((0, 4, 3), np.uint8))
        with pytest.raises(ImageError, match="got int"):
            load_image(5)

    def test_the_limit_holds_in_memory_too(self):
        with pytest.raises(ImageError, match="over the limit of 5"):
            load_image(np.zeros((2, 3), np.uint8), max_pixels=5)


class TestWhatGoesWrong:
    def check(self, path, message):
        with pytest.raises(ImageError, match=message) as caught:
            load_image(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text

    def test_missing(self, tmp_path):
        self.check(tmp_path / "nowhere.jpg", "no such file")
        self.check("https:/a.b/photo.jpg", "photos are files here, download it first")

    def test_folder(self, tmp_path):
        self.check(tmp_path, "a folder, not an image")

    def test_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        self.check(tmp_path / "file" / "photo.jpg", "cannot be read")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_forbidden(self, tmp_path):
        path = tmp_path / "secret.png"
        Image.new("RGB", (2, 2)).save(path)
        path.chmod(0)
        self.check(path, "cannot be read")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        self.check(tmp_path / "pipe.jpg", "a pipe, socket or device, not an image")

    def test_a_name_with_a_zero_byte(self, tmp_path):
        with pytest.raises(ImageError, match="cannot be read"):
            load_image(tmp_path / "a\0.jpg")

    def test_too_little_memory_is_not_damage(self, tmp_path, monkeypatch):
        def load(self):
            raise MemoryError

        Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
        self.check(tmp_path / "x.png", "too large for the memory that is free")

    def test_empty(self, tmp_path):
        (tmp_path / "empty.jpg").write_bytes(b"")
        self.check(tmp_path / "empty.jpg", "empty file")

    @pytest.mark.parametrize(
        "content", [b"hello, I am text\n" * 40, b"\x00" * 500, b"<svg/>", b"x"]
    )
    def test_not_an_image(self, tmp_path, content):
        (tmp_path / "text.jpg").write_bytes(content)
        self.check(tmp_path / "text.jpg", "not an image")

    def test_formats_that_start_programs_are_not_opened(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "drawing.eps")
        self.check(tmp_path / "drawing.eps", "not an image")

    @pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif", "ppm"])
    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
    def test_cut_short(self, tmp_path, suffix, kept):
        path = tmp_path / f"cut.{suffix}"
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        self.check(path, "damaged")

    @pytest.mark.parametrize("missing", [2, 10])
    def test_a_jpeg_without_its_last_bytes(self, tmp_path, missing):
        path = tmp_path / "cut.jpg"
        Image.fromarray(gradient(400, 300)).save(path)
        path.write_bytes(path.read_bytes()[:-missing])
        self.check(path, "damaged or cut short")

    def test_garbage_after_a_good_start(self, tmp_path):
        for start in (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00", b"BM"):
            path = tmp_path / "garbage"
            path.write_bytes(start + bytes(range(256)) * 4)
            self.check(path, "damaged at its start|damaged or cut short")


class TestPixelLimit:
    def test_a_bomb_is_refused_by_its_header(self, tmp_path):
        path = tmp_path / "bomb.png"
        path.write_bytes(png_header(50_000, 50_000))
        with pytest.raises(ImageError, match=r"50000x50000 = 2,500,000,000 pixels.*`max_pixels`"):
            load_image(path)

    def test_the_limit_can_be_raised_above_that_of_pillow(self, tmp_path, monkeypatch):
        path = tmp_path / "large.png"
        Image.new("RGB", (100, 100), RED).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_image(path).size == (100, 100)
            with pytest.raises(ImageError, match=r"10,000 pixels, over the limit of 9,999"):
                load_image(path, max_pixels=9_999)
        assert load_image(path, max_pixels=10_000).size == (100, 100)

    def test_global_settings_stay_while_threads_load(self, tmp_path):
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, len(warnings.filters)
        path = tmp_path / "photo.png"
        Image.fromarray(gradient()).save(path)
        sizes = []
        threads = [
            threading.Thread(target=lambda: sizes.append(load_image(path).size)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sizes == [(40, 30)] * 8
        after = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, len(warnings.filters)
        assert after == before


def test_a_progressive_jpeg_of_endless_scans_is_refused(tmp_path):
    content = io.BytesIO()
    Image.effect_noise((64, 48), 40).save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    for scans, name in ((100, "many.jpg"), (600, "endless.jpg")):
        (tmp_path / name).write_bytes(whole[:-2] + scans * last + whole[-2:])
    assert load_image(tmp_path / "many.jpg").size == (64, 48)
    with pytest.raises(ImageError, match=r"a progressive JPEG of more than 500 scans"):
        load_image(tmp_path / "endless.jpg")
