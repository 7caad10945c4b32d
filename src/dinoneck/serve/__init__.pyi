"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.serve.app import create_app as create_app
from dinoneck.serve.app import serve as serve
from dinoneck.serve.settings import Settings as Settings
