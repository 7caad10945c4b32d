"""``python -m tests.docs.sentences [PAGE ...]``: list the sentences of pages that have more than 28 words."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quick-start.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
MOST = 28
NOT_PROSE = re.compile(r"^```[\s\S]*?^```|^---\n[\s\S]*?^---$|^#.*$|^\s*[|!<].*$|^:::.*$", re.MULTILINE)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)(?:\{[^}]*\})?")
END = re.compile(r"(?<=[.!?:;])[*_\"')\]]*\s+(?=[A-Z0-9`*\"'(])|\n\s*\n|\n\s*[*-] ")


def long_sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield words and text of the sentences that are too long; code, tables, headings and addresses do not count."""
    prose = LINK.sub(r"\1", NOT_PROSE.sub("\n\n", text))
    for sentence in END.split(prose):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > MOST:
            yield len(words), " ".join(sentence.split())


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or PAGES:
        for count, sentence in long_sentences(page.read_text(encoding="utf-8")):
            print(f"{page}: {count} words: {sentence}")
