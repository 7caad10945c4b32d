"""Errors of the Hugging Face Hub in plain words, for backbones' weights and for heads.

The client raises many unrelated types, and their texts may hold access tokens and signed addresses.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from dinoneck.text import printable

_LONGEST_LINE = 200  # characters of the client's message
_SECRET = re.compile(r"hf_[A-Za-z0-9]{4,}|(?i:bearer|authorization)[\s:=]+\S+")
_QUERY = re.compile(r"\?[^\s'\")]*=[^\s'\")]*")  # of addresses that the client has shortened too
_TRANSIENT = (None, 408, 429)
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_LOG_IN = "log in with an account that has access ('hf auth login')"


def refusal(
    error: Exception, repo_id: str, revision: str | None = None, token: str | None = None
) -> str | None:
    """Return why the hub refused a request; None when it could not be asked or was busy.

    It distinguishes: no such repository, no such revision, private or not logged in, a token that
    is not accepted, gated, no such file, a lost race between two commits.

    Args:
        error: what the client raised.
        repo_id: ``user/name``.
        revision: what was asked for.
        token: the access token in use, so that it can be kept out of the message; the stored one is
            known.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    error = _inner(error)
    line = redacted_line(error, token)
    status = _status(error)
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is not a valid name of a hub repository: {line}"
    if not isinstance(error, errors.HfHubHTTPError) or status in _TRANSIENT or status >= 500:
        return None
    # without one the status of what is missing is 401 too
    has_login = bool(token or hub.get_token())
    if isinstance(error, errors.GatedRepoError):
        reason = f"is gated: accept its owner's terms on that page, and {_LOG_IN}"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"has no branch, tag or commit {revision or 'main'!r}"
    elif isinstance(error, errors.EntryNotFoundError):
        reason = f"does not have that file: {line}"
    elif status == 401 and not has_login:
        reason = f"does not exist, or it is private and you are not logged in; {_LOG_IN}"
    elif status == 401:
        reason = f"is not given: the hub does not accept your access token (401); {_LOG_IN}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "does not exist, or it is private and your account may not see it"
    elif status in (409, 412):
        reason = f"has another commit meanwhile ({status}), and nothing of this push; push again"
    else:
        reason = f"refuses this to your account or its token ({status}): {line}"
    return f"the hub repository {repo_id} ({hub.constants.ENDPOINT}/{repo_id}) {reason}"


def unreachable(error: Exception, token: str | None = None) -> str:
    """Return why nothing arrived, and the remedy.

    It distinguishes: offline by choice, the hub is busy, the local cache cannot be written, the hub
    is not reached.
    """
    from huggingface_hub import constants, errors

    error = _inner(error)
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        return (
            f"the local cache {constants.HF_HUB_CACHE} cannot be written ({error.strerror}); make "
            "room, or ask for the right to write there, or set HF_HUB_CACHE to another folder"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub was not asked; unset it to go online"
    status = _status(error)
    if status is not None:
        return f"the hub is busy or down ({status}); try again later"
    return (
        f"the hub could not be reached ({type(error).__name__}: "
        f"{redacted_line(error, token)}); check the network"
    )


@contextmanager
def without_retries_logged() -> Iterator[None]:
    """Keep the client from logging its retries in the ``with`` block, unless it is told to log more (HF_HUB_VERBOSITY).

    What it raises at last is one sentence, see :func:`unreachable`.
    """
    from huggingface_hub.utils import logging as client_logging

    verbosity = client_logging.get_verbosity()
    if verbosity != logging.WARNING:
        yield
        return
    client_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        client_logging.set_verbosity(verbosity)


def redacted_line(error: object, token: str | None = None) -> str:
    """Return the first line of a message, printable, without access tokens and the signed part of addresses."""
    from huggingface_hub import get_token

    line = str(error).strip().partition("\n")[0] or "no message"
    for secret in (token, get_token()):
        if secret:
            line = line.replace(secret, "<secret>")
    line = _SECRET.sub("<secret>", _QUERY.sub("", line))
    return printable(line)[:_LONGEST_LINE]


def _status(error: Exception) -> int | None:
    """The HTTP status of the client's error; None if nothing was answered."""
    return cast("int | None", getattr(getattr(error, "response", None), "status_code", None))


def _inner(error: Exception) -> Exception:
    """The hub's response inside what the client makes of it: 'not in the cache', 'error while uploading'."""
    from huggingface_hub import errors

    cause = error.__cause__
    is_wrapper = isinstance(error, errors.LocalEntryNotFoundError | RuntimeError)
    if is_wrapper and isinstance(cause, Exception):
        return cause
    return error
