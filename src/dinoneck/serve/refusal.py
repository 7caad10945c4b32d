"""Requests that the service refuses: a status, a code for programs, a sentence for people."""

from __future__ import annotations


class Refusal(Exception):
    """A request that gets an error response.

    Args:
        status: HTTP status.
        code: a fixed word that clients may rely on.
        sentence: the value, what was expected and the remedy.
        retry_after: seconds after which the same request may succeed; None = never.
    """

    def __init__(self, status: int, code: str, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.code, self.retry_after = status, code, retry_after

    def body(self) -> dict[str, str]:
        """Return the JSON body."""
        return {"error": str(self), "code": self.code}

    def headers(self) -> dict[str, str]:
        """Return the extra headers."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def quoted(text: str) -> str:
    """Return a client's text for a message: short, and without characters that control a terminal."""
    short = text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
    return repr("".join(sign if sign.isprintable() else "?" for sign in short))
