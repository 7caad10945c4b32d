"""The files of a multipart request: the bytes are counted before Starlette's parser stores them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from dinoneck.errors import Refusal
from dinoneck.serve.settings import Settings

EXPECTED = "expected multipart/form-data with one file per image, as curl -F image=@field.jpg sends it"


def quoted(text: str | None) -> str:
    """Return a client's text for a message: short, with control characters spelled out."""
    text = text or ""
    return repr(text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}")


@asynccontextmanager
async def received_files(request: Request, settings: Settings) -> AsyncIterator[list[UploadFile]]:
    """Yield the files of a multipart request; they are closed at the end.

    Raises:
        Refusal: 400 if the body is malformed or ends early, 413 if it is too large or has too many files, 415 if it is
            not plain multipart, 422 if it holds no file, or a text field.
    """
    most, length = settings.max_upload_bytes, request.headers.get("content-length", "")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refusal(415, "not_multipart", f"the body is {quoted(kind.decode('latin-1'))}; {EXPECTED}")
    last_line = b"--%b--" % options.get(b"boundary", b"")
    seen, end = 0, b""

    async def counted() -> Message:
        nonlocal seen, end
        message = await request.receive()
        seen += len(message.get("body", b""))
        end = (end + message.get("body", b""))[-len(last_line) - 2 :]  # a line break may follow
        if seen > most:
            raise _too_large(f"more than {most}", most)
        return message

    if length.isdecimal() and float(length) > most:
        raise _too_large(length[:20], most)
    try:
        form = await Request(request.scope, counted).form(max_files=settings.max_images + 1000)
    except (ClientDisconnect, HTTPException, FormParserError) as error:
        reason = getattr(error, "detail", type(error).__name__)
        raise Refusal(400, "malformed_upload", f"the body is malformed: {reason}; {EXPECTED}") from None
    try:
        if last_line not in end:  # the parser leaves out an unfinished part without an error
            raise Refusal(400, "malformed_upload", f"the body ends before its last boundary; {EXPECTED}")
        fields = form.multi_items()
        files = [value for _, value in fields if isinstance(value, UploadFile)]
        if not files or len(files) < len(fields):
            names = [quoted(name) for name, value in fields if isinstance(value, str)]
            found = f"the field {names[0]} is not a file" if names else "the body holds no file"
            raise Refusal(422, "no_image", f"{found}; {EXPECTED}")
        if len(files) > settings.max_images:
            found = f"the body holds {len(files)} files; expected {settings.max_images} at most"
            raise Refusal(413, "too_many_images", f"{found}. Send them in several requests")
        yield files
    finally:
        await form.close()


def _too_large(length: str, most: int) -> Refusal:
    found = f"the body has {length} bytes; expected {most} at most"
    return Refusal(413, "too_large", f"{found}. Send fewer images at once, or smaller ones")
