"""Models of open_clip, built of a configuration and filled with the weights of a file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from torch import Tensor, nn

from maskclip.clip.checkpoint import (
    Checkpoint,
    StateDict,
    WeightsError,
    one_line,
    read_checkpoint,
)
from maskclip.clip.families import SUPPORTED, check_tower, told_by_shapes
from maskclip.clip.fitting import build_fitting, config_of
from maskclip.clip.hub import CONFIG
from maskclip.clip.model import (
    OPENAI_MEAN,
    OPENAI_STD,
    CLIPModel,
    OpenCLIP,
    Statistics,
    fingerprint,
    temperature_of,
)
from maskclip.clip.open_clip_folder import read_folder
from maskclip.clip.published import (
    architectures,
    check_read,
    default_tag,
    known_config,
    locate,
    model_config,
    published_config,
    statistics_of,
    tags,
)
from maskclip.clip.tokenizers import TokenizerSource, building_text, text_config
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning

RANDOM = "random"
RANDOM_SEED = 0
_MOST_WEIGHTS = 20_000_000_000  # of a model; the largest of open_clip has 5


def load_pretrained(
    name: str,
    *,
    weights: str | None = None,
    tokenizer: str | None = None,
    language: str | None = None,
    other_names: Collection[str] = (),
) -> CLIPModel:
    """Load an architecture of open_clip; see `clip.weights.load_clip` for arguments and errors.

    `other_names` are models of another kind, for the hint that an unknown name gets.
    """
    architecture, _, tag = name.replace("/", "-").partition(":")
    config = known_config(name, other_names)
    words = TokenizerSource(
        model=architecture,
        text=config["text_cfg"],
        given=None if tokenizer is None else Path(tokenizer),
        language=language,
    )
    if tokenizer is not None:
        words.folder()  # wrong ones are refused before weights are read
    config["text_cfg"] = text_config(words)
    if weights is None:
        tag = tag or default_tag(architecture)
    pretrained = published_config(architecture, tag) if tag else {}
    # Tags know what architectures do not: OpenAI's weights want QuickGELU in a plain ViT-B-16 too.
    config["quick_gelu"] = bool(config.get("quick_gelu") or pretrained.get("quick_gelu"))
    path = Path(weights) if weights is not None else locate(architecture, tag)
    if weights == RANDOM:
        model = _random(config)
    else:
        checkpoint = read_checkpoint(path)
        if not tag:
            config["quick_gelu"] = _guess_quick_gelu(config, checkpoint, path, architecture)
        elif checkpoint.quick_gelu is not None:
            config["quick_gelu"] = checkpoint.quick_gelu
        model = _filled(config, checkpoint, path)
    mean, std = statistics_of(architecture, tag)
    return _loaded(
        f"{architecture}:{tag if weights is None else path.name}",
        model,
        words=words,
        config=config,
        source=path,
        mean=mean,
        std=std,
    )


def load_folder(
    name: str,
    *,
    weights: str | None = None,
    tokenizer: str | None = None,
    language: str | None = None,
) -> CLIPModel:
    """Load a folder as open_clip writes it, or a repository of the hub; arguments as `load_clip`.

    Raises:
        WeightsError: it is not to be had, not open_clip's, or its weights do not fit.
        UnsupportedTowerError: the image tower has no dense reading.
    """
    folder = read_folder(name)
    config, about = folder.config, folder.path / CONFIG
    check_read(config, str(about))
    given = folder.tokenizer() if tokenizer is None else Path(tokenizer)
    words = TokenizerSource(model=name, text=config["text_cfg"], given=given, language=language)
    config["text_cfg"] = text_config(words)
    with one_line(about, "configuration of a CLIP"), torch.device("meta"):
        count = sum(value.numel() for value in _build(config).state_dict().values())
    if count > _MOST_WEIGHTS:
        raise WeightsError(f"{about}: expected a CLIP of at most {_MOST_WEIGHTS:,} weights")
    path = Path(weights) if weights is not None else folder.weights()
    if weights == RANDOM:
        model = _random(config)
    else:
        checkpoint = read_checkpoint(path)
        if checkpoint.quick_gelu is not None and not checkpoint.of_transformers:
            config["quick_gelu"] = checkpoint.quick_gelu
        model = _filled(config, checkpoint, path)
    return _loaded(
        name if weights is None else f"{name}:{path.name}",
        model,
        words=words,
        config=config,
        source=path,
        mean=folder.mean,
        std=folder.std,
    )


def _random(config: dict[str, Any]) -> nn.Module:
    """Build a model of seeded random weights; the caller's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return _build(config)


