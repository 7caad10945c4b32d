"""Multipart bodies, read as they arrive: bytes, files and time are limited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from dinoneck.errors import Refusal, missing_extra

try:
    from fastapi import Request
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header
    from starlette.requests import ClientDisconnect
except ImportError as error:
    raise missing_extra("fastapi", "serve") from error

from dinoneck.serve.settings import Settings

EXPECTED = "expected multipart/form-data with one file per image, as curl -F image=@field.jpg sends it"


class Upload(NamedTuple):
    """One file of a request."""

    name: str
    data: bytes


def quoted(text: str) -> str:
    """Return a client's text for a message: short, and without characters that control a terminal."""
    short = text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
    return repr("".join(sign if sign.isprintable() else "?" for sign in short))


async def read_uploads(request: Request, settings: Settings) -> list[Upload]:
    """Return the files of a multipart request.

    The body is refused at the first byte above the limit, whatever its Content-Length is.

    Raises:
        Refusal: 400 if the body is malformed or ends early, 408 if it takes too long, 413 if it is too large or has too
            many files, 415 if it is not multipart, 422 if it holds no file, or a text field.
    """
    form = _Form(_boundary(request), settings.max_images)
    _check_length(request, settings)
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in _limited(request.stream(), settings):
                form.write(chunk)
    except TimeoutError:
        raise Refusal(
            408, "too_slow", f"the body did not arrive within {settings.body_timeout:g} s; send smaller images"
        ) from None
    except ClientDisconnect:
        raise Refusal(400, "malformed_upload", "the connection ended before the body did; send it again") from None
    return form.uploads()


async def _limited(stream: AsyncIterator[bytes], settings: Settings) -> AsyncIterator[bytes]:
    seen = 0
    async for chunk in stream:
        seen += len(chunk)
        if seen > settings.max_upload_bytes:
            raise _too_large(f"more than {settings.max_upload_bytes}", settings)
        yield chunk


def _check_length(request: Request, settings: Settings) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > settings.max_upload_bytes:
        raise _too_large(quoted(length).strip("'"), settings)


def _too_large(length: str, settings: Settings) -> Refusal:
    return Refusal(
        413,
        "too_large",
        f"the body has {length} bytes; expected {settings.max_upload_bytes} at most. "
        "Send fewer images at once, or smaller ones",
    )


def _boundary(request: Request) -> bytes:
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise Refusal(415, "not_multipart", f"the body is encoded as {quoted(coding)}; send it plain")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refusal(
            415, "not_multipart", f"the body is {quoted(kind.decode('latin-1')) if kind else 'of no type'}; {EXPECTED}"
        )
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Refusal(400, "malformed_upload", f"its boundary has {len(boundary)} characters, expected 1 to 70")
    return boundary


class _Form:
    """The files of a multipart body; text fields are refused."""

    def __init__(self, boundary: bytes, max_files: int) -> None:
        self._max_files = max_files
        self._files: list[tuple[str, bytearray]] = []
        self._field, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._take_header,
                "on_headers_finished": self._open_file,
                "on_part_data": lambda data, start, end: self._files[-1][1].extend(memoryview(data)[start:end]),
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes of the body."""
        try:
            if chunk and not self._ended:  # bytes after the last boundary are ignored
                self._parser.write(chunk)
        except FormParserError as error:
            raise Refusal(400, "malformed_upload", f"the body is malformed: {error}; {EXPECTED}") from None

    def uploads(self) -> list[Upload]:
        """Return the files of the complete body."""
        if not self._ended:
            raise Refusal(400, "malformed_upload", f"the body ends before its last boundary; {EXPECTED}")
        if not self._files:
            raise Refusal(422, "no_image", f"the body holds no file; {EXPECTED}")
        uploads = []
        while self._files:  # one by one: never two copies of all of them
            name, data = self._files.pop(0)
            uploads.append(Upload(name, bytes(data)))
        return uploads

    def _end(self) -> None:
        self._ended = True

    def _take_header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _open_file(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if kind != b"form-data" or b"filename" not in options:
            field = quoted(options.get(b"name", b"").decode("utf-8", "replace"))
            raise Refusal(422, "no_image", f"the field {field} is not a file; {EXPECTED}")
        if len(self._files) == self._max_files:
            raise Refusal(
                413,
                "too_many_images",
                f"the body holds more than {self._max_files} files, expected no more; send them in several requests",
            )
        self._files.append((options[b"filename"].decode("utf-8", "replace"), bytearray()))
