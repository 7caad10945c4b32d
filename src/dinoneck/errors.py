"""Everything dinoneck raises on purpose: one family, so that one ``except`` catches it.

Each child also is a builtin exception, so code that knows nothing of dinoneck catches it too. A
message states what was wrong (with the values), what was expected, which argument or file it came
from and what to do.
"""

from __future__ import annotations

from dinoneck.text import message_line


class DinoneckError(Exception):
    """Parent of every error that dinoneck raises on purpose."""


class GridError(DinoneckError, ValueError):
    """An image size, a patch grid and a number of tokens do not fit together."""


class ShapeError(DinoneckError, ValueError):
    """A tensor has another shape, dtype or content than the module was built for."""


class ConfigError(DinoneckError, ValueError):
    """A constructor argument or a configuration value is unknown, mistyped or out of range."""


class RegistryError(DinoneckError, LookupError):
    """A ``head_type`` is not registered, or cannot be registered."""


class BackboneError(DinoneckError, RuntimeError):
    """A backbone is unknown, cannot be loaded, or its weights do not fit."""


class StoreError(DinoneckError, OSError):
    """A feature store cannot be created, opened, read or written."""


class DataError(DinoneckError, ValueError):
    """An image, a table or a target value cannot be used."""


class BusyError(DinoneckError, RuntimeError):
    """The queue is full or closed; the request itself is valid."""


class CheckpointError(DinoneckError, OSError):
    """A checkpoint cannot be written, or was refused while reading.

    Attributes:
        step: the step of reading or writing that refused, one of ``file, header, json, schema,
            registry, config, tensors, digest, finite, pairing, write, hub``.
    """

    def __init__(self, message: str, *, step: str = "file") -> None:
        super().__init__(message_line(message))
        self.step = step
