"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.checkpoint.card import model_card as model_card
from dinoneck.checkpoint.format import read_header as read_header
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint as HeadCheckpoint
from dinoneck.checkpoint.head_checkpoint import load_head as load_head
from dinoneck.checkpoint.head_checkpoint import save_head as save_head
from dinoneck.checkpoint.hub import push_to_hub as push_to_hub
from dinoneck.checkpoint.importing import import_weights as import_weights
