"""``dinoneck serve``: predictions over HTTP."""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import fields
from functools import partial

from dinoneck.serve.settings import Settings

HELP = "serve a head or a detector over HTTP: images in, predictions out, every resource a client uses bounded"
EXAMPLE = "dinoneck serve head.safetensors --port 8000"


def serve(head: str, host: str = "127.0.0.1", port: int = 8000, settings: Settings | None = None) -> int:
    """Serve a head or a detector over HTTP until SIGTERM or Ctrl-C.

    Args:
        head: a head file, a folder of head files, or a Hub repository (user/name).
        host: address to listen on; the default is reachable from this machine only.
        port: 0 = any free port, which is printed.
        settings: the limits.

    Returns:
        0.
    """
    from dinoneck.serve import serve

    serve(head, host=host, port=port, settings=settings, announce=partial(print, flush=True))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = f"{HELP}. There is no authentication, TLS or rate limit: run it behind a proxy that has them"
    parser.add_argument("head", help="head file, folder of head files, or Hub repository (user/name)")
    parser.add_argument("--host", default="127.0.0.1", help="default: reachable from this machine only")
    parser.add_argument("--port", type=int, default=8000, help="0 = any free port, which is printed")
    help_of = dict(re.findall(r"(?m)^ +(\w+): (.+)\.$", inspect.getdoc(Settings) or ""))
    for field in fields(Settings):
        kind = type(field.default) if isinstance(field.default, int | float) else str
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=field.default, help=f"{help_of[field.name]} ({field.default})")


def run(options: argparse.Namespace) -> int:
    """Serve."""
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    return serve(options.head, options.host, options.port, settings)
