# ruff: noqa: A005
"""The documentation site as built: links, anchors, assets, names; and, with a Chromium at hand, how pages look."""
