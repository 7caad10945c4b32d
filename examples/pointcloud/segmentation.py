"""A 3D U-Net that names voxels, alone or with images: fused once at its end, injected into its decoder, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import safetensors.torch
from torch import Tensor, nn

from dinoneck.atomic import write_whole
from dinoneck.errors import CheckpointError, ConfigError, some_of
from dinoneck.points import DecoderInjection, GatedFusion, InjectedUNet, SparseFeatures, VoxelGrid
from dinoneck.weight_files import read_state
from examples.pointcloud.minkowski import is_minkowski, own_weights
from examples.pointcloud.res16unet import Res16UNet

Variant = Literal["3d", "bifusion", "inject", "both"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
NEW = ("fusion", "injection", "classifier")  # all else must be in a file that training starts from
NETWORKS: dict[str, dict[str, Any]] = {
    "34c": {},
    "small": {"planes": (16, 32, 48, 64, 64, 48, 32, 32), "layers": (1,) * 8, "init_dim": 16},
}
_SHOWN = 4
_CLASSES = "classes"  # key of a file's metadata


class Segmenter(nn.Module):
    """Scores of every voxel.

    Args:
        unet: gives features of every voxel.
        classes: how many.
        fusion: mixes the images' features with the network's output; None = not there.
        injection: adds them in the decoder; it is hooked onto ``unet``; None = not there.
    """

    def __init__(
        self,
        unet: Res16UNet,
        classes: int,
        fusion: GatedFusion | None = None,
        injection: DecoderInjection | None = None,
    ) -> None:
        super().__init__()
        self.network: Res16UNet | InjectedUNet = unet
        if injection is not None:
            self.network = injection.wrap(unet, {stride: Res16UNet.BLOCKS[stride] for stride in injection.strides})
        self.fusion = fusion
        self.classifier = nn.Linear(unet.out_channels, classes)

    @property
    def unet(self) -> Res16UNet:
        """The 3D network."""
        return self.network if isinstance(self.network, Res16UNet) else self.network.get_submodule("unet")  # type: ignore[return-value]

    @property
    def injection(self) -> DecoderInjection | None:
        """What is added in the decoder."""
        return self.network.injection if isinstance(self.network, InjectedUNet) else None

    @property
    def strides(self) -> tuple[int, ...]:
        """Levels of the pyramid that are read; empty for the 3D network alone."""
        levels = () if self.injection is None else self.injection.strides
        return tuple(sorted({*levels, *(() if self.fusion is None else (1,))}))

    def forward(self, grid: VoxelGrid, feats: Tensor, pyramid: Mapping[int, SparseFeatures] | None = None) -> Tensor:
        """Return scores (M, classes) of the grid's voxels.

        Args:
            grid: the voxels.
            feats: (M, C) of each.
            pyramid: the images' features at ``strides``; None = as if no image had seen anything.
        """
        x = self.unet.sparse(grid, feats)
        found: Tensor = self.network(x, pyramid=pyramid) if isinstance(self.network, InjectedUNet) else self.network(x)
        if self.fusion is not None and pyramid is not None:
            found = self.fusion(found, *pyramid[1].at(grid.coords, grid.batch))
        scores: Tensor = self.classifier(found)
        return scores

    def parts(self) -> dict[str, nn.Module]:
        """The 3D network, the classifier and what images bring, by name."""
        parts = {"unet": self.unet, "classifier": self.classifier, "fusion": self.fusion, "injection": self.injection}
        return {name: part for name, part in parts.items() if part is not None}

    def weights(self) -> dict[str, Tensor]:
        """All weights by part, named alike whether or not there is an injection."""
        return {
            f"{part}.{key}": value
            for part, module in self.parts().items()
            for key, value in module.state_dict().items()
        }

    def stats(self) -> dict[str, Any]:
        """What fusion and injection did in the last pass."""
        stats: dict[str, Any] = {}
        if self.fusion is not None:
            stats["fusion"] = self.fusion.stats
        if self.injection is not None:
            stats["injection"] = {str(stride): vars(level) for stride, level in self.injection.stats.items()}
        return stats


def build(
    variant: Variant,
    *,
    network: str,
    in_channels: int,
    classes: int,
    c_dino: int,
    engine: Literal["auto", "torch", "spconv"] = "auto",
    target: Literal["up", "skip"] = "up",
) -> Segmenter:
    """Build a variant with fresh weights.

    Args:
        variant: one of ``VARIANTS``.
        network: one of ``NETWORKS``.
        in_channels: of the voxels' features.
        classes: how many.
        c_dino: channels of the images' features.
        engine: of the sparse convolutions.
        target: the branch that is injected into.

    Raises:
        ConfigError: for an unknown variant or network.
    """
    if variant not in VARIANTS or network not in NETWORKS:
        raise ConfigError(
            f"variant is {variant!r}, network {network!r}; expected one of {', '.join(VARIANTS)} and one of "
            f"{', '.join(NETWORKS)}"
        )
    unet = Res16UNet(in_channels, engine, **NETWORKS[network])
    width = unet.out_channels
    fusion = GatedFusion(c_dino, width, width) if variant in ("bifusion", "both") else None
    injection = None
    if variant in ("inject", "both"):
        injection = DecoderInjection(c_dino, unet.levels(target), target=target)
    return Segmenter(unet, classes, fusion, injection)


def save_weights(model: Segmenter, path: Path, classes: Sequence[str] = ()) -> None:
    """Write all weights, and the classes' names, to a ``.safetensors`` file, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.weights().items()}
    write_whole(path, safetensors.torch.save(state, {_CLASSES: json.dumps(list(classes))}))


