"""The feature store: tokens of images on disk, extracted once and read view by view."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    encoding=["QuantisedTokens"],
    extraction=["Extracted"],
    feature_store=["FeatureStore"],
    images=["image_ids"],
    memory=["MemoryStore", "StoreDataset"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
