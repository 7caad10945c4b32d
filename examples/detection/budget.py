"""Where the parameters and the arithmetic of a D-FINE on a DINO ViT are: ``python -m examples.detection.budget``.

Weights are random. FLOPs are those of one image, two per multiply-add, of matrix products, convolutions and attention;
reading at points (deformable attention), norms and activations are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DFineConfig, DFineForObjectDetection

from dinoneck.errors import DinoneckError
from dinoneck.interop import DinoneckBackboneConfig, find_encoder, register
from examples.detection.dfine_configs import CONFIGS, config_named

NECKS = {
    "spatial_tuning_adapter": ((5, 8, 11), {}),
    "sta_pyramid": ((11,), {"downsample": "avgpool"}),
}
SMALLEST_PX = 128  # fewer cells than queries are too few
PARTS = ("ViT", "neck", "hybrid encoder", "decoder and heads")


@dataclass(frozen=True)
class Share:
    """What a part has of the whole: parameters, and FLOPs per image."""

    parameters: int
    flops: int


def build(
    config: str,
    neck: str = "spatial_tuning_adapter",
    num_labels: int = 80,
    *,
    layers: Sequence[int] | None = None,
    neck_config: dict[str, Any] | None = None,
) -> nn.Module:
    """Return a D-FINE on DINOv3-S with seeded random weights."""
    register()
    own = config_named(config, num_labels)
    usual_layers, usual_options = NECKS[neck]
    backbone = DinoneckBackboneConfig(
        backbone="vit_small_patch16_dinov3",
        layers=list(usual_layers if layers is None else layers),
        neck=neck,
        neck_config={
            "out_channels": own["encoder_hidden_dim"],
            **(usual_options if neck_config is None else neck_config),
        },
        pretrained=False,
        seed=0,
    )
    torch.manual_seed(0)
    return DFineForObjectDetection(
        DFineConfig(backbone_config=backbone, freeze_backbone_batch_norms=False, **own)
    ).eval()


def modules_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the modules of every part but the last, which is what remains."""
    encoder = find_encoder(model)
    hybrid = [model.get_submodule("model.encoder_input_proj"), model.get_submodule("model.encoder")]
    return {"ViT": [encoder.backbone], "neck": [encoder.neck], "hybrid encoder": hybrid}


def parameters_of(model: nn.Module) -> dict[str, int]:
    """Return the parameters of every part; what is shared counts once."""
    found = {part: sum(_count(module) for module in modules) for part, modules in modules_of(model).items()}
    return {**found, PARTS[-1]: _count(model) - sum(found.values())}


@torch.no_grad()
def flops_of(model: nn.Module, size: int) -> dict[str, int]:
    """Return the FLOPs of every part for one image of ``size`` x ``size`` pixels."""
    names = {id(module): name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # as plain products, which the counter knows on every device
        model(pixel_values=torch.zeros(1, 3, size, size))
    counts = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    root = type(model).__name__

    def of(module: nn.Module) -> int:
        children = module if isinstance(module, nn.ModuleList) else [module]
        return sum(counts.get(f"{root}.{names[id(child)]}", 0) for child in children)

    found = {part: sum(of(module) for module in modules) for part, modules in modules_of(model).items()}
    return {**found, PARTS[-1]: counter.get_total_flops() - sum(found.values())}


def shares(model: nn.Module, size: int) -> dict[str, Share]:
    """Return both, part by part."""
    parameters, flops = parameters_of(model), flops_of(model, size)
    return {part: Share(parameters[part], flops[part]) for part in PARTS}


def table(found: dict[str, Share], title: str) -> str:
    """Return the shares as a Markdown table."""
    lines = [f"| {title} | parameters, M | GFLOPs |", "|---|---:|---:|"]
    lines += [f"| {part} | {share.parameters / 1e6:.2f} | {share.flops / 1e9:.1f} |" for part, share in found.items()]
    total = Share(sum(s.parameters for s in found.values()), sum(s.flops for s in found.values()))
    return "\n".join([*lines, f"| **all** | **{total.parameters / 1e6:.2f}** | **{total.flops / 1e9:.1f}** |"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.detection.budget",
        description="Parameters and FLOPs of D-FINE on DINOv3-S, part by part.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", choices=(*CONFIGS, "all"), default="all")
    parser.add_argument("--neck", choices=tuple(NECKS), default="spatial_tuning_adapter")
    parser.add_argument("--size", type=int, default=640, metavar="PX", help="side of the image, a multiple of 32")
    parser.add_argument("--labels", type=int, default=80, metavar="N")
    options = parser.parse_args(arguments)
    try:
        if options.size < SMALLEST_PX or options.size % 32:
            parser.error(f"--size is {options.size}; expected a multiple of 32 of at least {SMALLEST_PX}")
        for config in CONFIGS if options.config == "all" else (options.config,):
            found = shares(build(config, options.neck, options.labels), options.size)
            print(table(found, f"{config}, {options.neck}, {options.size} px"), end="\n\n")
    except (DinoneckError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    sys.exit(main())
