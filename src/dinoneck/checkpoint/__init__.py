"""One .safetensors file per trained head: weights, configuration, backbone record, inputs and tasks."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    card=["model_card"],
    format=["read_header"],
    head_checkpoint=["HeadCheckpoint", "load_head", "save_head"],
    hub=["push_to_hub"],
    importing=["import_weights"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
