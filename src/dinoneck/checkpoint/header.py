# ruff: noqa
# mypy: ignore-errors
from dinoneck.checkpoint.file import *
from dinoneck.checkpoint.file import _check_depth
from dinoneck.checkpoint.schema import *

MAX_EXTRA_BYTES = MAX_TEXT_BYTES
