"""What all tests share: no network, caches of their own, tiny random CLIPs, recorded arrays.

Most recorded arrays and all real photos are too large for the repository. They are looked for in
`../shared/golden` and `../shared/data`, or where MASKCLIP_GOLDEN and MASKCLIP_REAL_DATA say.
"""

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.running import (  # noqa: F401  # hooks
    pytest_configure,
    pytest_terminal_summary,
    pytest_timeout_set_timer,
    pytest_xdist_auto_num_workers,
    tally,
)

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 8, "image_size": 32}
RESNET = {"width": 8, "layers": (1, 1, 1, 1), "image_size": 64}
EMBED_DIM = 16
ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("MASKCLIP_REAL_DATA") or ROOT.parent / "shared" / "data")
GOLDEN = {
    "small": ROOT / "tests" / "golden",
    "full": Path(os.environ.get("MASKCLIP_GOLDEN") or ROOT.parent / "shared" / "golden"),
}
GOLDEN_FILES = {
    "golden_dense": "maskclip/*.npz",
    "golden_training": "maskclip_plus/*.npz",
    "golden_checkpoint": "maskclip_plus/*.pth",
    "golden_layout": "layouts/*.json",
    "golden_metrics": "eval/*.npz",
}


def pytest_generate_tests(metafunc):
    """Run a test that takes one of GOLDEN_FILES on every such file of the two sets."""
    for name in GOLDEN_FILES.keys() & set(metafunc.fixturenames):
        found = [
            pytest.param(path, id=f"{size}-{path.stem}")
            for size, folder in GOLDEN.items()
            for path in sorted(folder.glob(GOLDEN_FILES[name]))
        ]
        if not any(param.id.startswith("full") for param in found):
            where = f"no {GOLDEN_FILES[name]} under {GOLDEN['full']}"
            reason = f"{where}: set MASKCLIP_GOLDEN to the full golden set"
            found.append(pytest.param(None, id="full", marks=pytest.mark.skip(reason=reason)))
        metafunc.parametrize(name, found)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; tests are skipped where it or Playwright is not."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("no Chromium is on this machine")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real photos and masks, in the layouts of the data sets."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no {REAL_DATA}: set MASKCLIP_REAL_DATA to a folder of data sets")
    return REAL_DATA


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny networks run faster on one thread, and the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Let no command say that it takes long: what it prints must not hang on the machine's load."""
    monkeypatch.setattr("maskclip.cli.console._PATIENCE", 3600.0)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch):
    """Point every cache at an empty folder, and let nothing but this machine be reached."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA"):  # the latter two on Windows
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setenv(name, str(home / "hub"))
        if "huggingface_hub.constants" in sys.modules:  # it has read its environment already
            constants = sys.modules["huggingface_hub.constants"]
            monkeypatch.setattr(constants, name, str(home / "hub"), raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo

    def connect(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests must not reach {address}")
        return real_connect(self, address)

    def lookup(host, *args, **kwargs):
        if host not in (None, "", "127.0.0.1", "::1", "localhost", b"localhost"):
            raise socket.gaierror(f"tests must not look up {host}")
        return real_lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return home


def randomize(model, seed=0):
    """Give every layer something to do: fresh BatchNorms and layer scales are the identity or 0."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.3, 0.3))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
            if isinstance(module, nn.Linear | nn.MultiheadAttention):
                for name, bias in module.named_parameters(recurse=False):
                    if name.endswith("bias"):
                        bias.copy_(uniform(bias, -0.3, 0.3))
    return model


@torch.inference_mode()
def center(resnet):
    """Give the features mean 0 and variance 1: else one direction, and one class, leads all."""
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for stage in (resnet.stem, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        x = stage(x)
    pool = resnet.attnpool
    features = pool.c_proj(pool.v_proj(x.flatten(2).mT))
    spread = features.std()
    pool.c_proj.weight /= spread
    pool.c_proj.bias.copy_((pool.c_proj.bias - features.mean(dim=(0, 1))) / spread)


@pytest.fixture(scope="session")
def make_clip():
    """`make_clip(family, **vision)`: a tiny random CLIP of open_clip's, in eval mode."""
    import open_clip

    def make(family="vit", *, quick_gelu=False, seed=0, text=TEXT, **vision):
        base = {"vit": VIT, "resnet": RESNET}[family]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = open_clip.CLIP(EMBED_DIM, {**base, **vision}, dict(text), quick_gelu=quick_gelu)
        model = randomize(model, seed).eval()
        if family == "resnet":
            center(model.visual)
        return model

    return make


SMALL_TRUNKS = {
    "convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}, "", "linear"),
    "convnext mlp": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, "", "mlp"),
    "fastvit": (
        "fastvit_mci0",
        {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)},
        "avg",
        None,
    ),
    "fastvit, five stages": (
        "fastvit_mci3",
        {"layers": (1, 1, 1, 1, 1), "embed_dims": (8, 16, 32, 64, 128)},
        "avg",
        None,
    ),
    "swin": (
        "swin_base_patch4_window7_224",
        {"depths": (1, 1, 2, 2), "embed_dim": 16, "num_heads": (1, 2, 4, 4)},
        "",
        "linear",
    ),
}
"""Families of timm: a trunk, what makes it small, and open_clip's pooling and projection."""


