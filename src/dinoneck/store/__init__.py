"""The feature store: tokens of photos on disk, extracted once and read pattern by pattern."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.store.datasets import StoreDataset as StoreDataset
    from dinoneck.store.extraction import Extracted as Extracted
    from dinoneck.store.feature_store import FeatureStore as FeatureStore
    from dinoneck.store.memory import MemoryStore as MemoryStore
    from dinoneck.store.photo_ids import image_ids as image_ids
    from dinoneck.store.quantised import QuantisedTokens as QuantisedTokens
    from dinoneck.store.ray_engine import extract_on_ray as extract_on_ray

_HOMES = {
    "StoreDataset": "dinoneck.store.datasets",
    "Extracted": "dinoneck.store.extraction",
    "FeatureStore": "dinoneck.store.feature_store",
    "MemoryStore": "dinoneck.store.memory",
    "QuantisedTokens": "dinoneck.store.quantised",
    "extract_on_ray": "dinoneck.store.ray_engine",
    "image_ids": "dinoneck.store.photo_ids",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
