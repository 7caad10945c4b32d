# ruff: noqa
# mypy: ignore-errors
from dinoneck.checkpoint.tensors import *
