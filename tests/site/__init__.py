# ruff: noqa: A005
"""The documentation site as built: links, anchors, assets, names."""
