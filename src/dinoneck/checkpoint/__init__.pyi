"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.checkpoint.card import model_card as model_card
from dinoneck.checkpoint.file import read_header as read_header
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint as HeadCheckpoint
from dinoneck.checkpoint.head_checkpoint import load_head as load_head
from dinoneck.checkpoint.head_checkpoint import save_head as save_head
from dinoneck.checkpoint.hub import HubHead as HubHead
from dinoneck.checkpoint.hub import Pushed as Pushed
from dinoneck.checkpoint.hub import pull_from_hub as pull_from_hub
from dinoneck.checkpoint.hub import push_to_hub as push_to_hub
from dinoneck.checkpoint.legacy import ImportedHead as ImportedHead
from dinoneck.checkpoint.legacy import LegacyFile as LegacyFile
from dinoneck.checkpoint.legacy import cls_gating_tasks as cls_gating_tasks
from dinoneck.checkpoint.legacy import import_biomass as import_biomass
from dinoneck.checkpoint.legacy import import_cls_gating as import_cls_gating
from dinoneck.checkpoint.legacy import import_described as import_described
from dinoneck.checkpoint.legacy import import_patch_mean as import_patch_mean
from dinoneck.checkpoint.legacy import read_legacy as read_legacy
