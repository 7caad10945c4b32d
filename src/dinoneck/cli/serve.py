"""``dinoneck serve``: predictions over HTTP."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import whole
from dinoneck.serve.settings import Settings


def serve(
    head: Annotated[str, Positional, arg(metavar="HEAD")],
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, whole(0, 65535)] = 8000,
    settings: Annotated[Settings, arg(name="")] = Settings(),
) -> None:
    """Serve a head or a detector over HTTP until SIGTERM or Ctrl-C.

    It has neither authentication nor TLS nor a rate limit: run it behind a proxy that has them.

    Example: dinoneck serve head.safetensors --port 8000

    Args:
        head: a head file, a folder of head files, or a Hub repository (user/name).
        host: address to listen on; by default reachable from this machine only.
        port: 0 is any free port, which is printed.
        settings: the limits.
    """
    from dinoneck.serve import serve as serve_head

    serve_head(head, host=host, port=port, settings=settings, announce=partial(print, flush=True))
