"""Speed of necks, heads, backbones and points; see ``run``."""

from benchmarks.speed.run import ROUNDS, __doc__, arguments, measure, stem

__all__ = ["ROUNDS", "__doc__", "arguments", "measure", "stem"]
