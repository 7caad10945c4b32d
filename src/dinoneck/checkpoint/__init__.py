"""One .safetensors file per trained head: weights, configuration, backbone record, inputs and tasks."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.checkpoint.card import model_card as model_card
    from dinoneck.checkpoint.cls_gating_weights import cls_gating_tasks as cls_gating_tasks
    from dinoneck.checkpoint.cls_gating_weights import import_cls_gating as import_cls_gating
    from dinoneck.checkpoint.ensemble_folder import EnsembleFolder as EnsembleFolder
    from dinoneck.checkpoint.ensemble_folder import Member as Member
    from dinoneck.checkpoint.ensemble_folder import load_ensemble as load_ensemble
    from dinoneck.checkpoint.ensemble_folder import save_ensemble as save_ensemble
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint as HeadCheckpoint
    from dinoneck.checkpoint.head_checkpoint import load_head as load_head
    from dinoneck.checkpoint.head_checkpoint import save_head as save_head
    from dinoneck.checkpoint.header import read_header as read_header
    from dinoneck.checkpoint.hub import HubHead as HubHead
    from dinoneck.checkpoint.hub_pull import pull_from_hub as pull_from_hub
    from dinoneck.checkpoint.hub_push import Pushed as Pushed
    from dinoneck.checkpoint.hub_push import push_to_hub as push_to_hub
    from dinoneck.checkpoint.legacy import ImportedHead as ImportedHead
    from dinoneck.checkpoint.legacy import LegacyFile as LegacyFile
    from dinoneck.checkpoint.legacy import import_biomass as import_biomass
    from dinoneck.checkpoint.legacy import import_described as import_described
    from dinoneck.checkpoint.legacy import import_patch_mean as import_patch_mean
    from dinoneck.checkpoint.legacy import read_legacy as read_legacy

_HOMES = {
    "cls_gating_tasks": "dinoneck.checkpoint.cls_gating_weights",
    "import_cls_gating": "dinoneck.checkpoint.cls_gating_weights",
    "EnsembleFolder": "dinoneck.checkpoint.ensemble_folder",
    "ImportedHead": "dinoneck.checkpoint.legacy",
    "LegacyFile": "dinoneck.checkpoint.legacy",
    "Member": "dinoneck.checkpoint.ensemble_folder",
    "import_biomass": "dinoneck.checkpoint.legacy",
    "import_described": "dinoneck.checkpoint.legacy",
    "import_patch_mean": "dinoneck.checkpoint.legacy",
    "load_ensemble": "dinoneck.checkpoint.ensemble_folder",
    "read_legacy": "dinoneck.checkpoint.legacy",
    "save_ensemble": "dinoneck.checkpoint.ensemble_folder",
    "model_card": "dinoneck.checkpoint.card",
    "HubHead": "dinoneck.checkpoint.hub",
    "pull_from_hub": "dinoneck.checkpoint.hub_pull",
    "push_to_hub": "dinoneck.checkpoint.hub_push",
    "Pushed": "dinoneck.checkpoint.hub_push",
    "HeadCheckpoint": "dinoneck.checkpoint.head_checkpoint",
    "load_head": "dinoneck.checkpoint.head_checkpoint",
    "save_head": "dinoneck.checkpoint.head_checkpoint",
    "read_header": "dinoneck.checkpoint.header",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
