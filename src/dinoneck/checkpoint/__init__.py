"""One .safetensors file per trained head: weights, configuration, backbone record, inputs and tasks."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    card=["model_card"],
    file=["read_header"],
    head_checkpoint=["HeadCheckpoint", "load_head", "save_head"],
    hub=["HubHead", "Pushed", "pull_from_hub", "push_to_hub"],
    legacy=[
        "ImportedHead",
        "LegacyFile",
        "cls_gating_tasks",
        "import_biomass",
        "import_cls_gating",
        "import_described",
        "import_patch_mean",
        "read_legacy",
    ],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
