"""A second image network whose patches say which patches of CLIP belong together (ProxyCLIP).

Any ViT of timm, such as DINOv2. CLIP's last attention is replaced by the likeness of the proxy's
patches: Lan et al., ECCV 2024. B images, h x w grid positions, D channels of the proxy.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.attention import PROXY_LEVEL
from maskclip.clip.checkpoint import WeightsError, one_line, read_weights
from maskclip.clip.likeness import keep_to_themselves, unit
from maskclip.clip.model import fingerprint
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning, did_you_mean
from maskclip.core.resize import pad_bottom_right
from maskclip.core.text import brief

RANDOM = "random"
_SEED = 0
_MOST_NAMES = 3  # weights that a message names


class ProxyError(MaskCLIPError):
    """A proxy that cannot be used; the message says which and why, in one line."""


class Proxy(nn.Module):
    """A ViT of timm that gives a unit vector a position of CLIP's grid.

    Args:
        network: with prefix tokens and square patches, for images of any size.
        name: what users call it.
        mean, std: RGB statistics of its training, for pixels in [0, 1].

    Attributes:
        name: the same.
        fingerprint: a hash of its weights, 16 hex digits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        seen: Any = network.eval().requires_grad_(False)
        self.network = seen
        self.prefix, self.patch = int(seen.num_prefix_tokens), int(seen.patch_embed.patch_size[0])
        self.name = name
        self.fingerprint = fingerprint(network)
        self._warned = False  # that it does nothing in some image
        for what, values in (("mean", mean), ("std", std)):
            self.register_buffer(what, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, cell: int) -> Tensor:
        """Return unit vectors (B, h w, D) float32, those of the last block after its norm.

        Args:
            pixels: (B, 3, H, W) RGB in [0, 1], floating point.
            cell: px of a position of CLIP's grid, which is what the proxy's becomes.

        Raises:
            ProxyError: the network does not give a token for each square of pixels.
        """
        grid = [-(-side // cell) for side in pixels.shape[2:]]
        images = (pixels - self.mean) / self.std
        images = pad_bottom_right(images, (grid[0] * cell, grid[1] * cell))
        size = (grid[0] * self.patch, grid[1] * self.patch)
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        vectors = unit(self._patches(images, grid[0] * grid[1]))
        if not torch.compiler.is_compiling():
            self._warn_if_alike(vectors)
        return vectors

    def check(self) -> None:
        """See whether the network gives a token for each square of pixels, in a tiny image.

        Raises:
            ProxyError: it does not.
        """
        weight = next(self.network.parameters())
        images = weight.new_zeros((1, 3, 2 * self.patch, 3 * self.patch), dtype=torch.float32)
        try:
            with torch.inference_mode():
                self._patches(images, 6)
        except ProxyError:
            raise
        except Exception as error:  # networks raise whatever their layers do
            raise _no_vit(self.name) from error

    def _patches(self, images: Tensor, count: int) -> Tensor:
        """Return the tokens (B, count, D) of the patches of normalised images."""
        network: Any = self.network
        tokens = network.forward_features(images.to(next(network.parameters()).dtype))
        if not isinstance(tokens, Tensor) or tokens.ndim != 3:
            raise _no_vit(self.name)
        found = tokens.shape[1] - self.prefix
        if found != count:
            raise ProxyError(
                f"`proxy`: {self.name} gives {found} tokens for {count} patches of {self.patch} px:"
                " expected one a patch; take another ViT, such as vit_small_patch14_dinov2"
            )
        return tokens[:, self.prefix :]

    def _warn_if_alike(self, vectors: Tensor) -> None:
        """Say, once, that in an image the proxy tells no patch from another."""
        if self._warned or vectors.shape[1] == 1:
            return
        if bool(keep_to_themselves(vectors, PROXY_LEVEL).any()):
            self._warned = True
            warnings.warn(
                f"`proxy`: to {self.name} all patches of an image are so much alike that each "
                "keeps to itself, and the proxy changes nothing there; of an image of one colour "
                "that is no wonder, of others it is: take weights that were trained",
                MaskCLIPWarning,
                stacklevel=2,
            )


def load_proxy(name: str) -> Proxy:
    """Load a proxy: timm's name with timm's weights, `NAME:FILE` or `NAME:random`.

    Raises:
        MaskCLIPError: timm has no such ViT, or the weights are not to be had or do not fit.
    """
    check_proxy(name)
    model, _, weights = name.partition(":")
    options: dict[str, Any] = {}
    if not weights:
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_timm_file(model))}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = _built(model, **options)
    if weights and weights != RANDOM:
        _fill(network, Path(weights))
    known: Any = network
    pixels = known.pretrained_cfg
    proxy = Proxy(network, name=name, mean=pixels["mean"], std=pixels["std"])
    proxy.check()
    return proxy


