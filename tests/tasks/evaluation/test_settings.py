import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip.core.config import Options
from maskclip.core.dense import score
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN, PUBLISHED
from maskclip.core.resize import cut, fit_within
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.specs import SPECS
from maskclip.emoji.scenes import EmojiScenes
from maskclip.tasks.evaluation.predictors import ZeroShotPredictor
from maskclip.tasks.evaluation.settings import PROTOCOLS, method_under, options_under
from maskclip.tasks.segmenter import Segmenter


def samples_of(name):
    spec = SPECS[name]
    return EmojiScenes(name=name, scale=spec.scale, windows_short=spec.windows_short)


def seen(size, options):
    """The size at which the network sees an image, and its windows."""
    size = fit_within(size, short=options.short_side, long=options.long_side)
    return size, cut(size, window=options.window, stride=options.stride)


def test_segment_changes_nothing():
    options = Options(short_side=300, window=200, key_smoothing=1)
    assert options_under("segment", options, samples_of("voc20"), CLEAN) == options
    assert method_under("segment", CLEAN, "voc20") is CLEAN


@pytest.mark.parametrize(("name", "what"), [("published", "maps"), ("windows", "prompts")])
def test_the_fields_protocols_enlarge_maps_in_two_resizes(name, what):
    method = method_under(name, CLEAN, "voc20")
    assert (method.upsample, method.resizes) == (what, 2)
    assert method_under("published", PUBLISHED, "voc20") == PUBLISHED


@pytest.mark.parametrize(
    ("dataset", "image", "expected"),
    [  # published code, S3
        ("voc20", (375, 500), (512, 683)),
        ("voc20", (500, 375), (683, 512)),
        ("cocostuff171", (100, 1000), (205, 2048)),
        ("context59", (375, 500), (390, 520)),
        ("context59", (500, 333), (520, 346)),
        ("cityscapes19", (1024, 2048), (1024, 2048)),
    ],
)
def test_published_test_sizes(dataset, image, expected):
    options = options_under("published", Options(key_smoothing=0.5), samples_of(dataset), CLEAN)
    assert options.key_smoothing == 0.5
    size, windows = seen(image, options)
    assert size == expected
    assert len(windows) == 1


@pytest.mark.parametrize(
    ("dataset", "image", "expected", "count"),
    [
        ("voc20", (375, 500), (336, 448), 2 * 3),
        ("cityscapes19", (1024, 2048), (560, 1120), 4 * 9),
    ],
)
def test_windows_of_the_later_literature(dataset, image, expected, count):
    options = options_under("windows", Options(), samples_of(dataset), CLEAN)
    size, windows = seen(image, options)
    assert size == expected
    assert len(windows) == count
    assert all(len(axis) == 224 for window in windows for axis in window)
    assert sorted({rows.start for rows, _ in windows})[:2] == [0, 112]


@pytest.mark.parametrize("field", ["short_side", "window"])
@pytest.mark.parametrize("name", ["published", "windows"])
def test_sizes_are_the_protocols_own(name, field):
    with pytest.raises(MaskCLIPError, match=f"leave {field} out"):
        options_under(name, Options(**{field: 100}), samples_of("voc20"), CLEAN)


def test_an_unknown_protocol_names_those_that_there_are():
    with pytest.raises(MaskCLIPError, match="unknown protocol 'x': expected one of segment, "):
        method_under("x", CLEAN, "voc20")
    assert set(PROTOCOLS) == {"segment", "published", "windows"}


@torch.inference_mode()
@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("refinement", [{}, {"key_smoothing": 1.0, "prompt_denoising": 0.3}])
def test_windows_are_labelled_as_the_later_literature_does(family, refinement, make_model, picture):
    """Written out plainly: each window's maps at its size, averaged, resized, best class."""
    words = Vocabulary.parse(["dog", "red car", "grass", "sky"])
    samples = EmojiScenes(vocabulary=words, windows_short=240)
    segmenter = Segmenter(
        make_model(family),
        method=method_under("windows", PUBLISHED, "emoji"),
        device=torch.device("cpu"),
        precision="float32",
        templates="plain",
    )
    photo = picture(240, 300)
    options = options_under("windows", Options(**refinement), samples, PUBLISHED)
    found = ZeroShotPredictor(segmenter, words, options, "windows")("name", Image.fromarray(photo))

    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    total, count = torch.zeros(1, 4, 240, 300), torch.zeros(240, 300)
    for top in (0, 16):  # the last window is moved back to the border
        for left in (0, 76):
            part = (slice(top, top + 224), slice(left, left + 224))
            dense = segmenter.encoder.encode(pixels[:, :, *part], keys=True)
            maps = score(dense, segmenter.scoring(words, Options(**refinement)))
            total[:, :, *part] += F.interpolate(maps, size=(224, 224), mode="bilinear")
            count[part] += 1
    maps = F.interpolate(total / count, size=(240, 300), mode="bilinear")[0]
    best = maps.amax(dim=0)
    chosen = maps.gather(0, torch.from_numpy(found.astype(np.int64))[None])[0]
    torch.testing.assert_close(chosen, best, rtol=1e-4, atol=1e-4)
    assert (maps.argmax(dim=0).numpy() == found).mean() > 0.999
