"""The groups of cases; each is a module of its name with ``CASES``: name -> function of a folder.

The modules import dinoneck, so they are imported by ``child.py`` alone.
"""

GROUPS = ("predictors", "training", "objects", "transcripts")
