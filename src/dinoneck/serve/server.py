"""The server process: run the app until SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator

from dinoneck.errors import DinoneckError
from dinoneck.inference.sources import listed, opened
from dinoneck.serve.app import create_app
from dinoneck.serve.connections import ClockedProtocol, uvicorn
from dinoneck.serve.settings import Settings

_SPARE_CONNECTIONS = 64


class _Server(uvicorn.Server):
    """Announces its address, which with port 0 is known only after the start."""

    announce: Callable[[str], object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with contextlib.suppress(SystemExit):  # where it cannot listen; it has logged why
            await super().startup(sockets)
        self.should_exit |= not self.started
        for server in getattr(self, "servers", ()):
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                self.announce(f"listening on http://{host}:{port}")


def serve(
    head: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    announce: Callable[[str], object] | None = None,
) -> None:
    """Serve a head or a detector over HTTP until SIGTERM or Ctrl-C; requests in progress are completed first.

    It has no authentication, TLS or rate limit: run it behind a proxy that has them.

    Args:
        head: a head file, a folder of head files, or a Hub repository.
        host: address to listen on; the default is reachable from this machine only.
        port: 0 = any free port.
        settings: the limits.
        announce: called with a line that has the address, when the service listens; None = it is logged.

    Raises:
        CheckpointError: if the head cannot be read.
        DinoneckError: if its backbone cannot be loaded, or it cannot listen on the address.
        ImportError: if the extra ``serve`` is missing.
    """
    opened(listed(head))
    settings = settings or Settings()
    failures: list[str] = []

    def stop(failure: str) -> None:
        failures.append(failure)
        server.should_exit = True

    limits = {"head_timeout_s": settings.body_timeout / 2, "max_open": settings.connections + _SPARE_CONNECTIONS}
    server = _Server(
        uvicorn.Config(
            create_app(head, settings=settings, on_failure=stop),
            host=host,
            port=port,
            http=type("Clocked", (ClockedProtocol,), {**limits, "waiting": {}}),
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=int(settings.timeout) + 1,
            access_log=False,
            server_header=False,
            log_config=None,
        )
    )
    server.announce = announce or logging.getLogger("dinoneck.serve").info
    for name in ("dinoneck.serve", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    with _signals_ignored_afterwards():
        server.run()
    if not server.started:
        failures.append(f"cannot listen on {host}:{port}; expected an address of this machine and a port that is free")
    if failures:
        raise DinoneckError(failures[0])


@contextlib.contextmanager
def _signals_ignored_afterwards() -> Iterator[None]:
    """Ignore SIGTERM and SIGINT outside the handlers of uvicorn, which raises them again after a shutdown."""
    before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
