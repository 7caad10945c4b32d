"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.evaluation.run import evaluate as evaluate
