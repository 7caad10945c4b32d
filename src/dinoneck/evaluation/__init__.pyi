"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.evaluation.dispatch import evaluate as evaluate
