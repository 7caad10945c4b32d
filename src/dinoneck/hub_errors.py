"""Errors of the Hugging Face Hub in plain words, for backbones' weights and for heads.

The client raises many unrelated types, and their texts may hold access tokens and signed addresses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

_LONGEST = 200
_SECRET = re.compile(r"hf_[A-Za-z0-9]{4,}|(?i:bearer|authorization)[\s:=]+\S+")
_QUERY = re.compile(r"\?[^\s'\")]*=[^\s'\")]*")  # of addresses that the client has shortened too
_STORAGE_NO = re.compile(r"HTTP status client error \((4\d\d[ \w]*)\)")
_LOST_RACE = (409, 412)
_TRANSIENT = (408, 429)
_LOG_IN = "log in with an account that has access ('hf auth login')"


def refusal(error: Exception, repo_id: str, revision: str | None = None, token: str | None = None) -> str | None:
    """Return why the hub refused a request; None when it could not be asked or was busy.

    It distinguishes: no such repository, no such revision, private or not logged in, a token that is not accepted or
    lacks the right, gated, disabled, no such file, a lost race between two commits.

    Args:
        error: what the client raised.
        repo_id: ``user/name``.
        revision: what was asked for.
        token: the access token in use, so that it can be kept out of the message; the stored one is known.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    error = _inner(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    where = f"{repo_id} ({hub.constants.ENDPOINT}/{repo_id})"
    text = None
    if isinstance(error, errors.HFValidationError):
        text = f"{repo_id!r} is not a valid name of a hub repository: {redacted_line(error, token)}"
    elif not isinstance(error, errors.HfHubHTTPError):
        return None
    elif isinstance(error, errors.GatedRepoError):
        text = f"the hub repository {where} is gated: accept its owner's terms on that page, and {_LOG_IN}"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"the hub repository {where} has no branch, tag or commit {revision or 'main'!r}"
    elif isinstance(error, errors.EntryNotFoundError):
        text = f"the hub repository {where} does not have that file: {redacted_line(error, token)}"
    elif status == 401 and token is None and hub.get_token() is None:  # without a login the status is 401 for both
        text = f"the hub repository {where} does not exist, or it is private and you are not logged in; {_LOG_IN}"
    elif isinstance(error, errors.RepositoryNotFoundError) and status != 401:
        text = f"the hub repository {where} does not exist, or it is private and your account may not see it"
    elif status == 401:
        text = f"the hub does not accept your access token (401): it was revoked, has expired or is cut; {_LOG_IN}"
    elif status == 403:
        text = f"your account or its access token may not do this with {where} (403): {redacted_line(error, token)}"
    elif status in _LOST_RACE:
        text = (
            f"another commit to {where} was made meanwhile ({status}); nothing of this push is in it. Look at that "
            "page, then push again"
        )
    elif status is not None and 400 <= status < 500 and status not in _TRANSIENT:
        text = f"the hub refuses this for {where} ({status}): {redacted_line(error, token)}"
    return text


def unreachable(error: Exception, token: str | None = None) -> str:
    """Return why the hub did not answer, and the remedy: offline by choice, busy, or not reached."""
    from huggingface_hub import errors

    error = _inner(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub was not asked; unset it to go online"
    if status is not None:
        return f"the hub is busy or down ({status}); try again later"
    line = redacted_line(error, token)
    if no := _STORAGE_NO.search(line):  # hf_xet, which has no types of its own for this
        return f"the hub's storage refuses this ({no[1]})"
    return f"the hub could not be reached ({type(error).__name__}: {line}); check the network"


def redacted_line(error: object, token: str | None = None) -> str:
    """Return the first line of a message, printable, without access tokens and the signed part of addresses."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    from huggingface_hub import get_token

    for secret in filter(None, (token, get_token())):
        for form in (secret, repr(secret)[1:-1]):
            line = line.replace(form, "<secret>")
    line = _SECRET.sub("<secret>", _QUERY.sub("", line))
    return "".join(sign if sign.isprintable() else " " for sign in line)[:_LONGEST]


def cache_folder() -> Path:
    """Return the folder that the client keeps downloads in; it may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _inner(error: Exception) -> Exception:
    """The hub's response inside what the client makes of it: 'not in the cache', 'error while uploading'."""
    from huggingface_hub import errors

    cause = error.__cause__
    wrapped = isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and isinstance(cause, Exception)
    return cast("Exception", cause) if wrapped else error
