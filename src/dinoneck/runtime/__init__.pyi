"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.runtime.exported import ExportedDetector as ExportedDetector
from dinoneck.runtime.exported import ExportedPrediction as ExportedPrediction
from dinoneck.runtime.exported import ExportedPredictor as ExportedPredictor
from dinoneck.runtime.exported import open_exported as open_exported
