"""D-FINE in three sizes, as arguments of ``transformers.DFineConfig``; backbone and neck are the caller's.

A neck in front gives every level the encoder's width: ``out_channels`` = ``encoder_hidden_dim``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dinoneck.configured import at_least
from dinoneck.errors import ConfigError, did_you_mean


def stock(num_labels: int) -> dict[str, Any]:
    """Return D-FINE-L as published: width 256, six decoder layers; 17.0 million parameters beside ViT and neck."""
    return _sized(num_labels, width=256)


def small_25m(num_labels: int) -> dict[str, Any]:
    """Return the size that a ViT-S needs for 25 million in all: width 160, three decoder layers, a third of the depth.

    The design source asks for 25 million and takes D-FINE-L as it is for one of them. It is 17.0; this one is 3.1.
    """
    return _sized(num_labels, width=160, layers=3, scale=0.34, ffn=512)


def tiny(num_labels: int) -> dict[str, Any]:
    """Return a size that trains on a CPU in minutes: width 128, three decoder layers, 100 queries."""
    return _sized(num_labels, width=128, layers=3, scale=0.34, ffn=256, encoder_ffn=256, queries=100)


CONFIGS: dict[str, Callable[[int], dict[str, Any]]] = {"stock": stock, "25m": small_25m, "tiny": tiny}


def config_named(name: str, num_labels: int) -> dict[str, Any]:
    """Return one of the three by name.

    Raises:
        ConfigError: if there is none, or ``num_labels`` is not positive.
    """
    if name not in CONFIGS:
        raise ConfigError(f"config is {name!r}; expected one of {', '.join(CONFIGS)}.{did_you_mean(name, CONFIGS)}")
    return CONFIGS[name](num_labels)


def _sized(
    num_labels: int,
    *,
    width: int,
    layers: int = 6,
    scale: float = 1.0,
    ffn: int = 1024,
    encoder_ffn: int = 1024,
    queries: int = 300,
) -> dict[str, Any]:
    at_least(1, num_labels=num_labels)
    return {
        "num_labels": num_labels,
        "encoder_in_channels": [width] * 3,
        "feat_strides": [8, 16, 32],
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": encoder_ffn,
        "hidden_expansion": scale,
        "depth_mult": scale,
        "decoder_in_channels": [width] * 3,
        "d_model": width,
        "decoder_layers": layers,
        "decoder_ffn_dim": ffn,
        "decoder_n_points": [3, 6, 3],
        "num_queries": queries,
    }