def load_weights(model: Segmenter, path: Path, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """Start from a file: all it holds must fit, and it must hold all but whole new parts.

    The classifier is new where the file's is of another number of classes, or names others than ``classes``. Of a file
    of MinkowskiEngine the layers that fit are taken, and listed in the log.

    Args:
        model: gets the weights.
        path: a file of :func:`save_weights`, or a state dict of ``torch.save``, which is read weights-only.
        classes: names of the model's classes.

    Returns:
        Names of the parts with fresh weights, in all of their layers or in some; the others are the file's.

    Raises:
        BackboneError: if the file is missing or holds something else than tensors.
        CheckpointError: naming weights the model has no place for, those missing, or of other shapes; for a file of
            MinkowskiEngine if no layer fits.
    """
    given, own = read_state(path), model.weights()
    if is_minkowski(given):
        weights = own_weights(given, model.unet.state_dict(), path)
        unknown = model.unet.load_state_dict(weights, strict=False).missing_keys
        return tuple(part for part in model.parts() if part != "unet" or unknown)
    head, names = given.get("classifier.weight"), []
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            names = json.loads((file.metadata() or {}).get(_CLASSES, "[]"))
    others = bool(names and classes) and names != list(classes)
    if head is not None and (others or len(head) != len(own["classifier.weight"])):
        given = {key: value for key, value in given.items() if not key.startswith("classifier.")}
    absent = tuple(part for part in NEW if part in model.parts() and not any(k.startswith(f"{part}.") for k in given))
    strange = given.keys() - own.keys()
    if strange:
        raise CheckpointError(
            f"{path} holds {some_of(strange, _SHOWN)}, which this model has no place for; start from a file of the "
            "same --network, and of a variant that has no more parts",
            step="tensors",
        )
    missing = {key for key in own.keys() - given.keys() if key.partition(".")[0] not in absent}
    if missing:
        raise CheckpointError(
            f"{path} lacks {some_of(missing, _SHOWN)}; only a whole {' or '.join(NEW)} may be new", step="tensors"
        )
    for key, value in given.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"{path}: {key} is {tuple(value.shape)}, this model's {tuple(own[key].shape)}; the file belongs to "
                "another --network, --backbone or --point-colours",
                step="tensors",
            )
    for part, module in model.parts().items():
        if part not in absent:
            found = {key.partition(".")[2]: value for key, value in given.items() if key.partition(".")[0] == part}
            module.load_state_dict(found)
    return absent


def count(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
