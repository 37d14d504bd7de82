"""One drawn scene by every method and every refinement (docs/methods.md)."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from maskclip.core.method import Method, Middle
from maskclip.core.methods import METHODS, needed_blocks
from tools.pictures.scenes import OPACITY, compared, plain, segment, truth, vocabulary
from tools.pictures.sheets import Panel, sheet

MODEL, BLOCKS = "emoji-vit", 3
SEED = 12
"""Of the first 60 scenes 25 show four classes or more: this is one of the two whose figures are
nearest to the means of these 25. No method was favoured."""
SIDE = 200  # px
WORDS = vocabulary(("rabbit", "house", "grass", "brick wall"))


def methods() -> Image.Image:
    """Return the scene by all methods that the model has blocks for."""
    fit = [one for one in METHODS.values() if needed_blocks(one) <= BLOCKS]
    return sheet(*_first(), *map(_by, fit), columns=3, side=SIDE, words=WORDS)


def fewer_blocks() -> Image.Image:
    """Return it by the other methods, made for the three blocks that the model has."""
    shrunk = [_shrunk(one) for one in METHODS.values() if needed_blocks(one) > BLOCKS]
    return sheet(*map(_by, shrunk), columns=3, side=SIDE, words=WORDS)


def refinements() -> Image.Image:
    """Return the labels of one method, refined in every way."""
    right = truth(SEED, WORDS)
    ways = ["none", "pamr", "tlp", "tlp,pamr", "surgery", "dominant"]
    panels = [
        compared(segment(SEED, WORDS, model=MODEL, refine=way.split(",")), right, way)
        for way in ways
    ]
    slic = segment(SEED, WORDS, model=MODEL, refine="none", regions="slic")
    return sheet(
        *_first(),
        *panels,
        compared(slic, right, "--regions slic"),
        columns=3,
        side=SIDE,
        words=WORDS,
    )


def _by(method: Method) -> Panel:
    found = segment(SEED, WORDS, model=MODEL, method=method, refine="none")
    return compared(found, truth(SEED, WORDS), method.name)


def _first() -> tuple[Panel, Panel]:
    return plain(SEED), Panel(
        truth(SEED, WORDS).overlay(legend=False, opacity=OPACITY), "what is right"
    )


def _shrunk(method: Method) -> Method:
    """Return a method whose blocks are all there are, or the two before the last."""
    middle = method.middle and Middle(blocks=(0, 1), weight=method.middle.weight)
    repaired = method.purification
    if repaired is not None:
        repaired = replace(repaired, similarity=1, stages=(0, 1))
    fewer = min(method.blocks, BLOCKS)
    return replace(method, blocks=fewer, middle=middle, purification=repaired)
