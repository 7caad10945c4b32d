"""The tokens that OpenVINO gives for every published architecture, next to those of torch.

The architectures are those of ``dinoneck.backbones.known``, in their own width, with their first
blocks. Weights are seeded random ones, with LayerScale 0.1 to 0.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from benchmarks import parity
from benchmarks.measure import Row
from dinoneck import Backbone, wrap_backbone
from dinoneck.backbones import transformers
from dinoneck.backbones.adapter import PosEmbed
from dinoneck.backbones.known import KNOWN, Known, family_of
from dinoneck.backbones.load import fill_seeded
from dinoneck.backbones.runtime import TOLERANCES, TokenDifference, token_difference
from dinoneck.detection.rf_detr import RfDetr
from dinoneck.detection.rf_detr_vit import VitOfRuntime
from dinoneck.errors import BackboneError
from dinoneck.published.detectors import DETECTORS, PublishedDetector

DEPTH = 2  # blocks; differences in float32 hardly grow with more of them
NUM_IMAGES = 2
IMAGES_SEED = 3
LIBRARIES = ("timm", "transformers")
RF_DETR_DEPTH = 4  # blocks, one per map that the projector reads
RF_DETR_WINDOW = 5  # patches per side of a window
# how much farther from float32 OpenVINO's bfloat16 may lie than torch's
BFLOAT16_FACTOR = 2.0


class Setting(NamedTuple):
    """What is asked of a model.

    Attributes:
        grid: (rows, cols) in patches.
        norm: apply the final norm.
        pos_embed: the recipe of its positions; models other than plain DINOv2 and TIPSv2 have one
            only.
    """

    grid: tuple[int, int]
    norm: bool
    pos_embed: PosEmbed


# the first two are of odd sides, and not square
SETTINGS = (
    Setting(grid=(5, 7), norm=True, pos_embed="native"),
    Setting(grid=(9, 3), norm=False, pos_embed="native"),
    Setting(grid=(16, 16), norm=True, pos_embed="official"),
)


class Differences(NamedTuple):
    """How far tokens lie from each other: the largest over settings.

    Attributes:
        float32: OpenVINO's from torch's.
        bfloat16: OpenVINO's from torch's, both in bfloat16.
        openvino_bfloat16: OpenVINO's in bfloat16 from torch's in float32.
        torch_bfloat16: torch's in bfloat16 from torch's in float32.
    """

    float32: TokenDifference
    bfloat16: TokenDifference
    openvino_bfloat16: TokenDifference
    torch_bfloat16: TokenDifference

    @property
    def problem(self) -> str | None:
        """What is above its bound, or None."""
        for dtype, difference in (
            (torch.float32, self.float32),
            (torch.bfloat16, self.bfloat16),
        ):
            if not difference.is_within(TOLERANCES[dtype]):
                return f"{difference} is above {TOLERANCES[dtype]} in {dtype}"
        largest = BFLOAT16_FACTOR * self.torch_bfloat16.of_token
        if not self.openvino_bfloat16.of_token <= largest:
            return (
                f"OpenVINO's bfloat16 lies {self.openvino_bfloat16.of_token:.1e} from float32, "
                f"torch's {self.torch_bfloat16.of_token:.1e}"
            )
        return None


def model_of(architecture: Known, library: str, depth: int) -> nn.Module:
    """Return a model of this architecture with its first blocks and seeded weights.

    Args:
        architecture: a published one.
        library: ``timm`` or ``transformers``, whose classes it has.
        depth: how many blocks.
    """
    model: nn.Module = timm.create_model(
        architecture.name,
        pretrained=False,
        num_classes=0,
        dynamic_img_size=True,
        depth=depth,
    )
    fill_seeded(model, 0)
    if library == "transformers":
        model = transformers.from_timm(model)
    return model.eval()


def compare(
    model: nn.Module,
    *,
    patch: int,
    depth: int,
    settings: Sequence[Setting] = SETTINGS,
    backbone_of: Callable[[nn.Module, int, Setting], Backbone] | None = None,
) -> Differences:
    """Compare the tokens of every block of a model in both runtimes and precisions.

    Args:
        model: in float32; it is in bfloat16 afterwards.
        patch: pixels per side of a patch.
        depth: of the model.
        settings: of every comparison.
        backbone_of: returns a backbone of the model without programs, given depth and setting; None =
            by :func:`dinoneck.wrap_backbone`.
    """
    backbone_of = backbone_of or _backbone_of
    of_float32: list[TokenDifference] = []
    expected_tokens: list[Sequence[Tensor]] = []
    for setting in settings:
        backbone = backbone_of(model, depth, setting)
        images = _images_of(setting, patch)
        expected = backbone(images).sequence
        actual = backbone.with_runtime("openvino")(images).sequence
        of_float32.append(token_difference(expected, actual))
        expected_tokens.append(expected)

    model.to(torch.bfloat16)
    of_bfloat16: list[TokenDifference] = []
    of_openvino: list[TokenDifference] = []
    of_torch: list[TokenDifference] = []
    for setting, expected in zip(settings, expected_tokens, strict=True):
        backbone = backbone_of(model, depth, setting)
        images = _images_of(setting, patch)
        in_torch = backbone(images).sequence
        in_openvino = backbone.with_runtime("openvino")(images).sequence
        of_bfloat16.append(token_difference(in_torch, in_openvino))
        of_openvino.append(token_difference(expected, in_openvino))
        of_torch.append(token_difference(expected, in_torch))
    return Differences(
        float32=_largest(of_float32),
        bfloat16=_largest(of_bfloat16),
        openvino_bfloat16=_largest(of_openvino),
        torch_bfloat16=_largest(of_torch),
    )


def _backbone_of(model: nn.Module, depth: int, setting: Setting) -> Backbone:
    """Return a backbone without programs: those of one setting alone are in memory."""
    return wrap_backbone(model, layers=range(depth), norm=setting.norm, pos_embed=setting.pos_embed)


def _images_of(setting: Setting, patch: int) -> Tensor:
    generator = torch.Generator().manual_seed(IMAGES_SEED)
    return torch.randn(NUM_IMAGES, 3, *_size_of(setting, patch), generator=generator)


def _size_of(setting: Setting, patch: int) -> tuple[int, int]:
    """Return the (height, width) of images in pixels."""
    rows, cols = setting.grid
    return rows * patch, cols * patch


def _largest(differences: Sequence[TokenDifference]) -> TokenDifference:
    """Return the largest of both; NaN if any is."""
    of_layer = torch.tensor([difference.of_layer for difference in differences])
    of_token = torch.tensor([difference.of_token for difference in differences])
    return TokenDifference(of_layer.max().item(), of_token.max().item())


def rows(
    library: str, architectures: Sequence[Known] = KNOWN
) -> Iterator[tuple[str, Row, str | None]]:
    """Yield the name of a row, its differences, and what is above its bound.

    Args:
        library: whose models are compared, see :func:`model_of`.
        architectures: those to compare.
    """
    for architecture in architectures:
        model = model_of(architecture, library, DEPTH)
        differences = compare(model, patch=architecture.patch, depth=DEPTH)
        yield f"`{architecture.name}`", _row(differences, DEPTH), differences.problem


def official_rows(
    checkouts: Mapping[str, Path], architectures: Sequence[Known] = KNOWN
) -> Iterator[tuple[str, Row, str | None]]:
    """Yield what :func:`rows` does for the models of the official repositories.

    Args:
        checkouts: family -> folder of its repository.
        architectures: those to compare; of ``parity.CASES``.
    """
    patches = {architecture.name: architecture.patch for architecture in architectures}
    # the repository's own code has one recipe
    settings = [setting._replace(pos_embed="native") for setting in SETTINGS]
    for case in parity.CASES:
        checkout = checkouts.get(family_of(case.name))
        if checkout is None or case.name not in patches:
            continue
        model = parity.official(case, checkout)
        depth = case.depth or wrap_backbone(model).adapter.depth
        try:
            differences = compare(model, patch=patches[case.name], depth=depth, settings=settings)
        except BackboneError as error:
            yield f"`{case.name}`", {"blocks": depth}, str(error)
            continue
        yield f"`{case.name}`", _row(differences, depth), differences.problem


def rf_detr_rows(
    detectors: Mapping[str, PublishedDetector] = DETECTORS,
) -> Iterator[tuple[str, Row, str | None]]:
    """Yield what :func:`rows` does for the ViTs of the RF-DETR detectors.

    They are compared at their published size, and at one of windows with an odd side, to which
    positions are resampled.

    Args:
        detectors: name -> those to compare.
    """
    for name, detector in detectors.items():
        differences = compare_rf_detr(detector)
        yield f"`{name}`", _row(differences, RF_DETR_DEPTH), differences.problem


def compare_rf_detr(detector: PublishedDetector, grids: Sequence[int] | None = None) -> Differences:
    """Compare the tokens of the ViT of an RF-DETR in both runtimes and precisions.

    Args:
        detector: the row of its architecture.
        grids: patches per side of the images; None = see :func:`rf_detr_rows`.
    """
    head = RfDetr.from_config({**detector.config, "encoder_layers": RF_DETR_DEPTH}).eval()
    fill_seeded(head.vit, 0)
    with torch.no_grad():
        for name, parameter in head.vit.named_parameters():
            if name.endswith("lambda1"):  # LayerScale
                parameter.fill_(0.2)
    patch = detector.patch_size
    if grids is None:
        grids = (detector.image_size // patch, RF_DETR_WINDOW * detector.num_windows)
    settings = [Setting(grid=(side, side), norm=True, pos_embed="native") for side in grids]
    return compare(
        head.vit,
        patch=patch,
        depth=RF_DETR_DEPTH,
        settings=settings,
        backbone_of=lambda vit, depth, setting: (
            VitOfRuntime(vit, _size_of(setting, patch), "torch").backbone
        ),
    )


def _row(differences: Differences, depth: int) -> Row:
    return {
        "blocks": depth,
        "float32: layer": differences.float32.of_layer,
        "token": differences.float32.of_token,
        "bfloat16: OpenVINO from float32, token": differences.openvino_bfloat16.of_token,
        "torch from float32, token": differences.torch_bfloat16.of_token,
    }
