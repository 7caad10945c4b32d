"""What ``viz`` takes from the other verbs, until their command lines are functions too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from dinoneck.cli.answers import answer
from dinoneck.cli.outputs import check_output as check_output
from dinoneck.cli.predict import files_of as files_of

HELP = "draw what a backbone sees and a head says; write a report to open in a browser"
EXAMPLE = "dinoneck viz report head.safetensors photos/ --out report.html"


def whole(low: int) -> object:
    return arg(metavar=f"N>={low}")


list_images = files_of
Count = Annotated[int, whole(1)]
Images = Annotated[tuple[Path, ...], Positional, arg(metavar="IMAGES ...")]


@dataclass(frozen=True)
class HeadBackbone:
    """The backbone of a head.

    Attributes:
        backbone_file: backbone weights (or a transformers folder) that the head was trained on.
        random_backbone: its seeded random weights, without download; a head trained on other weights is refused.
    """

    backbone_file: str | None = None
    random_backbone: bool = False


def open_backbone(own: Any, device: str | None) -> Any:
    from dinoneck.cli import backbone_options
    from dinoneck.devices import local_device

    options: Any = SimpleNamespace(**{f"backbone_{name}": value for name, value in vars(own).items()})
    options.backbone, options.random_backbone = own.name, own.random
    return backbone_options.load(options, layers=own.layers).to(local_device(device or "cpu"))


def predict_many(predictor: Any, files: Any, places: Any = None, *, maps: bool = False, unusable: Any = None) -> Any:
    from dinoneck.cli.predict import predicted

    return predicted(predictor, files, range(len(files)) if places is None else places, maps, unusable)


def open_predictor(
    heads: Sequence[str], revision: Any, backbone: HeadBackbone, tta: Any, device: Any, **more: Any
) -> Any:
    from dinoneck.cli import backbone_options
    from dinoneck.cli.predict import views_of
    from dinoneck.inference.predictor import Predictor
    from dinoneck.inference.sources import listed, opened, revisions_of

    sources = listed(heads)
    found: Any = opened(sources, revision)
    options: Any = SimpleNamespace(tta=tta, device=device, **vars(backbone))
    own = backbone_options.rebuilt(options, found[0])
    return Predictor(found, own, views_of(options, found), device, **more), revisions_of(sources, found)


class _Words(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        from dinoneck.cli.viz import viz

        earlier = {"--max-photos": "--max-images"}
        words = [earlier.get(word, word) for word in values if word != "--json"]
        config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
        later = {name: _later(function) for name, function in viz.items()}
        namespace.json, namespace.answer = "--json" in values, None
        namespace.call = tyro.extras.subcommand_cli_from_dict(later, prog="dinoneck viz", args=words, config=config)


def _later(function: Any) -> Any:
    import functools

    @functools.wraps(function)
    def bound(*values: Any, **options: Any) -> Any:
        return functools.partial(function, *values, **options)

    return bound


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs=argparse.REMAINDER, action=_Words, metavar="report | tokens | gate | residuals")


def run(options: argparse.Namespace) -> int:
    document = options.call()
    done = document.pop("ok", True)
    answer(options, **document)
    return 0 if done else 1
