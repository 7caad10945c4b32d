"""One .safetensors file per trained head: weights, configuration, backbone record, inputs and tasks."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint as HeadCheckpoint
    from dinoneck.checkpoint.head_checkpoint import load_head as load_head
    from dinoneck.checkpoint.head_checkpoint import save_head as save_head
    from dinoneck.checkpoint.header import read_header as read_header

_HOMES = {
    "HeadCheckpoint": "dinoneck.checkpoint.head_checkpoint",
    "load_head": "dinoneck.checkpoint.head_checkpoint",
    "save_head": "dinoneck.checkpoint.head_checkpoint",
    "read_header": "dinoneck.checkpoint.header",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
