"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.export.exporting import Exported as Exported
from dinoneck.export.exporting import export_head as export_head
from dinoneck.export.exporting import export_model as export_model
from dinoneck.export.program import Parity as Parity
