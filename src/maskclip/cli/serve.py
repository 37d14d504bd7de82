"""`maskclip serve`: a page to try words with, and a service to call."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from maskclip.cli import options as opt

_PAGE, _LIMITS, _LABEL_STUDIO = "Page and service", "Limits", "Label Studio"


def serve(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The address to bind to; 0.0.0.0 lets other machines in.",
            rich_help_panel=_PAGE,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65_535, help="0 takes a free one.", rich_help_panel=_PAGE
        ),
    ] = 8000,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="MASKCLIP_KEY",
            show_envvar=False,
            help="What requests must bring, as bearer token or as password; also MASKCLIP_KEY of "
            "the environment, which other users of the machine do not see. Default: none.",
            rich_help_panel=_PAGE,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="A model to offer, as `segment` takes it; repeat it, the default first. Default: "
            "those that are on this machine.",
            rich_help_panel="Model",
        ),
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option(
            metavar="LABELS",
            help="Review a folder of `maskclip label`: its labels are accepted, rejected and "
            "corrected, and each action is saved in it. Default: none.",
            rich_help_panel=_PAGE,
        ),
    ] = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = "torch",
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Label its tasks' photos that lie below this folder: its document root for local "
            "files, or its media folder; repeat it. Default: none.",
            rich_help_panel=_LABEL_STUDIO,
        ),
    ] = None,
    tokenizer: opt.TokenizerOfModels = None,
    label_studio: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Label photos that this Label Studio serves, with the access token that is "
            "LABEL_STUDIO_API_KEY in the environment. Default: none.",
            rich_help_panel=_LABEL_STUDIO,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name by which it is called where it is bound to this machine, as that "
            "of a proxy before it; repeat it. Default: none.",
            rich_help_panel=_PAGE,
        ),
    ] = None,
    max_upload: Annotated[
        int,
        typer.Option(metavar="MIB", min=1, help="Refuse larger requests.", rich_help_panel=_LIMITS),
    ] = 32,
    max_pixels: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Refuse larger photos.", rich_help_panel=_LIMITS),
    ] = 50_000_000,
    timeout: Annotated[
        float,
        typer.Option(metavar="S", min=1, help="Seconds for a request.", rich_help_panel=_LIMITS),
    ] = 60.0,
    queue: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="How many requests may wait; others get the answer that it is busy.",
            rich_help_panel=_LIMITS,
        ),
    ] = 32,
) -> None:
    """Serve a page to try words on photos with, and a service for programs.

    The page is at the address that is printed; it loads nothing from elsewhere, and photos stay in
    the memory of this machine. What programs call is described in docs/serve.md and at /docs.

    **Examples**

    `maskclip serve`

    `maskclip serve --model emoji --port 8080`

    `maskclip serve --model ViT-B-16:openai --model runs/mine/student.safetensors`

    `maskclip serve --model nllb-clip-base:v1 --tokenizer nllb-clip-base:v1=nllb/`

    `maskclip serve --review labels`

    `maskclip serve --runtime auto` (ONNX Runtime or OpenVINO runs the networks, if it is faster)

    `maskclip serve --host 0.0.0.0 --key SECRET` (for other machines; put TLS before it)

    `maskclip serve --label-studio http://localhost:8080` (predictions for those who label there)
    """
    from maskclip.cli.console import print_choice, print_line, working
    from maskclip.cli.inputs import read_tokenizers
    from maskclip.core.config import DEFAULT_MODEL, check_runtime
    from maskclip.core.errors import require_extra
    from maskclip.core.text import check_key, counted
    from maskclip.tasks.model_names import names_student

    if key is not None:
        check_key(key)  # before models are loaded
    check_runtime(runtime)

    for name in models or ():
        names_student(name)  # a path where nothing lies is refused before torch is there
    require_extra("web", "fastapi", "uvicorn", "python_multipart")
    with working("loading PyTorch"):
        from maskclip.web.app import create_app
        from maskclip.web.asking import Limits
        from maskclip.web.engine import Engine
        from maskclip.web.models import Models, default_models
        from maskclip.web.server import ended_by_sigterm, listen, run
        from maskclip.web.task_files import TaskFiles

    files = TaskFiles(
        root or [],
        host=label_studio,
        token=os.environ.get("LABEL_STUDIO_API_KEY"),
        max_bytes=max_upload * 2**20,
    )
    with ExitStack() as stack:
        stack.enter_context(ended_by_sigterm())
        reviewed = None
        if review is not None:
            from maskclip.tasks.label.review import Review

            with working(f"opening {review}"):
                reviewed = stack.enter_context(Review(review))
        named = models or default_models()
        folders = read_tokenizers(tokenizer, named)
        offered = Models(named, device=device, runtime=runtime, tokenizers=folders)
        sockets = stack.enter_context(listen(host, port))
        if reviewed is None:  # in a review the models wait until somebody wants one
            with working(f"loading {', '.join(offered.offers)}"):
                ready = offered.warm_up()
            for name, segmenter in ready.items():
                print_choice(segmenter.runtime, segmenter.runtime_why, what=f"{name}: runtime")
        limits = Limits(max_upload=max_upload * 2**20, max_pixels=max_pixels, timeout=timeout)
        engine = Engine(offered, queue_size=queue, timeout=timeout)
        app = create_app(
            engine,
            limits=limits,
            key=key,
            host=host,
            names=allow_host or (),
            files=files,
            review=reviewed,
        )
        address = sockets.address
        print_line(f"maskclip is at {address}")
        if reviewed is not None:
            count = counted(len(reviewed.finished.photos), "photo is", "photos are")
            print_line(f"{count} to be reviewed at {address}/review.html")
        if sockets.is_local:
            print_line("only this machine can reach it; --host 0.0.0.0 lets others in")
        elif key is None:
            print_line("anybody who can reach this machine may use it: --key asks for a key")
        print_line(f"models: {', '.join(offered.offers)}; the first where none is named")
        if not models and DEFAULT_MODEL not in offered.offers:
            print_line(
                f"the weights of {DEFAULT_MODEL} are not on this machine: what comes with the "
                f"package is offered; --model {DEFAULT_MODEL} downloads them"
            )
        run(app, sockets)
