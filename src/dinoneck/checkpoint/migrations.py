# ruff: noqa
# mypy: ignore-errors
from dinoneck.checkpoint.migrate import *
