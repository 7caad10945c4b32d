"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.backbones.backbone import Backbone as Backbone
from dinoneck.backbones.load import load_backbone as load_backbone
from dinoneck.backbones.load import wrap_backbone as wrap_backbone