def _filled(config: dict[str, Any], checkpoint: Checkpoint, path: Path) -> nn.Module:
    """Build a model and fill it with the weights of a file, whose tables of positions may differ.

    Raises:
        WeightsError: they do not fit.
    """
    return build_fitting(
        partial(_build, config),
        checkpoint.state,
        source=str(path),
        adapt=partial(_as_built, path),
    )


def _loaded(
    name: str,
    model: Any,
    *,
    words: TokenizerSource,
    config: Mapping[str, Any],
    source: Path,
    mean: Statistics = OPENAI_MEAN,
    std: Statistics = OPENAI_STD,
) -> CLIPModel:
    """Return a model that open_clip has built."""
    return CLIPModel(
        name=name,
        visual=model.visual,
        load_text=cache(lambda: OpenCLIP(model, words.load())),
        fingerprint=fingerprint(model),
        tokenizer_identity=cache(words.identity),
        language=words.language,
        mean=mean,
        std=std,
        temperature=temperature_of(model.logit_scale.detach(), source=str(source)),
        bias=None if model.logit_bias is None else float(model.logit_bias.detach()),
        context_length=words.context_length,
        tower=_described(config, words.model),
    )


def _described(config: Mapping[str, Any], architecture: str) -> Mapping[str, Any] | None:
    """Return what a tower is built of: plain numbers, or the name of open_clip's architecture.

    None where it is neither.
    """
    quick = bool(config.get("quick_gelu"))
    vision = _said(config["vision_cfg"])
    parts = {"embed_dim": config["embed_dim"], "vision_cfg": vision}
    try:
        check_tower(parts)
    except (KeyError, TypeError, WeightsError, MaskCLIPError):
        of_folders = {"timm_model_pretrained": False}  # written there, and said by no architecture
        for name in sorted(open_clip.list_models(), key=lambda name: name != architecture):
            known = model_config(name)
            same = known["embed_dim"] == config["embed_dim"]
            if same and _said(known["vision_cfg"]) | of_folders == vision | of_folders:
                return {"family": "architecture", "name": name, "quick_gelu": quick}
        return None
    return {"family": "open_clip", **parts, "quick_gelu": quick}


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def build_named(architecture: str, *, quick_gelu: bool) -> nn.Module:
    """Build the image tower of one of open_clip's architectures, of random weights.

    Raises:
        MaskCLIPError: there is no such architecture, or it has no dense reading.
    """
    config = known_config(architecture, ())
    return build_visual(config["embed_dim"], config["vision_cfg"], quick_gelu=quick_gelu)


def build_visual(embed_dim: int, vision_cfg: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
    """Build open_clip's image tower of a configuration, of random weights."""
    text = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text}
    model: Any = _build({**config, "quick_gelu": quick_gelu})
    visual: nn.Module = model.visual
    return visual


def _build(config: dict[str, Any]) -> nn.Module:
    """Instantiate open_clip's model of a configuration, in eval mode."""
    config = dict(config)
    custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    with building_text(config["text_cfg"]):
        if "multimodal_cfg" in config:
            model: nn.Module = open_clip.CoCa(**config)
        elif custom_text:
            model = open_clip.CustomTextCLIP(**config)
        else:
            model = open_clip.CLIP(**config)
    return model.eval()


def count_parameters(architecture: str, *, text: Mapping[str, Any] | None = None) -> int | None:
    """Return how many parameters an architecture has; no memory is taken for them.

    None where its text tower is of transformers, whose configuration is not on this machine.
    `text` is a `text_cfg` in the place of its own, as `tokenizers.text_config` returns it.
    """
    config = model_config(architecture)
    try:
        words = TokenizerSource(model=architecture, text=config["text_cfg"])
        config["text_cfg"] = text_config(words) if text is None else dict(text)
        with torch.device("meta"):
            model = _build(config)
    except MaskCLIPError:
        return None
    return sum(value.numel() for value in model.parameters())


def build_described(config: dict[str, Any], state: StateDict, *, source: str) -> OpenCLIP:
    """Build the model and tokenizer of a configuration and its weights.

    Raises:
        WeightsError: the weights do not fit; `source` says whose they are.
    """
    model = build_fitting(lambda: _build(config), state, source=source)
    context = config["text_cfg"]["context_length"]
    return OpenCLIP(model, open_clip.SimpleTokenizer(context_length=context))


