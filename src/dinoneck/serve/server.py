"""The server process: run the app until SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable

import torch

from dinoneck.errors import DinoneckError, missing_extra
from dinoneck.serve.app import create_app
from dinoneck.serve.settings import Settings

try:
    import uvicorn
except ImportError as error:
    raise missing_extra("uvicorn", "serve") from error

logger = logging.getLogger("dinoneck.serve")


def serve(
    head: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    announce: Callable[[str], object] | None = None,
) -> None:
    """Serve a head or a detector over HTTP until SIGTERM or Ctrl-C; accepted requests are completed first.

    It has no authentication, TLS or rate limit: run it behind a proxy that has them. Torch's threads are shared among
    ``settings.concurrency``, except with ``batch``.

    Args:
        head: a head file, a folder of head files, or a Hub repository.
        host: address to listen on; the default is reachable from this machine only.
        port: 0 = any free port.
        settings: the limits.
        announce: called with a line that has the address, when the head is loaded; None = the line is logged.

    Raises:
        CheckpointError: if the head cannot be read.
        DinoneckError: if its backbone cannot be loaded, or it cannot listen on the address.
        ImportError: if the extra ``serve`` is missing.
    """
    settings = settings or Settings()
    with _listener(host, port) as listener:  # a client that connects before the head is loaded waits
        if settings.batch == 1:
            torch.set_num_threads(max(1, torch.get_num_threads() // settings.concurrency))
        app = create_app(head, settings=settings)
        patience = math.ceil(settings.timeout) + 1
        config = uvicorn.Config(app, access_log=False, server_header=False, timeout_graceful_shutdown=patience)
        name = f"[{host}]" if ":" in host else host
        (announce or logger.info)(f"listening on http://{name}:{listener.getsockname()[1]}")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises a signal again after the shutdown
            uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a body waits 40 ms for its header's ACK
        return listener
    except OSError as error:
        expected = "expected an address of this machine and a free port"
        raise DinoneckError(f"cannot listen on {host}:{port}: {error.strerror}; {expected}") from error
