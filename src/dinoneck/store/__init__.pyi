"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.store.encoding import QuantisedTokens as QuantisedTokens
from dinoneck.store.extraction import Extracted as Extracted
from dinoneck.store.feature_store import FeatureStore as FeatureStore
from dinoneck.store.images import image_ids as image_ids
from dinoneck.store.memory import MemoryStore as MemoryStore
from dinoneck.store.memory import StoreDataset as StoreDataset
