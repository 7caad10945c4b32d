"""``python -m examples.service HEAD``: serve a head until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn

from dinoneck.errors import DinoneckError
from dinoneck.inference.sources import listed, opened
from examples.service.app import build
from examples.service.clock import ClockedProtocol
from examples.service.settings import parsed


class Server(uvicorn.Server):
    """Says where it listens: with port 0 nobody else could know."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so on standard output."""
        await super().startup(sockets)
        for server in getattr(self, "servers", ()):
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                print(f"listening on http://{host}:{port}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service.

    Returns:
        0 after an orderly end, 1 if the backbone cannot be loaded, 2 for a head that cannot be read; uvicorn ends the
        process with 3 where it cannot listen, as on a port that is taken.
    """
    settings = parsed(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        opened(listed(settings.head))
    except DinoneckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failures: list[bool] = []

    def failed() -> None:
        failures.append(True)
        server.should_exit = True

    clocked = type("Clocked", (ClockedProtocol,), {"head_timeout_s": settings.body_timeout / 2})
    server = Server(
        uvicorn.Config(
            build(settings, failed),
            host=settings.host,
            port=settings.port,
            http=clocked,
            ws="none",
            lifespan="on",
            limit_concurrency=settings.connections,
            timeout_graceful_shutdown=int(settings.timeout) + 1,
            access_log=False,
            server_header=False,
            log_config=None,
        )
    )
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: None)  # uvicorn raises it once more when all is finished: that is an orderly end
    server.run()
    return 1 if failures or not server.started else 0


if __name__ == "__main__":
    raise SystemExit(main())
