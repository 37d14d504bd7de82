"""Options that several verbs share, each written once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.core.errors import MaskCLIPError

_MOST_NAMES = 3  # masks, in a message

if TYPE_CHECKING:
    from maskclip.core.config import Options
    from maskclip.data.datasets import Labeled

_DATA, _WORDS, _MODEL = "Data", "Classes", "Model"
CLASS_FORMATS = "text, one per line, TOML, JSON, data.yaml, CSV, labelmap.txt or .pbtxt"
METHODS = (
    "How CLIP is read: `clean`, `published`, a later method such as `naclip` (see "
    "`maskclip methods`), the one that published figures speak for (`auto`), or a file of your own"
)
TEMPLATES = "Prompt templates: `published` (85), `open_clip` (80) or `plain` (1)"
PRECISIONS = "`float32`, `bfloat16`, `float16`, or `auto`: bfloat16 if it is clearly faster"
_REFINE, _MACHINE = "Refinement and resolution", "Machine"

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="ROOT",
        help="The folder that holds VOCdevkit, coco_stuff164k, cityscapes or ade.",
        rich_help_panel=_DATA,
    ),
]
Split = Annotated[
    str, typer.Option(help="val, train; voc also aug, trainaug.", rich_help_panel=_DATA)
]
OptionalSplit = Annotated[
    str | None,
    typer.Option(help="val (default), train; voc also aug and trainaug.", rich_help_panel=_DATA),
]
SceneSize = Annotated[
    int | None,
    typer.Option(
        metavar="PX", min=1, help="With `emoji`: side of a scene in pixels; default: 256."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Use only the first N images; default: all."),
]
Images = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="With `folder`: your images.", rich_help_panel=_DATA),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="With `folder`: masks of class ids or of the classes' colours, named like the images, "
        "or an export of CVAT, Label Studio or COCO.",
        rich_help_panel=_DATA,
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"With `folder`: classes in the order of their ids; {CLASS_FORMATS}.",
        rich_help_panel=_DATA,
    ),
]

ClassNames = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        "-c",
        metavar="NAME",
        help='A class: "dog", or "person=man,woman" with the words to look for. Repeat it.',
        rich_help_panel=_WORDS,
    ),
]
ClassFile = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help=f"Classes: {CLASS_FORMATS}.",
        rich_help_panel=_WORDS,
    ),
]
ClassSet = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        metavar="NAME",
        help="A built-in set of classes: see `maskclip vocabularies`.",
        rich_help_panel=_WORDS,
    ),
]
BackgroundRule = Annotated[
    str | None,
    typer.Option(
        "--background",
        help="`none` (default), words such as `sky,wall,road`, or a threshold on the best "
        "probability, which has an effect above 1 / number of classes.",
        rich_help_panel=_WORDS,
    ),
]

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="NAME, NAME:TAG (see `maskclip models`), `emoji` (embedded), `photo` (a preview "
        "without CLIP), a weights file, the file of a trained student, or the run folder of its "
        "training.",
        rich_help_panel=_MODEL,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A local weights file for --model NAME[:TAG], or `random`; of a student, the CLIP "
        "that gave its text rows, for words that it was not trained on. Default: the model's own.",
        rich_help_panel=_MODEL,
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
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME|FILE.toml",
        help=f"{METHODS}.",
        rich_help_panel=_MODEL,
    ),
]
Proxy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:FILE]",
        help="A ViT of timm, such as vit_small_patch14_dinov2, whose patches' likeness becomes "
        "CLIP's last attention; with FILE, its weights. Default: none.",
        rich_help_panel=_MODEL,
    ),
]
Templates = Annotated[
    str,
    typer.Option(help=f"{TEMPLATES}.", rich_help_panel=_MODEL),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="The output folder.")]
KeySmoothing = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Smooth positions whose best probability is below T (paper: 1.0); default: off.",
        rich_help_panel=_REFINE,
    ),
]
PromptDenoising = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Drop classes whose best probability in the image is below T (paper: 0.5); default: "
        "off.",
        rich_help_panel=_REFINE,
    ),
]
_REFINEMENTS = (
    "Refine maps: `pamr`, `tlp` by the photo, `surgery` by what the whole image is of, `dominant` "
    "by their means; several with + or commas: tlp+pamr"
)
Refine = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help=f"{_REFINEMENTS}, or `none`. Default: none; for the embedded models and the "
        "preview `photo`, what measured best.",
        rich_help_panel=_REFINE,
    ),
]
RefineMeasured = Annotated[
    str,
    typer.Option(
        "--refine",
        metavar="LIST",
        help=f"{_REFINEMENTS}; default: none, for embedded models too.",
        rich_help_panel=_REFINE,
    ),
]
RefineSize = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        help="Short side at which the photo refines; 0 is its own. Default: what the network sees.",
        rich_help_panel=_REFINE,
    ),
]
PamrIterations = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Of `pamr`. Default: 10, as published.", rich_help_panel=_REFINE
    ),
]
PamrDilations = Annotated[
    str | None,
    typer.Option(
        metavar="PX,...",
        help="How far off `pamr` looks for similar pixels. Default: 8,16, as published.",
        rich_help_panel=_REFINE,
    ),
]
Regions = Annotated[
    str | None,
    typer.Option(
        metavar="slic|DIR",
        help="The pixels of a segment vote: of superpixels (`slic`), or of label maps in a folder, "
        "made by any tool and named as the photos (PNG, TIFF or .npy; 0 is no segment). Default: "
        "none.",
        rich_help_panel=_REFINE,
    ),
]
ShortSide = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        help="Short side that images are resized to; 0 keeps their size. Default: the model's own.",
        rich_help_panel=_REFINE,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        help="Side of sliding windows; by default the whole image is read at once.",
        rich_help_panel=_REFINE,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        metavar="PX", help="Step of the windows; default: half a window.", rich_help_panel=_REFINE
    ),
]
Device = Annotated[
    str,
    typer.Option(help="`auto`, `cpu`, `cuda`, `cuda:N` or `mps`.", rich_help_panel=_MACHINE),
]
Precision = Annotated[
    str,
    typer.Option(help=f"{PRECISIONS}.", rich_help_panel=_MACHINE),
]

MaxPixels = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Refuse larger images; default: about 179 million.",
        min=1,
        rich_help_panel=_MACHINE,
    ),
]


def open_data(
    name: str,
    *,
    data: Path | None,
    split: str,
    images: Path | None,
    masks: Path | None,
    classes: Path | None,
    missing: bool = False,
) -> Labeled:
    """Open a data set by name, or one's own as `folder`, then of photos with masks or of all.

    Raises:
        MaskCLIPError: an option is missing or belongs elsewhere, or the data set is not there.
    """
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.data.datasets import open_dataset
    from maskclip.data.photos import open_folder
    from maskclip.data.specs import SPECS

    if name == "folder":
        if images is None or masks is None or classes is None:
            raise MaskCLIPError("folder needs --images DIR, --masks DIR and --classes FILE")
        return open_folder(images, masks, Vocabulary.from_file(classes), missing=missing)
    if images or masks or classes:
        raise MaskCLIPError(f"--images, --masks and --classes belong to `folder`, not to {name}")
    if data is None and name in SPECS:
        raise MaskCLIPError(
            f"{name} needs --data ROOT, the folder that holds "
            f"{SPECS[name].splits['val'].parts[0].images.partition('/')[0]}"
        )
    return open_dataset(name, data or Path(), split=split)


def read_weights(given: Sequence[str] | None, models: Collection[str]) -> dict[str, str]:
    """Return the files, or `random`, that are given for some of the models as MODEL=FILE.

    Raises:
        MaskCLIPError: not written so, no such file, or no such model.
    """
    files = {}
    for text in given or ():
        model, _, file = text.partition("=")
        if file != "random" and not Path(file).is_file():
            raise MaskCLIPError(
                f"--weights {text}: expected MODEL=FILE, and the file to be there, or MODEL=random"
            )
        if model not in models:
            known = ", ".join(sorted(models))
            raise MaskCLIPError(f"--weights {text}: no model is {model!r} here: there are {known}")
        files[model] = file
    return files


def warn_of_unused(masks: Sequence[Path]) -> None:
    """Say which masks belong to no photo, if there are some."""
    from maskclip.cli.console import warning_line

    if masks:
        some = ", ".join(map(str, masks[:_MOST_NAMES]))
        dots = ", ..." if len(masks) > _MOST_NAMES else ""
        warning_line(f"masks without a photo: {len(masks):,} ({some}{dots})")


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
    from maskclip.core.config import Options, own_refinement, read_refinements

    return Options(
        key_smoothing=key_smoothing,
        prompt_denoising=prompt_denoising,
        refine=read_refinements(refine) if refine else own_refinement(model),
        refine_size=refine_size,
        pamr_iterations=pamr_iterations,
        pamr_dilations=pamr_dilations,  # type: ignore[arg-type]  # text with commas will do
        regions=regions,
        short_side=short_side,
        window=window,
        stride=stride,
    )
