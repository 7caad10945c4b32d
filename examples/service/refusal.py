"""Everything the service refuses: a status, a code for machines, a sentence for people."""

from __future__ import annotations


class Refusal(Exception):
    """A request that is not answered; what is wrong, what was expected and what to do is in the sentence.

    Args:
        status: HTTP status.
        code: one word that clients may rely on.
        sentence: for people.
        retry_after: seconds after which the same request may be answered; None = it will not be.
    """

    def __init__(self, status: int, code: str, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.code, self.retry_after = status, code, retry_after

    def body(self) -> dict[str, str]:
        """Return the JSON that is sent."""
        return {"error": str(self), "code": self.code}

    def headers(self) -> dict[str, str]:
        """Return the headers that are sent with it."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def shown(name: str) -> str:
    """Return a stranger's text as it may stand in a message: short, and without signs that steer a terminal."""
    short = name if len(name) <= 80 else f"{name[:60]}...{name[-15:]}"
    return repr("".join(sign if sign.isprintable() else "?" for sign in short))
