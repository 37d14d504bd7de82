from pathlib import Path

import pytest

from maskclip.data.names import output_names, output_stems


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
