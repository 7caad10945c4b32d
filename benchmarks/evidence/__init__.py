"""What dinoneck reaches on real data and on generated images; see ``run``."""

from benchmarks.evidence.weights import WEIGHTS  # isort: skip - before anything imports huggingface_hub
from benchmarks.evidence.run import ROUNDS, arguments, measure, stem

__all__ = ["ROUNDS", "WEIGHTS", "arguments", "measure", "stem"]
