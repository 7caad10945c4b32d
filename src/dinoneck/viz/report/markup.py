"""HTML built from elements: whatever is not markup already is escaped, so no text of a file becomes markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

from dinoneck.errors import printable

LONGEST_TEXT = 1000
_VOID = frozenset({"meta", "link", "img", "input", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return one element; children that are no :class:`Markup` and all attributes are escaped.

    Args:
        name: of the element.
        *children: markup, or anything that is shown as text; None is left out.
        **attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None and False leave one out, True
            sets it without a value.

    Examples:
        >>> str(element("td", "<script>", class_="number"))
        '<td class="number">&lt;script&gt;</td>'
    """
    told = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    opening = f"<{name}{told}>"
    return Markup(opening if name in _VOID else f"{opening}{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """Return children one after the other, escaped where they are no markup."""
    return Markup("".join(_escaped(child) for child in children if child is not None))


def raw(name: str, text: str) -> Markup:
    """Return a ``style`` or ``script`` element with a constant of ours in it; never with text of a file."""
    return Markup(f"<{name}>{text}</{name}>")


def named(text: object) -> Markup:
    """Return a name of a stranger's choice, kept from turning the direction of the text around it."""
    return element("bdi", text)


def plain(text: object) -> str:
    """Return text with what steers or hides spelled out, of limited length, not yet escaped."""
    shown = printable(str(text))
    return shown if len(shown) <= LONGEST_TEXT else f"{shown[: LONGEST_TEXT - 1]}…"


def _escaped(child: object) -> str:
    return child if isinstance(child, Markup) else html.escape(plain(child), quote=True)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True or value is False:
        return f" {name}" if value else ""
    text = value if isinstance(value, Markup) else html.escape(plain(value), quote=True)
    return f' {name}="{text}"'