def _built(model: str, **options: Any) -> nn.Module:
    """Build a network of timm; refuse what is no ViT of square patches.

    Raises:
        ProxyError: it is none, or cannot be built.
    """
    import timm  # not quick to import, and rarely needed

    try:
        network: nn.Module = timm.create_model(
            model, num_classes=0, dynamic_img_size=True, **options
        )
    except TypeError:  # of a family that has no such option
        network = nn.Identity()
    except Exception as error:  # timm raises whatever its models do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ProxyError(f"`proxy`: {model} cannot be built: {reason}") from error
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", (0, 1))
    hybrid = hasattr(getattr(network, "patch_embed", None), "backbone")  # patches of a ResNet's map
    if not hasattr(network, "num_prefix_tokens") or patch[0] != patch[1] or hybrid:
        raise _no_vit(model)
    return network


def check_proxy(name: str) -> None:
    """Refuse what `load_proxy` cannot load, as far as its name and this machine's files tell.

    The network is built without weights, which takes no memory.

    Raises:
        ProxyError: timm has no such ViT or weights, or there is no such file.
    """
    model, _, weights = name.partition(":")
    _check_name(model)
    if weights and weights != RANDOM and not Path(weights).is_file():
        raise ProxyError(f"`proxy`: no such file of weights: {weights}")
    try:
        with torch.device("meta"):
            _built(model)
    except ProxyError as error:
        if error.__cause__ is None:  # otherwise it may be that it needs memory to be built
            raise


def _no_vit(name: str) -> ProxyError:
    return ProxyError(
        f"`proxy`: {name} is no ViT of square patches of pixels for images of any size: take one, "
        "such as vit_small_patch14_dinov2"
    )


def _check_name(model: str) -> None:
    """Refuse a network, or its weights, that timm does not know."""
    import timm

    if not timm.is_model(model):
        near = did_you_mean(model, timm.list_models())
        raise ProxyError(
            f"`proxy`: timm has no {brief(model)}{near}: expected a ViT, such as "
            "vit_small_patch14_dinov2"
        )
    try:
        timm.get_pretrained_cfg(model)
    except RuntimeError:
        base = model.partition(".")[0]
        near = did_you_mean(model, timm.list_pretrained(f"{base}*"))
        raise ProxyError(f"`proxy`: timm has no weights {brief(model)}{near}") from None


def _timm_file(model: str) -> Path:
    """Return timm's weights of a network; download them when not cached."""
    import timm

    from maskclip.clip.hub import TIMM_WEIGHTS, hub_file

    known = timm.get_pretrained_cfg(model)
    if known is None or not known.hf_hub_id:
        raise ProxyError(
            f"`proxy`: timm has no weights of {model}: give a local file, {model}:FILE"
        )
    try:
        return hub_file(known.hf_hub_id, TIMM_WEIGHTS)
    except OSError as error:
        raise ProxyError(
            f"`proxy`: the weights of {model} ({known.hf_hub_id}/{TIMM_WEIGHTS}) are not on "
            f"this machine and cannot be downloaded ({error}): go online once, or give a local "
            f"file, {model}:FILE"
        ) from error


def _fill(network: nn.Module, path: Path) -> None:
    """Give a network the weights of a file, in timm's layout or one that timm translates."""
    state: Mapping[str, Tensor] = read_weights(path)[0]
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    with one_line(path):
        if translate is not None:
            state = translate(dict(state), network)
        own = network.state_dict()
        missing = [key for key in own if key not in state]
        if missing:
            some = ", ".join(missing[:_MOST_NAMES]) + (" ..." if len(missing) > _MOST_NAMES else "")
            raise WeightsError(f"{path}: not weights of this proxy: it lacks {some}")
        for key, value in own.items():
            if state[key].shape != value.shape:
                raise WeightsError(
                    f"{path}: not weights of this proxy: {key} is {tuple(state[key].shape)}, "
                    f"expected {tuple(value.shape)}"
                )
        network.load_state_dict({key: state[key] for key in own})
