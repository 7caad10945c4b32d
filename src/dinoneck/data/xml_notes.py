"""XML notes of raster files: their elements and attributes, by names in lower case without prefix.

The parsers of Python expand entities, of which a small file makes any amount of text; this reader
knows none but those of single characters.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_DECLARED_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""")
# comments, declarations and types, which hold no notes
_NO_ELEMENTS = re.compile(r"<!--.*?-->|<\?.*?\?>|<![A-Z][^>]*>", re.DOTALL)
_VERBATIM = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
# a slash of an end, a name, attributes whose quoted values may hold any character, and the text
_TAG = re.compile(r"""<(/?)([\w:.-]+)((?:[^<>"']|"[^"]*"|'[^']*')*)>([^<]*)""")
_ATTRIBUTE = re.compile(r"""([\w:.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


@dataclass
class Element:
    """An element of an XML text.

    Attributes:
        name: in lower case, without the prefix of a namespace.
        attributes: by names of the same form.
        text: what follows the start of the element, up to the next element.
        children: the elements in it.
    """

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def named(self, *names: str) -> Iterator[Element]:
        """Yield the elements of these names at any depth, in the order of the text."""
        # a list and no recursion: a file may nest its elements deeper than Python calls functions
        waiting = self.children[::-1]
        while waiting:
            element = waiting.pop()
            if element.name in names:
                yield element
            waiting += element.children[::-1]

    def first_text(self, name: str) -> str:
        """Return the text of the first element of a name; "" if there is none."""
        for element in self.named(name):
            return element.text
        return ""


def parse(content: bytes) -> Element | None:
    """Return an element that holds those of an XML text; None if it holds none, or an end is missing or too many."""
    text = _decode(content)
    text = _NO_ELEMENTS.sub("", text)
    text = _VERBATIM.sub(lambda match: html.escape(match[1]), text)
    document = Element("")
    open_elements = [document]
    for match in _TAG.finditer(text):
        is_end = match[1] == "/"
        if is_end:
            is_any_open = len(open_elements) > 1  # the first is the document, which has no end
            if not is_any_open or _plain_name(match[2]) != open_elements[-1].name:
                return None
            open_elements.pop()
            continue
        element = _element(match)
        open_elements[-1].children.append(element)
        if not match[3].endswith("/"):
            open_elements.append(element)
    if len(open_elements) > 1 or not document.children:
        return None
    return document


def _element(match: re.Match[str]) -> Element:
    element = Element(_plain_name(match[2]), text=html.unescape(match[4]).strip())
    for name, in_double_quotes, in_single_quotes in _ATTRIBUTE.findall(match[3]):
        value = in_double_quotes or in_single_quotes
        element.attributes[_plain_name(name)] = html.unescape(value).strip()
    return element


def _plain_name(name: str) -> str:
    return name.rpartition(":")[2].lower()


def _decode(content: bytes) -> str:
    """The text by its first bytes, else by the encoding that it declares, else UTF-8."""
    declared = _DECLARED_ENCODING.match(content)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif content[1:2] == b"\0":
        encoding = "utf-16-le"
    elif content[:1] == b"\0":
        encoding = "utf-16-be"
    elif declared is not None:
        encoding = declared[1].decode("ascii")
    else:
        encoding = "utf-8"
    try:
        return content.decode(encoding, errors="replace")
    except (LookupError, UnicodeError):  # no such encoding, or one that replaces no characters
        return content.decode("utf-8", errors="replace")
