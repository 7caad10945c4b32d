"""The plain form of a JSON text: its values, and at each object and list how it is written.

Two texts have the same form exactly if they are the same text, apart from the values that are left
out. The spaces of an object or list are its type in the plain form, so that a report that is
written compactly differs at each of them, and a key that is added differs once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.against.compare import typed
from tests.against.left_out import LEFT_OUT, Keys, Paths, is_left_out

SPACES = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


def read_document(
    text: str, *, left_out: Paths = (), path: Keys = (), words: Callable[[str], str] = str
) -> Any:
    """Return the plain form of a JSON text.

    Args:
        text: the whole document.
        left_out: paths of values that are not compared.
        path: where the document is, before the keys in it.
        words: replaces what differs from run to run in a text.

    Raises:
        ValueError: if it is no JSON.
    """
    json.loads(text)  # below the text is known to be right
    reader = Reader(text, left_out, words)
    before = reader.skip_spaces()
    value = reader.read(path)
    after = text[reader.position :]
    return typed(f"JSON between {before!r} and {after!r}", value)


class Reader:
    """Reads a right JSON text from its begin to its end."""

    def __init__(self, text: str, left_out: Paths, words: Callable[[str], str]) -> None:
        self.text = text
        self.left_out = left_out
        self.words = words
        self.position = 0

    def skip_spaces(self) -> str:
        """Skip spaces and line ends; return them."""
        match = SPACES.match(self.text, self.position)
        assert match is not None
        self.position = match.end()
        return match[0]

    def skip(self, character: str) -> None:
        assert self.text[self.position] == character
        self.position += 1

    def read_token(self) -> tuple[Any, str]:
        """Read a value; return it and how it is written."""
        start = self.position
        value, self.position = DECODER.raw_decode(self.text, start)
        return value, self.text[start : self.position]

    def read(self, path: Keys) -> Any:
        """Read a value; return its plain form."""
        if is_left_out(path, self.left_out):
            self.read_token()
            return LEFT_OUT
        if self.text[self.position] == "{":
            return self.read_object(path)
        if self.text[self.position] == "[":
            return self.read_list(path)
        value, token = self.read_token()
        plain = self.words(value) if isinstance(value, str) else value
        style = style_of(value, token)
        return typed(f"JSON {self.words(style)}", plain) if style else plain

    def read_object(self, path: Keys) -> Any:
        members: dict[str, Any] = {}
        spaces: dict[str, None] = {}  # without repetitions, in their order
        self.skip("{")
        after = self.skip_spaces()
        while self.text[self.position] != "}":
            key, token = self.read_token()
            before_colon = self.skip_spaces()
            self.skip(":")
            after_colon = self.skip_spaces()
            name = self.words(key)
            style = style_of(key, token)
            if style:
                name = f"{name} ({style})"
            if name in members:
                name = f"{name} (time {self.times(members, name)})"
            members[name] = self.read((*path, key))
            spaces[f"{after!r} {before_colon!r}:{after_colon!r}"] = None
            after = self.skip_comma()
        self.skip("}")
        return typed(f"JSON object: {', '.join(spaces)}, end {after!r}", members)

    def read_list(self, path: Keys) -> Any:
        items: list[Any] = []
        spaces: dict[str, None] = {}
        self.skip("[")
        after = self.skip_spaces()
        while self.text[self.position] != "]":
            items.append(self.read((*path, str(len(items)))))
            spaces[repr(after)] = None
            after = self.skip_comma()
        self.skip("]")
        return typed(f"JSON list: {', '.join(spaces)}, end {after!r}", items)

    def skip_comma(self) -> str:
        """Skip the comma after a value, if there is one; return the spaces around it."""
        before = self.skip_spaces()
        if self.text[self.position] != ",":
            return before
        self.skip(",")
        after = self.skip_spaces()
        return f"{before},{after}" if before else after

    @staticmethod
    def times(members: dict[str, Any], name: str) -> int:
        """Return how often a key was there, with this time."""
        count = 2
        while f"{name} (time {count})" in members:
            count += 1
        return count


def style_of(value: Any, token: str) -> str:
    """Say how a number, text or other single value is written, if not as ``json.dumps`` does."""
    if token == json.dumps(value):
        return ""
    if token == json.dumps(value, ensure_ascii=False):
        return "unescaped"
    return f"written {token}"
