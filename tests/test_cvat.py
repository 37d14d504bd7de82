"""CVAT's own driver gets the labels of segment, as masks or as polygons."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import maskclip
from maskclip.core.errors import MaskCLIPError
from maskclip.cvat import create
from maskclip.data.annotations.shapes import polygons as filled
from maskclip.emoji.scenes import draw_scene

auto_annotation = pytest.importorskip("cvat_sdk.auto_annotation")
masks = pytest.importorskip("cvat_sdk.masks")
models = pytest.importorskip("cvat_sdk.models")

WORDS = "cow, grass; dog=dog,cat"
LINES = ["cow", "grass", "dog=dog,cat"]


@pytest.fixture(scope="module")
def images():
    return [
        Image.fromarray(draw_scene(seed, size=96, objects=["cow"], grounds=["grass"]).image)
        for seed in (3, 4)
    ]


@pytest.fixture
def annotate(images, monkeypatch):
    """`annotate(function, names, kind, **options)`: what reaches a stand-in for CVAT's server."""

    def run(function, names=("grass", "dog", "cow"), kind="any", **options):
        sent = []

        def take(task, labeled_data_request):
            sent.append((task, labeled_data_request))

        dataset = SimpleNamespace(
            labels=[
                models.Label(name=name, id=100 + number, type=kind, attributes=[], sublabels=[])
                for number, name in enumerate(names)
            ],
            samples=[
                SimpleNamespace(
                    frame_name=f"{number}.png",
                    frame_index=number,
                    media=SimpleNamespace(load_image=lambda image=image: image),
                )
                for number, image in enumerate(images)
            ],
        )
        monkeypatch.setattr("cvat_sdk.auto_annotation.driver.TaskDataset", lambda *_, **__: dataset)
        client = SimpleNamespace(
            logger=logging.getLogger("cvat"),
            tasks=SimpleNamespace(api=SimpleNamespace(update_annotations=take)),
        )
        auto_annotation.annotate_task(client, 7, function, clear_existing=True, **options)
        ((task, request),) = sent
        assert task == 7
        return {100 + number: name for number, name in enumerate(names)}, request.shapes

    return run


def painted(shapes, names, frame, size, decode):
    """Return, for each label, the union of its shapes in a frame."""
    found = {name: np.zeros(size, bool) for name in names.values()}
    for shape in shapes:
        if shape.frame == frame:
            found[names[shape.label_id]] |= decode(shape)
    return found


def by_mask(shape):
    assert (shape.type.value, shape.source) == ("mask", "auto")
    return masks.decode_mask(shape.points, image_width=96, image_height=96)


def by_polygon(shape):
    assert shape.type.value == "polygon"
    return filled([[float(value) for value in shape.points]], (96, 96))


@pytest.mark.parametrize("as_polygons", [False, True])
@pytest.mark.parametrize("kind", ["any", "own"])
def test_a_task_gets_the_labels_of_segment(annotate, images, as_polygons, kind):
    function = create(WORDS, model="emoji", background="0.4", tolerance=0.0)
    kind = kind if kind == "any" else "polygon" if as_polygons else "mask"
    names, shapes = annotate(function, kind=kind, conv_mask_to_poly=as_polygons)
    expected = maskclip.load("emoji").segment(images, LINES, background=0.4)
    for frame, found in enumerate(expected):
        decode = by_polygon if as_polygons else by_mask
        for name, mask in painted(shapes, names, frame, (96, 96), decode).items():
            label = found.vocabulary.names.index(name)
            assert np.array_equal(mask, found.labels == label)


@pytest.mark.parametrize("as_polygons", [False, True])
def test_only_regions_that_are_sure_enough_are_sent(annotate, images, as_polygons):
    function = create(WORDS, model="emoji")
    found = maskclip.load("emoji").segment(images, LINES)
    counts = []
    for threshold in (None, 0.0, 0.6, 0.9, 1.0):
        _, shapes = annotate(function, conf_threshold=threshold, conv_mask_to_poly=as_polygons)
        counts.append(len(shapes))
        for shape in [] if as_polygons else shapes:
            assert found[shape.frame].scores[by_mask(shape)].mean() >= (threshold or 0) - 1e-6
    assert counts[0] == counts[1] > counts[2] > counts[3] > counts[4] == 0


def test_polygons_are_simple_within_a_tolerance_and_specks_can_be_left_out(annotate):
    corners, areas = [], []
    for tolerance, min_region in ((0.0, 0), (1.0, 0), (1.0, 50)):
        function = create(WORDS, model="emoji", tolerance=tolerance, min_region=min_region)
        _, shapes = annotate(function, conv_mask_to_poly=True)
        corners.append(sum(len(shape.points) for shape in shapes))
        areas.append(sum(by_polygon(shape).sum() for shape in shapes))
    assert corners[2] <= corners[1] < corners[0] / 2
    assert areas[1] == pytest.approx(areas[0], rel=0.05)


def test_labels_that_the_task_does_not_have_are_for_cvat_to_judge(annotate):
    function = create(WORDS, model="emoji")
    with pytest.raises(auto_annotation.BadFunctionError, match="dog"):
        annotate(function, ["cow", "grass"])
    names, shapes = annotate(function, ["cow"], allow_unmatched_labels=True)
    assert {names[shape.label_id] for shape in shapes} == {"cow"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "no classes|no words|expected"),
        ({"words": "dog", "vocabulary": "voc21"}, "give `words` or a `vocabulary`"),
        ({"words": "dog", "tolerance": -1.0}, "`tolerance` is a number of pixels"),
        ({"words": "dog", "min_region": -1}, "`min_region` is a number"),
        ({"words": "dog", "short_sid": 5}, "short_side"),
        ({"words": "dog", "refine": "pamrr"}, "pamr"),
    ],
)
def test_parameters_that_cannot_be_used_get_one_line(given, line):
    with pytest.raises(MaskCLIPError, match=line):
        create(model="emoji", **given)
