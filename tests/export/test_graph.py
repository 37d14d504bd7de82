import onnxruntime
import pytest
import timm
import torch
from timm.layers.pool2d_same import create_pool2d

from maskclip.clip.encoder import DenseCLIP
from maskclip.core.methods import METHODS
from maskclip.export.graph import (
    MOST_BYTES,
    ExportError,
    build_graph,
    encoder_graph,
    export_program,
    with_fixed_padding,
)
from maskclip.plus.config import StudentConfig
from maskclip.plus.student import build_student

SIZES = [(1, 64, 64), (3, 97, 131), (2, 33, 203)]


def drawn(batch, height, width):
    """Smooth colours: what lies in a photo, not noise."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [(y * a + x * b) / 17.0 for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.8))]
    one = torch.stack([wave.sin() * 127 + 128 for wave in waves]).to(torch.uint8)
    return torch.stack([one.roll(index, dims=1) for index in range(batch)])


def test_a_graph_takes_batches_and_sizes_that_it_was_not_made_with(make_clip):
    visual = make_clip("vit", layers=1).visual
    encoder = DenseCLIP(visual, method=METHODS["naclip"], mean=(0.5,) * 3, std=(0.3,) * 3).eval()
    model = encoder_graph(encoder, keys=True, image=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    assert names == ["features", "keys", "image"]
    assert [part.shape for part in session.get_inputs()] == [["batch", 3, "height", "width"]]
    for shape in SIZES:
        images = drawn(*shape)
        found = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        with torch.inference_mode():
            dense = encoder.encode(images, keys=True, image=True)
        for name, values in found.items():
            expected = getattr(dense, name)
            torch.testing.assert_close(torch.from_numpy(values), expected, rtol=1e-3, atol=1e-4)


def test_nothing_of_this_machine_is_in_a_graph(make_clip):
    model = build_graph(torch.nn.Conv2d(3, 2, 1), ["maps"], pixels="float32")
    assert b".py" not in model.SerializeToString()
    assert [dim.dim_param for dim in model.graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "height",
        "width",
    ]


def test_what_cannot_be_traced_and_what_is_too_large_is_one_line():
    class Counts(torch.nn.Module):
        def forward(self, images):
            return images[images > int(images.sum())]

    with pytest.raises(ExportError, match="cannot be exported: ") as caught:
        build_graph(Counts(), ["maps"])
    assert "\n" not in str(caught.value)
    with torch.device("meta"):
        large = torch.nn.Linear(1 << 10, MOST_BYTES >> 11)
    with pytest.raises(ExportError, match=r"has 4.3 GB of weights"):
        build_graph(large, ["maps"])


def test_padding_by_leftovers_is_fixed_where_nothing_is_left_over(tmp_path):
    layers = [timm.layers.create_conv2d(3, 4, 3, stride=2, padding="same")]
    layers += [timm.layers.create_conv2d(4, 4, size, padding="same", dilation=2) for size in (3, 5)]
    layers += [timm.layers.create_conv2d(4, 4, 5, stride=2, padding="same", groups=4)]
    layers += [create_pool2d(kind, 2, 1, padding="same") for kind in ("avg", "max")]
    network = torch.nn.Sequential(*layers).eval()
    fixed = with_fixed_padding(network)
    kinds = [type(module).__name__ for module in fixed.modules()]
    assert kinds.count("_FixedPadding") == sum(kind.endswith("2dSame") for kind in kinds) == 4
    images = torch.rand(2, 3, 64, 96)
    assert torch.equal(fixed(images), network(images))
    torch.export.save(export_program(fixed, pixels="float32"), tmp_path / "program.pt2")


def test_a_program_of_a_student_takes_sizes_that_are_padded_and_that_are_not():
    rows = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    config = StudentConfig(decoder="deeplabv3plus", backbone="resnet10t", embed_dim=16)
    student = build_student(config, rows).eval()
    program = export_program(with_fixed_padding(student)).module()
    for size in ((128, 128), (160, 192), (97, 131)):
        images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        with torch.no_grad():
            torch.testing.assert_close(program(images), student(images), rtol=0, atol=1e-5)
