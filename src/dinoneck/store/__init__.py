"""The feature store: tokens of photos on disk, extracted once and read pattern by pattern."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    datasets=["StoreDataset"],
    extraction=["Extracted"],
    feature_store=["FeatureStore"],
    memory=["MemoryStore"],
    photo_ids=["image_ids"],
    quantised=["QuantisedTokens"],
    ray_engine=["extract_on_ray"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
