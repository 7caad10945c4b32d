"""A request that the service refuses, as an exception with its HTTP response."""

from __future__ import annotations

from dinoneck.errors import DinoneckError


class Refusal(DinoneckError):
    """A request that the HTTP service refuses.

    Args:
        status: HTTP status.
        code: a fixed word that clients may rely on.
        sentence: the value, what was expected and the remedy.
        retry_after: seconds after which the same request may succeed; None = never.
    """

    def __init__(
        self, status: int, code: str, sentence: str, retry_after: int | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, str]:
        """Return the JSON body."""
        return {"error": str(self), "code": self.code}

    def headers(self) -> dict[str, str]:
        """Return the extra headers."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(self.retry_after)}
