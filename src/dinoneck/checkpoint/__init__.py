"""One .safetensors file per trained head: weights, configuration, backbone record, inputs and tasks."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    card=["model_card"],
    format=["read_header"],
    head_checkpoint=["HeadCheckpoint", "load_head", "save_head"],
    hub=["push_to_hub"],
    importing=["import_weights"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
