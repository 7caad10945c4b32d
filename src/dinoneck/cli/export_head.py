"""``dinoneck export-head``: a head for programs without dinoneck."""

from __future__ import annotations

import argparse
from pathlib import Path

from dinoneck.cli import backbone_options
from dinoneck.cli.allow_option import add_allow
from dinoneck.errors import ConfigError

HELP = "write a head as ONNX model, torch program or plain weights"
EXAMPLE = "dinoneck export-head head.safetensors --format onnx --out head.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", help="a head file, an ensemble's folder, or a hub repository (user/name)")
    parser.add_argument("--revision", help="a branch, tag or commit of the hub repository (default: main)")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch", "state-dict"),
        required=True,
        help="onnx and torch (torch.export): tokens in, natural units out, with the metadata inside; state-dict: the "
        "weights alone",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--grid", type=backbone_options.size, metavar="ROWSxCOLS", help="the one grid it takes (default: any)"
    )
    add_allow(parser)


def run(options: argparse.Namespace) -> int:
    """Export."""
    from dinoneck.checkpoint import exporting
    from dinoneck.checkpoint.ensemble_folder import EnsembleFolder
    from dinoneck.checkpoint.load_any import load_any

    found = load_any(options.file, revision=options.revision, allow=options.allow)
    checkpoint = found.checkpoint() if isinstance(found, EnsembleFolder) else found
    if options.format == "state-dict":
        if options.grid is not None:
            raise ConfigError("--grid has no meaning for plain weights; leave it out")
        exporting.export_state_dict(checkpoint, options.out)
    else:
        export = exporting.export_onnx if options.format == "onnx" else exporting.export_program
        export(checkpoint, options.out, grid=options.grid)
    print(f"{checkpoint.head_type} written: {options.out}")
    return 0
