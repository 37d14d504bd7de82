import io
import os
from pathlib import Path

import pytest

from maskclip.data.images import ImageError
from maskclip.data.sources import find_sources, output_names, output_stems, read_list


def find_images(arguments):
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


class TestOutputStems:
    @pytest.mark.parametrize(
        ("paths", "stems"),
        [
            (["a/x.jpg", "b/y.png"], ["x", "y"]),
            (["x.jpg", "x.png", "y.png"], ["x_jpg", "x_png", "y"]),
            (["a/x.jpg", "b/x.jpg"], ["a_x", "b_x"]),
            (["a/x.jpg", "b/x.jpg", "b/x.png"], ["a_x_jpg", "b_x_jpg", "b_x_png"]),
            (["r/a/x.jpg", "s/a/x.jpg"], ["r_a_x", "s_a_x"]),
            (["x.JPG", "X.jpg"], ["x_JPG", "X_jpg_2"]),
            (["x.jpg", "x.jpg"], ["x_jpg", "x_jpg_2"]),
            (["x.jpg", "x.png", "x_jpg.png"], ["x_jpg_2", "x_png", "x_jpg"]),
            (["archive.tar.jpg", "noöne"], ["archive.tar", "noöne"]),
            (["..jpg", "a/...jpg"], ["..jpg", "...jpg"]),
            ([], []),
        ],
    )
    def test_names(self, paths, stems):
        assert output_stems(paths) == stems

    def test_always_different_whatever_the_case(self):
        folders = ["", "a", "b", "a/b", "A"]
        names = ["x.jpg", "X.jpg", "x.png", "x_jpg.gif", "a_x.jpg", "x_jpg_2.png", "x"]
        paths = [Path(folder, name) for folder in folders for name in names]
        stems = output_stems(paths)
        assert len({stem.casefold() for stem in stems}) == len(paths)
        assert stems == output_stems(paths)


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

    def test_what_is_not_utf8_stays_as_the_file_system_has_it(self):
        (path,) = self.paths(b"x\xff.jpg\n")
        assert os.fsencode(path) == b"x\xff.jpg"


class TestOutputNames:
    @pytest.mark.parametrize(
        ("relative_paths", "names"),
        [
            (["a/x.jpg", "b/x.jpg", "y.png"], ["a/x", "b/x", "y"]),
            (["x.jpg", "x.png", "y.png"], ["x", "x_png", "y"]),
            (["x.png", "x.jpg"], ["x", "x_jpg"]),
            (["a/X.jpg", "A/x.jpg"], ["a/X", "A/x_jpg"]),
            (["x.jpg", "x.png", "x_png.jpg"], ["x", "x_png_2", "x_png"]),
            (["a.b/c.tar.jpg", "noöne", ".jpg"], ["a.b/c.tar", "noöne", ".jpg"]),
            (["..jpg", "a/...jpg"], ["..jpg", "a/...jpg"]),
            ([], []),
        ],
    )
    def test_a_name_is_the_path_without_suffix_if_that_is_free(self, relative_paths, names):
        assert output_names(relative_paths) == names

    def test_the_first_keeps_its_name_whether_the_other_comes_with_it_or_later(self):
        together = output_names(["x.jpg", "x.png"])
        assert together == [*output_names(["x.jpg"]), *output_names(["x.png"], taken=["x"])]

    @pytest.mark.parametrize(
        ("taken", "name"),
        [
            (["y"], "a/x"),
            (["a/x"], "a/x_jpg"),
            (["A/X"], "a/x_jpg"),
            (["a/x", "a/X_jpg"], "a/x_jpg_2"),
            (["a/x", "a/x_jpg", "a/x_jpg_2"], "a/x_jpg_3"),
        ],
    )
    def test_names_given_before_are_taken(self, taken, name):
        assert output_names(["a/x.jpg"], taken=taken) == [name]

    def test_always_different_whatever_the_case(self):
        names = ["x.jpg", "X.jpg", "x.png", "x_jpg.gif", "x_jpg_2.png", "x", "X"]
        relative_paths = [
            f"{folder}{name}" for folder in ("", "a/", "A/", "a/b/") for name in names
        ]
        found = output_names(relative_paths, taken=["x_png", "a/x_jpg_2"])
        assert (
            len({name.casefold() for name in [*found, "x_png", "a/x_jpg_2"]})
            == len(relative_paths) + 2
        )
