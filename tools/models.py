"""`python -m tools.models`: write the list of open_clip's published weights into the package.

That is `src/maskclip/clip/models.json`. Parameters are counted on no device, which takes a minute
for all architectures; those of the list are taken from it, unless `--anew` is given. Text towers
of transformers are counted by the shapes below, which their configurations on the hub say.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maskclip.clip.catalog import read_open_clip
from maskclip.clip.open_clip_models import count_parameters
from maskclip.clip.published import model_config

LIST = Path(__file__).resolve().parents[1] / "src" / "maskclip" / "clip" / "models.json"

_ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50_265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
_XLM = {**_ROBERTA, "model_type": "xlm-roberta", "vocab_size": 250_002}
_NLLB = {
    "model_type": "m2m_100",
    "is_encoder_decoder": True,
    "vocab_size": 256_206,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
}
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA,
    "xlm-roberta-base": _XLM,
    "xlm-roberta-large": {
        **_XLM,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "facebook/nllb-200-distilled-600M": _NLLB,
    "facebook/nllb-200-distilled-1.3B": {**_NLLB, "encoder_layers": 24, "encoder_ffn_dim": 8192},
}
"""A repository of the hub -> of its config.json, what decides the shapes of the text tower."""


def count(architecture: str) -> int | None:
    """Return how many parameters an architecture has; None where nothing here says so."""
    text = model_config(architecture)["text_cfg"]
    known = TEXT_TOWERS.get(text.get("hf_model_name", ""))
    if known is None:
        return count_parameters(architecture)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(known))
        text = {**text, "hf_model_name": folder, "hf_model_pretrained": False}
        return count_parameters(architecture, text=text)


def main(*, anew: bool) -> None:
    """Write the list.

    Args:
        anew: count all parameters, those that the list has too.
    """
    before = {} if anew or not LIST.exists() else json.loads(LIST.read_text())["architectures"]
    found = read_open_clip({name: about["parameters"] for name, about in before.items()})
    for name, about in found.items():
        about["parameters"] = about["parameters"] or count(name)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in found)
    release = json.dumps(version("open_clip_torch"))
    LIST.write_text(f'{{"open_clip": {release}, "architectures": {{\n{lines}\n}}}}\n')
    print(f"-> {LIST} ({len(found)} architectures)")


if __name__ == "__main__":
    main(anew="--anew" in sys.argv[1:])
