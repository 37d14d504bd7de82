"""Options that several verbs share, each written once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from maskclip.core.config import Options

CLASS_FORMATS = "text, one per line, TOML, JSON, data.yaml, CSV, labelmap.txt or .pbtxt"
METHODS = (
    "How CLIP is read: `clean`, `published`, a later method such as `naclip` (see "
    "`maskclip methods`), the one that published figures speak for (`auto`), or a file of your own"
)
TEMPLATES = (
    "Prompt templates, in English: `published` (85), `open_clip` (80), `plain` (1), or `word`, the "
    "word alone, for other languages"
)
PRECISIONS = "`float32`, `bfloat16`, `float16`, or `auto`: bfloat16 if it is clearly faster"

_of_data = partial(typer.Option, rich_help_panel="Data")
_of_words = partial(typer.Option, rich_help_panel="Classes")
_of_model = partial(typer.Option, rich_help_panel="Model")
_of_refine = partial(typer.Option, rich_help_panel="Refinement and resolution")
_of_machine = partial(typer.Option, rich_help_panel="Machine")

Data = Annotated[
    Path | None,
    _of_data(
        metavar="ROOT", help="The folder that holds VOCdevkit, coco_stuff164k, cityscapes or ade."
    ),
]
Split = Annotated[str, _of_data(help="val, train; voc also aug, trainaug.")]
OptionalSplit = Annotated[
    str | None, _of_data(help="val (default), train; voc also aug and trainaug.")
]
SceneSize = Annotated[
    int | None,
    typer.Option(
        metavar="PX", min=1, help="With `emoji`: side of a scene in pixels; default: 256."
    ),
]
Limit = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Use only the first N images; default: all.")
]
Images = Annotated[Path | None, _of_data(metavar="DIR", help="With `folder`: your images.")]
Masks = Annotated[
    Path | None,
    _of_data(
        metavar="DIR",
        help="With `folder`: masks of class ids or of the classes' colours, named like the images, "
        "or an export of CVAT, Label Studio or COCO.",
    ),
]
Classes = Annotated[
    Path | None,
    _of_data(
        metavar="FILE", help=f"With `folder`: classes in the order of their ids; {CLASS_FORMATS}."
    ),
]

ClassNames = Annotated[
    list[str] | None,
    _of_words(
        "--class",
        "-c",
        metavar="NAME",
        help='A class: "dog", or "person=man,woman" with the words to look for. Repeat it.',
    ),
]
ClassFile = Annotated[
    Path | None, _of_words("--classes", metavar="FILE", help=f"Classes: {CLASS_FORMATS}.")
]
ClassSet = Annotated[
    str | None,
    _of_words(
        "--vocabulary",
        metavar="NAME",
        help="A built-in set of classes: see `maskclip vocabularies`.",
    ),
]
BackgroundRule = Annotated[
    str | None,
    _of_words(
        "--background",
        help="`none` (default), words such as `sky,wall,road`, or a threshold on the best "
        "probability, which has an effect above 1 / number of classes.",
    ),
]

ModelName = Annotated[
    str,
    _of_model(
        "--model",
        help="NAME, NAME:TAG (see `maskclip models`), `emoji` (embedded), `photo` (a preview "
        "without CLIP), `hf-hub:org/name` with its @revision or a folder of open_clip, a weights "
        "file, the file of a trained student, or the run folder of its training.",
    ),
]
Weights = Annotated[
    str | None,
    _of_model(
        help="A local weights file for --model NAME[:TAG], or `random`; of a student, the CLIP "
        "that gave its text rows, for words that it was not trained on. Default: the model's own."
    ),
]
WeightsOfModels = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="MODEL=FILE",
        help="A local file for a model that cannot be downloaded, as RN50:openai=RN50.pt, or "
        "`random`, to try it; repeat it. Default: the models' own.",
    ),
]
MethodName = Annotated[str, _of_model("--method", metavar="NAME|FILE.toml", help=f"{METHODS}.")]
MethodOfRecipe = Annotated[
    str | None,
    _of_model(
        "--method", metavar="NAME|FILE.toml", help=f"{METHODS}; default: the recipe's, or clean."
    ),
]
Proxy = Annotated[
    str | None,
    _of_model(
        metavar="NAME[:FILE]",
        help="A ViT of timm, such as vit_small_patch14_dinov2, whose patches' likeness becomes "
        "CLIP's last attention; with FILE, its weights. Default: none.",
    ),
]
Tokenizer = Annotated[
    str | None,
    _of_model(
        metavar="DIR",
        help="A folder with the files of the tokenizer, of models that read words with one of "
        "transformers (SigLIP, CLIPA, NLLB-CLIP ...): tokenizer.json, tokenizer_config.json. "
        "Default: the hub's, from its cache or downloaded.",
    ),
]
TokenizerOfModels = Annotated[
    list[str] | None,
    _of_model(
        "--tokenizer",
        metavar="MODEL=DIR",
        help="A folder with the files of the tokenizer of a model, as ViT-B-16-SigLIP:webli=DIR; "
        "repeat it. Default: the hub's, from its cache or downloaded.",
    ),
]
Language = Annotated[
    str | None,
    _of_model(
        metavar="CODE",
        help="The language of the words, such as deu_Latn, for NLLB-CLIP; others read words of any "
        "language that they know. Default: eng_Latn.",
    ),
]
Templates = Annotated[str, _of_model(help=f"{TEMPLATES}.")]
ProtocolTemplates = Annotated[
    str | None,
    _of_model(
        "--templates", help=f"{TEMPLATES}; default: published; of the protocol windows, open_clip."
    ),
]
Protocol = Annotated[
    str | None,
    _of_model(
        help="`published` (whole image, two resizes; default), `windows` (as SCLIP and later "
        "papers: 224 px, stride 112, 80 templates, their words, scales and thresholds) or "
        "`segment` (as that command; default of emoji and folder)."
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="The output folder.")]
KeySmoothing = Annotated[
    float | None,
    _of_refine(
        metavar="T",
        help="Smooth positions whose best probability is below T (paper: 1.0; 0: none); default: "
        "off.",
    ),
]
PromptDenoising = Annotated[
    float | None,
    _of_refine(
        metavar="T",
        help="Drop classes whose best probability in the image is below T (paper: 0.5); default: "
        "off.",
    ),
]
_REFINEMENTS = (
    "Refine maps: `pamr`, `tlp` by the photo, `surgery` by what the whole image is of, `dominant` "
    "by their means; several with + or commas: tlp+pamr"
)
Refine = Annotated[
    str,
    _of_refine(
        metavar="LIST",
        help=f"{_REFINEMENTS}, or `none`. Default: none; for the embedded models and the "
        "preview `photo`, what measured best.",
    ),
]
RefineMeasured = Annotated[
    str,
    _of_refine(
        "--refine", metavar="LIST", help=f"{_REFINEMENTS}; default: none, for embedded models too."
    ),
]
RefineSize = Annotated[
    int | None,
    _of_refine(
        metavar="PX",
        help="Short side at which the photo refines; 0 is its own. Default: what the network sees.",
    ),
]
PamrIterations = Annotated[
    int | None, _of_refine(metavar="N", help="Of `pamr`. Default: 10, as published.")
]
PamrDilations = Annotated[
    str | None,
    _of_refine(
        metavar="PX,...",
        help="How far off `pamr` looks for similar pixels. Default: 8,16, as published.",
    ),
]
Regions = Annotated[
    str | None,
    _of_refine(
        metavar="slic|DIR",
        help="The pixels of a segment vote: of superpixels (`slic`), or of label maps in a folder, "
        "made by any tool and named as the photos (PNG, TIFF or .npy; 0 is no segment). Default: "
        "none.",
    ),
]
ShortSide = Annotated[
    int | None,
    _of_refine(
        metavar="PX",
        help="Short side that images are resized to; 0 keeps their size. Default: the model's own.",
    ),
]
Window = Annotated[
    int | None,
    _of_refine(
        metavar="PX", help="Side of sliding windows; by default the whole image is read at once."
    ),
]
Stride = Annotated[
    int | None, _of_refine(metavar="PX", help="Step of the windows; default: half a window.")
]
Device = Annotated[str, _of_machine(help="`auto`, `cpu`, `cuda`, `cuda:N` or `mps`.")]
Precision = Annotated[str, _of_machine(help=f"{PRECISIONS}.")]
Runtime = Annotated[
    str,
    _of_machine(
        help="What runs the image network: `torch`, `onnx` (ONNX Runtime), `openvino`, or `auto`, "
        "the fastest that is installed. The first time a graph is made, and kept."
    ),
]
MeasuredPrecision = Annotated[
    str | None, _of_machine("--precision", help=f"{PRECISIONS}; default: float32.")
]
MaxPixels = Annotated[
    int | None,
    _of_machine(metavar="N", help="Refuse larger images; default: about 179 million.", min=1),
]


def read_options(
    *,
    key_smoothing: float | None,
    prompt_denoising: float | None,
    refine: str,
    refine_size: int | None,
    pamr_iterations: int | None,
    pamr_dilations: str | None,
    regions: str | None,
    short_side: int | None,
    window: int | None,
    stride: int | None,
    model: str = "",
) -> Options:
    """Return how images are resized and cut, and maps refined.

    `model` names the one whose own refinement is taken where none is given.

    Raises:
        MaskCLIPError: a value is out of its range.
    """
    from maskclip.core.config import Options, read_refinements

    return Options(
        key_smoothing=key_smoothing,
        prompt_denoising=prompt_denoising,
        refine=read_refinements(refine) if refine else _own_refinement(model),
        refine_size=refine_size,
        pamr_iterations=pamr_iterations,
        pamr_dilations=pamr_dilations,  # type: ignore[arg-type]  # text with commas will do
        regions=regions,
        short_side=short_side,
        window=window,
        stride=stride,
    )


def _own_refinement(model: str) -> tuple[str, ...]:
    """Return the refinements of a model where none are named: an exported file names its own."""
    from maskclip.core.config import own_refinement

    if not model.lower().endswith(".onnx"):
        return own_refinement(model)
    from maskclip.export.files import read_description

    return read_description(model).refine
