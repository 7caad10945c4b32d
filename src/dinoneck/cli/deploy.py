"""``dinoneck export`` and ``serve``: a head as a program for other runtimes, and predictions over HTTP."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import (
    EXPORT_DETECTOR,
    EXPORT_HEAD_ALONE,
    EXPORT_WHOLE_MODEL,
    HeadBackbone,
    Words,
    check_output,
    default_runtime,
    refuse_unused,
    whole,
)
from dinoneck.cli.text import show
from dinoneck.errors import ConfigError
from dinoneck.extras import check_installed
from dinoneck.kinds import Precision
from dinoneck.registry import DETECTORS
from dinoneck.runtime.names import is_exported
from dinoneck.serve.settings import Settings
from dinoneck.training.config import SIZE

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.detection import Detector


def export(
    file: Annotated[str, Positional, arg(metavar="HEAD")],
    format: Literal["onnx", "pt2"],
    out: Path,
    revision: str | None = None,
    grid: Annotated[tuple[int, int] | None, SIZE, arg(metavar="ROWSxCOLS")] = None,
    check: bool = True,
    half: bool = False,
    with_backbone: bool = False,
    size: Annotated[tuple[int, int] | None, SIZE] = None,
    maps: bool = False,
    precision: Precision | None = None,
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
    words: Words = (),
) -> dict[str, Any]:
    """Write a head, or backbone and head as one model, as ONNX model or torch program.

    A whole model takes RGB images in 0 ... 1 and gives predictions in original units.

    Example: dinoneck export head.safetensors --with-backbone --format onnx --out model.onnx

    Args:
        file: a head file, a folder with one, a published head, or a Hub repository (user/name).
        format: onnx, or pt2 (a torch.export program).
        out: the file to write.
        revision: a branch, tag or commit of the Hub repository (default: main).
        grid: without backbone: the one grid of the head (default: any, where it allows).
        check: leave out the comparison with the eager model that is made before writing by default.
        half: for onnx: half the file size, with matrix products in float16 and everything else in
            float32.
        with_backbone: export backbone and head; else the head, which takes tokens.
        size: with backbone: the one image size in pixels (default: any, where the backbone allows,
            else the head's).
        maps: with backbone: also return per-patch predictions, where the head has them.
        precision: with backbone: dtype of its weights and tokens, such as float32 for an ONNX model
            of a head that was trained in bfloat16 (default: as in training).
        backbone: with backbone: where its weights come from.
        words: the command line.
    """
    check_output(out, [file, backbone.backbone_file, backbone.weights])
    if format == "onnx":  # before torch is imported
        check_installed("onnx", "export")
        check_installed("onnxscript", "export")
        if check:
            check_installed("onnxruntime", "export")
    from dinoneck.export import export_head
    from dinoneck.inference.sources import names_detector, open_heads

    if names_detector(file, has_weights=backbone.weights is not None):  # before its file is fetched
        _refuse_for_detector(words, format)
        backbone.refuse_with_own_vit()
    heads: Any
    [heads] = open_heads(file, revision, backbone.weights).values()
    if len(heads) > 1:
        raise ConfigError(
            f"{file} holds {len(heads)} head files; name one of them, or join them in Python: "
            "HeadEnsemble"
        )
    [head] = heads
    document: dict[str, Any] = {"files": [out], "format": format, "with_backbone": with_backbone}
    if head.head_type in DETECTORS:
        _refuse_for_detector(words, format)
        from dinoneck.detection import Detector

        detector = Detector.from_checkpoint(head, backbone.load_backbone(head))
        document |= _export_detector(detector, out, size=size, half=half, check=check)
    elif with_backbone:
        refuse_unused(EXPORT_WHOLE_MODEL, words)
        document |= _export_model(
            head,
            out,
            backbone=backbone.load_backbone(head, precision),
            size=size,
            maps=maps,
            format=format,
            half=half,
            check=check,
        )
    else:
        refuse_unused(EXPORT_HEAD_ALONE, words)
        exported = export_head(head, out, grid=grid, format=format, half=half, check=check)
        document["files"] = list(exported.files)
    show({"written": ", ".join(map(str, document["files"]))})
    return document


def _refuse_for_detector(words: Words, format: Literal["onnx", "pt2"]) -> None:
    """Raise a ConfigError for options without effect on a detector, and for a format that it lacks."""
    refuse_unused(EXPORT_DETECTOR, words)
    if format != "onnx":
        raise ConfigError(f"--format is {format}; a detector is exported as onnx")


def _export_detector(
    detector: Detector,
    out: Path,
    *,
    size: tuple[int, int] | None,
    half: bool,
    check: bool,
) -> dict[str, Any]:
    """Write a detector, and print how far its boxes are from the file's; see :func:`export`."""
    parity = detector.export_onnx(out, size=size, half=half, check=check)
    if parity is None:
        return {"half": half, "parity": None}
    if parity.compared:  # else a warning states that there are no boxes
        show(
            f"parity: boxes on random images differ by at most {parity.box_px:.2g} px and "
            f"{parity.score:.2g} in score ({parity.compared} compared, {parity.unmatched} without "
            "a counterpart)"
        )
    return {"half": half, "parity": parity._asdict()}


def _export_model(
    head: HeadCheckpoint,
    out: Path,
    *,
    backbone: Backbone | None,
    size: tuple[int, int] | None,
    maps: bool,
    format: Literal["onnx", "pt2"],
    half: bool,
    check: bool,
) -> dict[str, Any]:
    """Write backbone and head, and print what the model takes and gives; see :func:`export`."""
    from dinoneck.export import export_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this model (takes|predicts) .*")  # printed below
        exported = export_model(
            head,
            out,
            format=format,
            backbone=backbone,
            size=size,
            maps=maps,
            half=half,
            check=check,
        )
    description = exported.description
    show({key: description[key] for key in ("input", "outputs", "views", "parity")})
    reason = exported.fixed_because
    if reason:
        show({"fixed": f"the size is fixed, for {reason} (--size HxW: another)"})
    return {"files": list(exported.files), "fixed_because": reason, "description": description}


def serve(
    head: Annotated[str, Positional, arg(metavar="HEAD")],
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, whole(0, 65535)] = 8000,
    settings: Annotated[Settings, arg(name="")] = Settings(),
) -> None:
    """Serve a head or a detector over HTTP until SIGTERM or Ctrl-C.

    It has no authentication, TLS or rate limit: run it behind a proxy that has them.

    Example: dinoneck serve head.safetensors --port 8000

    Args:
        head: a head file, a folder of head files, a published head, a Hub repository
            (user/name), or an exported file (.onnx).
        host: address to listen on; by default reachable from this machine only.
        port: 0 is any free port, which is printed.
        settings: the limits.
    """
    check_installed("fastapi", "serve")  # before torch is imported
    check_installed("uvicorn", "serve")
    if settings.runtime is None and not is_exported(head):
        settings = settings.changed(runtime=default_runtime())
    from dinoneck.serve import serve as serve_head

    serve_head(head, host=host, port=port, settings=settings, announce=partial(print, flush=True))
