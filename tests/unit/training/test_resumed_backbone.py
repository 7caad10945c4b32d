"""A state of a training with the backbone in the loop: only the same backbone and images go on with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinoneck import Backbone, CheckpointError, PatchMeanHead, Task, load_backbone
from dinoneck.training import LiveTokens, fit

IDS = ["a", "b", "c", "d"]
IMAGES = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
VALUES = {"level": dict(zip(IDS, [0.1, 0.4, 0.2, 0.3], strict=True))}


def with_lora(backbone: Backbone) -> Backbone:
    return backbone.add_lora(rank=2)


def trained(folder: Path, backbone: Backbone, size: tuple[int, int] | None = None) -> PatchMeanHead:
    """A head, trained for two epochs with a backbone, or the one that the state in the folder holds."""
    torch.manual_seed(0)
    head = PatchMeanHead(64, [Task("level")])
    source = LiveTokens(backbone, IMAGES, IDS, preprocess=backbone.preprocess.changed(size=size))
    fit(head, source, VALUES, out=folder, epochs=2, batch_size=2, lr=1e-2)
    return head


OTHERS: dict[str, tuple[Callable[[], Backbone], str]] = {
    "weights": (
        lambda: with_lora(load_backbone("dinoneck_tiny", seed=3)),
        "weights that are not trained",
    ),
    "alpha": (lambda: load_backbone("dinoneck_tiny").add_lora(rank=2, alpha=8), "alpha: 2.0 / 8.0"),
    "layers": (lambda: with_lora(load_backbone("dinoneck_tiny", layers=[3])), "4"),
    "norm": (lambda: with_lora(load_backbone("dinoneck_tiny", norm=False)), "norm: True / False"),
    "trained blocks": (lambda: load_backbone("dinoneck_tiny").unfreeze_last(1), "LoRA"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_does_not_go_on_with_another_backbone(tmp_path: Path, name: str) -> None:
    make_other, named = OTHERS[name]
    trained(tmp_path, with_lora(load_backbone("dinoneck_tiny")))

    with pytest.raises(CheckpointError) as refused:
        trained(tmp_path, make_other())

    assert named in str(refused.value)
    assert "--no-resume" in str(refused.value)


def test_a_run_does_not_go_on_with_images_that_are_prepared_in_another_way(tmp_path: Path) -> None:
    trained(tmp_path, with_lora(load_backbone("dinoneck_tiny")))

    with pytest.raises(CheckpointError) as refused:
        trained(tmp_path, with_lora(load_backbone("dinoneck_tiny")), size=(16, 32))

    assert "preprocess" in str(refused.value)


def test_a_run_goes_on_with_the_backbone_that_it_has_trained_in_this_process(
    tmp_path: Path,
) -> None:
    backbone = with_lora(load_backbone("dinoneck_tiny"))
    first = trained(tmp_path, backbone)

    again = trained(tmp_path, backbone)

    for before, after in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after)


def halved(image: torch.Tensor) -> torch.Tensor:
    return image // 2


class Scaled(torch.nn.Module):
    """A transform that states its factor, as torchvision's do."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image * self.factor).to(image.dtype)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def trained_with(folder: Path, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
    backbone = with_lora(load_backbone("dinoneck_tiny"))
    source = LiveTokens(backbone, IMAGES, IDS, transform=transform)
    fit(PatchMeanHead(64, [Task("level")]), source, VALUES, out=folder, epochs=1, batch_size=2)


@pytest.mark.slow
def test_a_run_goes_on_with_a_transform_of_the_same_settings_only(tmp_path: Path) -> None:
    trained_with(tmp_path, Scaled(0.5))
    trained_with(tmp_path, Scaled(0.5))
    with pytest.raises(CheckpointError, match=r"factor=0\.5"):
        trained_with(tmp_path, Scaled(0.7))


@pytest.mark.slow
def test_the_address_of_a_transform_does_not_count(tmp_path: Path) -> None:
    trained_with(tmp_path, lambda image: image // 2)
    trained_with(tmp_path, lambda image: image // 2)
    with pytest.raises(CheckpointError, match="transform"):
        trained_with(tmp_path, halved)