@pytest.fixture(scope="session")
def make_timm_clip():
    """`make_timm_clip(family)`: a small random CLIP on a trunk of timm, in eval mode; the same."""
    import open_clip
    import open_clip.timm_model

    made = {}
    create = open_clip.timm_model.timm.create_model

    def make(family):
        if family in made:
            return made[family]
        trunk, small, pool, projection = SMALL_TRUNKS[family]
        vision = {"timm_model_name": trunk, "timm_pool": pool, "timm_proj": projection}
        ordinary = torch.inference_mode(False)  # whoever makes it first
        with ordinary, torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                open_clip.timm_model.timm,
                "create_model",
                lambda name, **given: create(name, **{**given, **small}),
            )
            torch.manual_seed(0)
            model = open_clip.CLIP(EMBED_DIM, {**vision, "image_size": 224}, dict(TEXT))
            made[family] = randomize(model).eval()
        return made[family]

    return make


_SMALL_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
TINY_ARCHITECTURES = {
    "tiny-siglip": ("vit_base_patch16_siglip_224", _SMALL_VIT, "map", "none", 32),
    "tiny-eva": ("eva02_base_patch16_clip_224", _SMALL_VIT, "token", None, 48),
    "tiny-fastvit": (*SMALL_TRUNKS["fastvit"], 24),
    "tiny-convnext": (*SMALL_TRUNKS["convnext"], 40),
}
"""Of `tiny_architectures`: as `SMALL_TRUNKS`, and channels of the embedding."""


@pytest.fixture
def tiny_architectures(monkeypatch):
    """Make open_clip know `TINY_ARCHITECTURES`, for random weights; that of SigLIP has a bias."""
    import open_clip
    import open_clip.timm_model

    create = open_clip.timm_model.timm.create_model
    small = {trunk: fields for trunk, fields, *_ in TINY_ARCHITECTURES.values()}
    monkeypatch.setattr(
        open_clip.timm_model.timm,
        "create_model",
        lambda name, **given: create(name, **{**given, **small.get(name, {})}),
    )
    for name, (trunk, _, pool, projection, channels) in TINY_ARCHITECTURES.items():
        vision = {"timm_model_name": trunk, "timm_pool": pool, "timm_proj": projection}
        config = {"embed_dim": channels, "vision_cfg": {**vision, "image_size": 32}}
        config |= {"text_cfg": dict(TEXT)}
        if pool == "map":
            config |= {"custom_text": True, "init_logit_bias": -10.0, "init_logit_scale": 4.77}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    return list(TINY_ARCHITECTURES)


@pytest.fixture(scope="session")
def tokenizer():
    import open_clip

    return open_clip.SimpleTokenizer()


@pytest.fixture(scope="session")
def make_model(make_clip, tokenizer):
    """`make_model(family, **fields)`: the same as a `CLIPModel`, ready to segment."""
    from maskclip.clip.model import CLIPModel, OpenCLIP, fingerprint

    def make(family="vit", *, seed=0, name="tiny", short_side=32, vision=None, **fields):
        clip = make_clip(family, seed=seed, **(vision or {}))
        built = OpenCLIP(clip, tokenizer)
        return CLIPModel(
            name=name,
            visual=clip.visual,
            load_text=lambda: built,
            fingerprint=fingerprint(clip),
            short_side=short_side,
            **fields,
        )

    return make


@pytest.fixture
def picture():
    """`picture(h, w)`: smooth random colours, (h, w, 3) uint8."""
    import numpy as np

    def draw(height, width, seed=0):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 5, 5, generator=generator)
        fine = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
        return (fine[0].clamp(0, 1) * 255).permute(1, 2, 0).numpy().astype(np.uint8)

    return draw
