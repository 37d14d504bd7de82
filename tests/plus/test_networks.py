import json
from dataclasses import asdict

import pytest
import timm
import torch
import torch.nn.functional as F

from maskclip.plus.config import PUBLISHED_NAMES, StudentConfig, StudentError, parse_student
from maskclip.plus.student import build_student

SMALLEST = "unet:mobilenetv4_conv_small"
PAIRS = {
    SMALLEST: 4,
    "fpn:resnet18": 4,
    "segformer:resnet18": 4,
    "pspnet:resnet18": 8,
    "deeplabv2:resnet18": 8,
    "deeplabv2:tf_efficientnet_lite0": 8,
}


def rows(count=5, channels=8):
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, channels, generator=generator), dim=1)


def images(*size, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, 3, *size), generator=generator, dtype=torch.uint8)


def built(name, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_student(parse_student(name, embed_dim=8, **options), rows())


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def pair(request):
    return built(request.param, background=True), PAIRS[request.param]


class TestStudent:
    @pytest.mark.parametrize("size", [(160, 128), (61, 145), (1, 1)])
    def test_any_size_has_a_grid_rounded_up(self, pair, size):
        student, stride = pair
        grid = tuple(-(-side // stride) for side in size)
        with torch.no_grad():
            features = student.eval().features(images(*size))
            assert features.shape == (2, 8, *grid)
            assert student.logits(features).shape == (2, 6, *grid)
            assert torch.equal(student(images(*size)), student.logits(features))

    def test_training_reaches_backbone_and_decoder_but_not_the_rows(self, pair):
        student, _ = pair
        student.train().zero_grad()
        student(images(64, 64)).square().mean().backward()
        missed = [name for name, value in student.named_parameters() if value.grad is None]
        assert not missed
        assert torch.equal(student.rows, rows())
        assert "rows" in student.state_dict()
        assert "rows" not in dict(student.named_parameters())

    def test_padding_is_the_mean_colour_at_the_bottom_and_right(self):
        student = built("fpn:resnet18").eval()
        picture = student.mean.expand(1, 3, 160, 192).clone()
        picture[..., :133, :187] = images(133, 187, batch=1) / 255
        with torch.no_grad():
            whole = student.features(picture)
            cut = student.features(picture[..., :133, :187])
        assert torch.allclose(cut, whole[..., :34, :47], atol=1e-5)

    def test_a_saved_student_comes_back(self):
        student = built(SMALLEST, background=True).eval()
        again = build_student(
            StudentConfig(**json.loads(json.dumps(asdict(student.config)))), rows()
        )
        again.load_state_dict(student.state_dict())
        with torch.no_grad():
            assert torch.equal(again.eval()(images(64, 64)), student(images(64, 64)))

    def test_colours_are_normalised_as_in_the_pretraining_of_the_backbone(self):
        student = built("fpn:mobilenetv3_small_050")
        pretraining = timm.get_pretrained_cfg("mobilenetv3_small_050")
        assert student.mean.flatten().tolist() == pytest.approx(pretraining.mean)
        assert student.std.flatten().tolist() == pytest.approx(pretraining.std)


class TestNames:
    @pytest.mark.parametrize("name", PUBLISHED_NAMES)
    def test_the_published_are_those_of_the_authors(self, name):
        config = parse_student(name, embed_dim=512, background=True)
        assert config.backbone is None
        assert f"{config.decoder}-r{config.depth}" == name
        assert (config.embed_dim, config.background) == (512, True)

    def test_decoder_and_backbone(self):
        assert parse_student("deeplabv3plus:resnet18", embed_dim=8) == StudentConfig(
            decoder="deeplabv3plus", backbone="resnet18", embed_dim=8
        )

    @pytest.mark.parametrize("name", ["deeplabv2-r51", "unet", ":resnet18", "unet:", ""])
    def test_other_names_are_refused(self, name):
        with pytest.raises(StudentError, match=r"published are deeplabv2-r50.*decoder:backbone"):
            parse_student(name, embed_dim=8)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("unett:resnet18", r"no decoder 'unett' \(did you mean unet or .*there are unet, "),
            ("unet:resnet81", r"no 'resnet81' \(did you mean resnet18 .*expected a backbone"),
            ("unet:hf-hub:some/one", r"no 'hf-hub:some/one'.*expected a backbone"),
            (
                "unet:resnet18.nope",
                r"no weights 'resnet18\.nope'.*leave what follows the point out",
            ),
            ("deeplabv2:vit_tiny_patch16_224", r"such as resnet18 or tf_efficientnet_lite0$"),
            ("deeplabv2:densenet121", r"deeplabv2:densenet121 cannot be built: .*such as resnet18"),
            ("unet:mixer_s16_224", r"unet:mixer_s16_224 cannot be built: .*take another backbone"),
            ("unet:vit_tiny_patch16_224", r"cannot be built: .*[^.]; take another backbone"),
        ],
    )
    def test_what_cannot_be_built_is_refused_in_a_line(self, name, message):
        with pytest.raises(StudentError, match=message) as error:
            built(name)
        assert "\n" not in str(error.value)
