import io
import os
import socket
import warnings
from pathlib import Path

import pytest

from maskclip.core.errors import MaskCLIPWarning
from maskclip.data import sources
from maskclip.data.images import ImageError
from maskclip.data.sources import find_sources, read_list


def find_images(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskCLIPWarning)
        return [source.path for source in find_sources(arguments)]


class TestFindImages:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("b.jpg", "a.PNG", "sub/deep/c.webp", ".hidden.jpg", ".cache/d.jpg", "n.txt"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    def names(self, folder, sources):
        return [path.relative_to(folder).as_posix() for path in find_images(sources)]

    def test_a_folder_gives_its_images_sorted_without_hidden_ones(self, folder):
        assert self.names(folder, [folder]) == ["a.PNG", "b.jpg", "sub/deep/c.webp"]

    def test_files_keep_their_order_and_come_once(self, folder):
        sources = [folder / "b.jpg", str(folder / "a.PNG"), folder, folder / "b.jpg"]
        assert self.names(folder, sources) == ["b.jpg", "a.PNG", "sub/deep/c.webp"]

    def test_patterns(self, folder):
        assert self.names(folder, [f"{folder}/*"]) == ["a.PNG", "b.jpg"]
        assert self.names(folder, [f"{folder}/?.jpg"]) == ["b.jpg"]
        assert self.names(folder, [f"{folder}/**/*.webp"]) == ["sub/deep/c.webp"]

    def test_relative_patterns(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        assert find_images(["*.jpg", "./b.jpg"]) == [Path("b.jpg")]

    def test_a_path_that_exists_is_no_pattern(self, folder):
        (folder / "b[1].jpg").touch()
        (folder / "b1.jpg").touch()
        assert self.names(folder, [folder / "b[1].jpg"]) == ["b[1].jpg"]
        (folder / "album [2024]").mkdir()
        (folder / "album [2024]" / "x.png").touch()
        assert self.names(folder, [folder / "album [2024]"]) == ["album [2024]/x.png"]

    def test_a_missing_file_is_left_to_the_loader(self, folder):
        assert self.names(folder, [folder / "nowhere.jpg", folder / "n.txt"]) == [
            "nowhere.jpg",
            "n.txt",
        ]

    def test_a_folder_or_pattern_without_images_is_an_error(self, folder):
        (folder / "empty").mkdir()
        with pytest.raises(ImageError, match="empty: no images in this folder"):
            find_images([folder / "empty"])
        with pytest.raises(ImageError, match=r"\*\.bmp: no image matches this pattern"):
            find_images([f"{folder}/*.bmp"])
        with pytest.raises(ImageError, match="an empty path"):
            find_images([""])


@pytest.fixture
def make(tmp_path):
    """`make("a/x.jpg", ...)`: empty files below a folder, which is returned."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


class TestWhatIsLeftOut:
    def test_files_of_other_suffixes_are_counted_and_reported_once(self, make):
        folder = make("a.jpg", "b.MP4", "c.mp4", "s/d.dng", "notes", ".hidden.mp4", ".git/x.txt")
        with pytest.warns(MaskCLIPWarning) as told:
            found = find_sources([folder])
        assert found.left_out.suffixes == {".mp4": 2, ".dng": 1, "": 1}
        (line,) = [str(warning.message) for warning in told]
        assert line.startswith("4 files left out: .mp4 2, ")
        assert "camera raw: develop it first" in line
        assert "video" in line

    def test_of_patterns_too(self, make):
        folder = make("a.jpg", "b.cr2")
        with pytest.warns(MaskCLIPWarning, match=r"1 file left out: \.cr2 1 \(camera raw"):
            find_sources([f"{folder}/*"])

    def test_what_reads_heic_is_named_where_it_is_missing(self, make, monkeypatch):
        folder = make("a.jpg", "b.HEIC", "c.jxl")
        monkeypatch.setattr("maskclip.data.kinds.find_spec", lambda name: None)
        with pytest.warns(MaskCLIPWarning, match=r"\.heic 1.*HEIC: pip install .*images"):
            assert len(find_sources([folder])) == 1
        monkeypatch.setattr("maskclip.data.kinds.find_spec", lambda name: True)
        assert len(find_sources([folder])) == 3

    def test_a_folder_of_nothing_else_says_what_it_holds(self, make):
        folder = make("b.mov")
        with pytest.raises(ImageError, match=r"no images in this folder; 1 file left out: \.mov 1"):
            find_sources([folder])

    def test_of_many_suffixes_the_commonest_are_named(self, make):
        folder = make("x.jpg", *[f"{n}.s{k}" for k in range(20) for n in range(20 - k)])
        with pytest.warns(MaskCLIPWarning, match=r"\.s0 20, \.s1 19, .*, 12 more suffixes"):
            find_sources([folder])

    def test_nothing_is_said_where_nothing_is_left_out(self, make, recwarn):
        find_sources([make("a.jpg")])
        assert not recwarn

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_pipes_and_sockets_are_left_out_with_a_line(self, make):
        folder = make("a.jpg")
        os.mkfifo(folder / "pipe.jpg")
        with socket.socket(socket.AF_UNIX) as server:
            old = Path.cwd()
            os.chdir(folder)  # the path of a socket must be short
            server.bind("socket.png")
            os.chdir(old)
            with pytest.warns(MaskCLIPWarning, match="2 left out that are pipes, sockets"):
                found = find_sources([folder])
        assert [source.relative_path for source in found] == ["a.jpg"]


class TestLinks:
    def names(self, folder, *, outside=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MaskCLIPWarning)
            return [s.relative_path for s in find_sources([folder], outside=outside)]

    def test_linked_folders_are_followed(self, make):
        folder = make("photos/c.jpg", "store/a.jpg", "store/deep/b.jpg")
        (folder / "photos" / "site").symlink_to("../store")
        assert self.names(folder / "photos") == ["c.jpg", "site/a.jpg", "site/deep/b.jpg"]
        assert self.names(folder / "photos" / "site") == ["a.jpg", "deep/b.jpg"]

    @pytest.mark.parametrize("target", [".", "..", "../..", "/"])
    def test_circles_are_not_followed(self, make, target):
        folder = make("photos/sub/a.jpg", "photos/b.jpg")
        (folder / "photos" / "sub" / "loop").symlink_to(target)
        assert self.names(folder / "photos") == ["b.jpg", "sub/a.jpg"]

    def test_two_links_that_lead_to_each_other(self, make):
        folder = make("photos/a.jpg", "other/b.jpg")
        (folder / "photos" / "there").symlink_to("../other")
        (folder / "other" / "back").symlink_to("../photos")
        assert self.names(folder / "photos") == ["a.jpg", "there/b.jpg"]

    def test_a_link_to_itself_is_left_to_the_loader(self, make):
        folder = make("a.jpg")
        (folder / "loop.jpg").symlink_to("loop.jpg")
        (folder / "nowhere.jpg").symlink_to("gone.jpg")
        assert self.names(folder) == ["a.jpg", "loop.jpg", "nowhere.jpg"]

    def test_a_file_keeps_its_own_path_where_a_link_leads_to_it_too(self, make):
        folder = make("z/real.jpg", "b.jpg")
        (folder / "a").symlink_to("z")
        (folder / "a.jpg").symlink_to("z/real.jpg")
        with pytest.warns(MaskCLIPWarning, match="here under another name already, by links"):
            found = find_sources([folder])
        assert {s.path.resolve() for s in found} == {folder / "b.jpg", folder / "z/real.jpg"}
        assert found.left_out.again == 1

    def test_a_pattern_does_not_go_in_circles(self, make):
        folder = make("p/s/a.jpg", "p/z.jpg")
        (folder / "p" / "s" / "loop").symlink_to("..")
        with pytest.warns(MaskCLIPWarning):
            found = find_sources([f"{folder}/p/**/*.jpg"])
        assert [source.relative_path for source in found] == ["s/a.jpg", "z.jpg"]

    def test_the_folder_of_the_results_is_left_out_through_links_too(self, make):
        folder = make("photos/a.jpg", "out/png/a.png")
        (folder / "photos" / "results").symlink_to("../out")
        (folder / "photos" / "pngs").symlink_to("../out/png")
        assert self.names(folder / "photos", outside=folder / "out") == ["a.jpg"]


class TestSpellings:
    def test_one_file_under_several_is_handled_once(self, make, monkeypatch):
        folder = make("photos/a.jpg")
        monkeypatch.chdir(folder)
        Path("link").symlink_to("photos")
        Path("other.jpg").symlink_to("photos/a.jpg")
        absolute = folder / "photos" / "a.jpg"
        files = ["photos/./a.jpg", "photos/../photos/a.jpg", absolute, "link/a.jpg", "other.jpg"]
        spellings = [*files, "link", "photos/*.jpg", "./photos"]
        for first in spellings:
            assert len(find_images([first, *spellings])) == 1

    def test_upper_and_lower_case_where_the_file_system_does_not_tell_them_apart(
        self, make, monkeypatch
    ):
        folder = make("A.jpg")
        arguments = [folder, folder / "a.jpg", folder / "A.JPG"]
        assert len(find_images(arguments)) == 3
        monkeypatch.setattr(sources, "_FOLDS_CASE", True)
        assert len(find_images(arguments)) == 1

    def test_two_names_of_one_content_are_two_photos(self, make):
        folder = make("a.jpg")
        (folder / "b.jpg").hardlink_to(folder / "a.jpg")
        assert len(find_images([folder])) == 2


class TestRelativePaths:
    @pytest.fixture
    def tree(self, tmp_path, monkeypatch):
        for name in ("top.jpg", "photos/a.jpg", "photos/sub/b.jpg", "photos/sub/deep/c.jpg"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        return tmp_path

    def relative_paths(self, *arguments, outside=None):
        return [source.relative_path for source in find_sources(arguments, outside=outside)]

    @pytest.mark.parametrize("folder", ["../photos", "../photos/", "../photos/sub/.."])
    def test_below_a_folder_they_are_those_in_it(self, tree, folder):
        assert self.relative_paths(folder) == ["a.jpg", "sub/b.jpg", "sub/deep/c.jpg"]
        assert self.relative_paths(tree / "photos") == self.relative_paths(folder)

    def test_of_a_pattern_they_are_below_its_fixed_part(self, tree):
        assert self.relative_paths(f"{tree}/photos/**/*.jpg") == [
            "a.jpg",
            "sub/b.jpg",
            "sub/deep/c.jpg",
        ]
        assert self.relative_paths("../photos/s*/*.jpg") == ["sub/b.jpg"]
        assert self.relative_paths("../photos/sub/*.jpg") == ["b.jpg"]
        assert self.relative_paths(f"{tree}/ph*/sub/b.jpg") == ["photos/sub/b.jpg"]

    def test_of_a_named_file_it_is_its_whole_path_without_the_root(self, tree, monkeypatch):
        absolute = tree / "photos" / "a.jpg"
        assert self.relative_paths(absolute) == [absolute.relative_to("/").as_posix()]
        monkeypatch.chdir(tree)
        assert self.relative_paths("photos/a.jpg", "./top.jpg") == ["photos/a.jpg", "top.jpg"]
        assert self.relative_paths("photos/sub/../a.jpg") == ["photos/a.jpg"]

    def test_a_named_file_above_the_working_folder_has_its_real_path(self, tree):
        resolved = (tree / "photos" / "a.jpg").resolve()
        assert self.relative_paths("../photos/a.jpg") == [resolved.relative_to("/").as_posix()]

    def test_a_file_named_twice_keeps_its_first_path(self, tree):
        first, second = tree / "photos" / "sub", tree / "photos"
        assert self.relative_paths(first, second) == ["b.jpg", "deep/c.jpg", "a.jpg"]

    @pytest.mark.parametrize("arguments", [["../photos"], ["../photos/**/*.jpg"]])
    def test_the_folder_of_the_results_is_left_out(self, tree, arguments):
        for out in (tree / "photos" / "sub", Path("../photos/sub"), Path("../photos/none/../sub")):
            assert self.relative_paths(*arguments, outside=out) == ["a.jpg"]
        deep = tree / "photos" / "sub" / "deep"
        assert self.relative_paths(*arguments, outside=deep) == ["a.jpg", "sub/b.jpg"]

    def test_a_folder_that_is_only_called_like_that_of_the_results_stays(self, tree):
        assert len(self.relative_paths("../photos", outside=Path("sub"))) == 3

    def test_what_is_named_itself_is_never_left_out(self, tree):
        assert len(self.relative_paths(tree / "photos/sub/b.jpg", outside=tree / "photos/sub")) == 1


class TestReadList:
    def paths(self, content):
        return read_list(io.BytesIO(content))

    def test_lines_of_every_system(self):
        assert self.paths(b"a.jpg\nb c.jpg\r\n\nd.jpg") == ["a.jpg", "b c.jpg", "d.jpg"]

    def test_paths_that_nul_ends_may_have_line_breaks(self):
        assert self.paths(b"a\nb.jpg\0c.jpg\0") == ["a\nb.jpg", "c.jpg"]

    def test_a_byte_order_mark_and_blanks_are_no_paths(self):
        assert self.paths("\ufeffa.jpg\n \n\t\n ü .jpg\n".encode()) == ["a.jpg", " ü .jpg"]
        assert self.paths(b"") == []

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
    def test_lists_of_powershell(self, encoding):
        mark = "" if encoding == "utf-16" else "\ufeff"
        assert self.paths(f"{mark}a.jpg\r\nü.jpg\r\n".encode(encoding)) == ["a.jpg", "ü.jpg"]

    def test_what_is_not_utf8_stays_as_the_file_system_has_it(self):
        (path,) = self.paths(b"x\xff.jpg\n")
        assert os.fsencode(path) == b"x\xff.jpg"


class Endless(io.RawIOBase):
    """A device that gives bytes without end, as /dev/zero does."""

    def __init__(self, byte):
        self.byte, self.given = byte, 0

    def read(self, size=-1):
        assert 0 < size < 2**30
        self.given += size
        return self.byte * size


@pytest.mark.parametrize("byte", [b"\0", b"a"])
def test_an_endless_list_is_refused(byte, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST_LIST", 1000)
    endless = Endless(byte)
    with pytest.raises(ImageError, match="expected a list of photos"):
        read_list(endless)
    assert endless.given == 1001
