"""Speed of necks, heads, backbones and points; see ``run``."""

from benchmarks.speed.run import ROUNDS, arguments, measure, stem

__all__ = ["ROUNDS", "arguments", "measure", "stem"]