def load_file(checkpoint: Checkpoint, path: Path) -> CLIPModel:
    """Find the architecture from the shapes in a file: one of open_clip's, or one like them.

    Raises:
        WeightsError: it is not a CLIP of a supported family.
    """
    try:
        found = config_of(checkpoint.state)
    except KeyError as error:
        raise WeightsError(
            f"{path}: not a CLIP of the supported families (no {error}): expected {SUPPORTED}; "
            "if it is one, name its architecture: `model=NAME` and `weights=FILE`"
        ) from error
    text = found["text_cfg"]
    if checkpoint.heads is not None:
        heads, text["heads"] = checkpoint.heads
        found["vision_cfg"]["head_width"] = found["vision_cfg"]["width"] // heads
    for architecture in architectures():
        known = model_config(architecture)
        if told_by_shapes(known) and _same_shapes(known, found):
            break
    else:
        known, architecture = found, ""
        own = open_clip.SimpleTokenizer().vocab_size
        if text["vocab_size"] != own:
            raise WeightsError(
                f"{path}: expected the {own:,} tokens of CLIP's own tokenizer, got "
                f"{text['vocab_size']:,}; name its architecture: `model=NAME` and `weights=FILE`"
            )
    quick = _guess_quick_gelu(known, checkpoint, path, architecture)
    build = partial(_build, {**known, "quick_gelu": quick})
    model = build_fitting(build, checkpoint.state, source=str(path))
    config = {**known, "quick_gelu": quick}
    words = TokenizerSource(model=architecture, text=known["text_cfg"])
    return _loaded(path.stem, model, words=words, config=config, source=path)


def _guess_quick_gelu(
    config: dict[str, Any], checkpoint: Checkpoint, path: Path, architecture: str
) -> bool:
    """Return whether a model without a tag uses QuickGELU, with a warning where that is unsure.

    A plain state_dict does not say so. transformers takes its own files for QuickGELU's unless a
    config.json beside them says otherwise; an architecture may have been published both ways.
    """
    if checkpoint.quick_gelu is not None:
        return checkpoint.quick_gelu
    if checkpoint.of_transformers:
        warnings.warn(
            f"{path} has no config.json beside it that says which activation it was trained with: "
            "taken as QuickGELU, as transformers takes it. For others say `model=NAME:TAG` "
            f"and `weights={path}`",
            MaskCLIPWarning,
            stacklevel=3,
        )
        return True
    quick = bool(config.get("quick_gelu"))
    published = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags(architecture)]
    if not quick and any(pretrained.get("quick_gelu") for pretrained in published):
        warnings.warn(
            f"{path} does not say which activation it was trained with: taken as GELU. For "
            f"OpenAI's weights say `model={architecture}:openai` and `weights={path}`",
            MaskCLIPWarning,
            stacklevel=3,
        )
    return quick


def _as_built(path: Path, model: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights under the names of the model that is built, resized where it is another size.

    Text towers of their own class keep their weights under `text.`, and older files do not; files
    of older releases of transformers hold the numbers of positions as weights. Apple's files of
    MobileCLIP have names of their own.
    """
    if _OF_APPLE & state.keys() and hasattr(model.visual, "trunk"):
        with one_line(path):
            state = convert_state_dict(model, dict(state))
    if not hasattr(model, "positional_embedding") and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(dict(state))
    state = {key: value for key, value in state.items() if key != _NUMBERS_OF_POSITIONS}
    return _resize_positions(path, model, state)


_OF_APPLE = {  # MobileCLIP-S1 and S2; B
    "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight",
    "image_encoder.model.patch_emb.0.block.conv.weight",
}
_NUMBERS_OF_POSITIONS = "text.transformer.embeddings.position_ids"


def _resize_positions(path: Path, model: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Resize tables of positions that are another model's only in their number, as open_clip does.

    Image positions are those of a square grid after one of the whole image; text positions a line.
    """
    found = dict(state)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key in ("visual.positional_embedding", "positional_embedding"):
        before, after = tuple(found[key].shape) if key in found else (), expected.get(key, ())
        if len(before) != 2 or len(after) != 2 or before == after or before[1] != after[1]:
            continue
        with one_line(path):
            if key == "positional_embedding":
                resize_text_pos_embed(found, model)
            elif math.isqrt(max(before[0] - 1, 0)) ** 2 == before[0] - 1 > 0:
                resize_pos_embed(found, model)
        if found[key] is not state[key]:
            warnings.warn(
                f"{path}: {key} has {before[0]} positions, resized to {after[0]} of the "
                "architecture",
                MaskCLIPWarning,
                stacklevel=2,
            )
    return found


def _same_shapes(known: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether an architecture's configuration gives the shapes found in a file."""
    defaults = {"patch_size": 16, "width": 768, "layers": 12, "image_size": 224, "head_width": 64}
    vision = {
        key: tuple(value) if isinstance(value := known["vision_cfg"].get(key, default), list)
        else value
        for key, default in defaults.items()
        if key in found["vision_cfg"]
    }  # fmt: skip
    text = {key: known["text_cfg"].get(key) for key in found["text_cfg"] if key != "heads"}
    return (
        known["embed_dim"] == found["embed_dim"]
        and vision == found["vision_cfg"]
        and text == {key: value for key, value in found["text_cfg"].items() if key != "heads"}
    )
