"""What is known about DINOv2 and DINOv3 models without loading one: families, names, licences, presets."""

from __future__ import annotations

from dinoneck.errors import BackboneError, did_you_mean

TINY = "dinoneck_tiny"
DINOV3_SMALL = "vit_small_patch16_dinov3.lvd1689m"
LICENSES = {"dinov2": "apache-2.0", "dinov3": "dinov3-license"}


def family_of(name: str) -> str:
    """Return ``dinov2``, ``dinov3`` or ``other`` for a model name."""
    lowered = name.lower()
    return next((family for family in LICENSES if family in lowered), "other")


def is_supported(architecture: str) -> bool:
    """Whether a timm architecture name (without tag) is a DINOv2 or DINOv3 ViT."""
    return architecture.startswith("vit_") and family_of(architecture) != "other"


def refuse(name: str, names: list[str]) -> BackboneError:
    """Return the error for a name that is no DINOv2/DINOv3 ViT."""
    if "convnext" in name.lower():
        return BackboneError(
            f"{name!r} is a ConvNeXt: it has no patch tokens, so dinoneck cannot serve it. DINOv3 ViTs: "
            + ", ".join(known for known in names if "dinov3" in known)
        )
    return BackboneError(
        f"backbone {name!r} is unknown.{did_you_mean(name.split('.')[0], [TINY, *names])} Known: {TINY}, "
        f"{', '.join(names)}. Any other timm ViT that you built yourself goes through wrap_backbone(model)"
    )
