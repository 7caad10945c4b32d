"""YAML from strangers: plain values that are written out, no larger in memory than the text makes them."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without anchors and aliases: merged into each other, ten lines of them fill any memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node, unless it has a name or stands for one that has."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if (name := getattr(event, "anchor", None)) is not None:
            raise ComposerError(
                None,
                None,
                f"anchors and aliases (&{name}, *{name}) are not read; write the value out where it is needed",
                event.start_mark,
            )
        return super().compose_node(parent, index)


def read_plain(text: str) -> Any:
    """Return what a text says.

    Raises:
        YAMLError: if it is no YAML, or has anchors or aliases.
        ValueError: if a value is none, such as a date with a month 13.
        RecursionError: if it is nested too deep.
    """
    return PlainLoader(text).get_single_data()
