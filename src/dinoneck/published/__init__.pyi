"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.published.detectors import PublishedDetector as PublishedDetector
from dinoneck.published.loading import load_published as load_published
from dinoneck.published.table import PublishedHead as PublishedHead
from dinoneck.published.table import list_published as list_published
