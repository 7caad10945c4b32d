"""A headless Chromium driven through two pipes, by the standard library alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

VARIABLE = "DINONECK_CHROMIUM"
ARGUMENTS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--no-zygote", "--single-process", "--disable-gpu",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
)  # fmt: skip
# the browser reads from descriptor 3 and writes to 4
ON_PIPES = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)

Event = dict[str, Any]


def is_there() -> bool:
    """Whether somebody named a browser."""
    return bool(os.environ.get(VARIABLE)) and Path(os.environ[VARIABLE]).is_file()


class Chromium:
    """One browser with one page: ``send`` a command of the DevTools protocol, ``events`` collect what it tells."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dinoneck-browser-", ignore_cleanup_errors=True)
        its_in, self._out = _pipe()
        self._in, its_out = _pipe()
        command = [os.environ[VARIABLE], *ARGUMENTS, f"--user-data-dir={self._folder.name}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_PIPES, str(its_in), str(its_out), *command],
            pass_fds=(its_in, its_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in)
        os.close(its_out)
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[Event] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile goes to ``events``."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait(self, method: str) -> Event:
        """Return the next event of that name, also one that has come already."""
        return self._until(lambda event: event.get("method") == method)

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, promises awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def _until(self, wanted: Callable[[Event], bool]) -> Event:
        for event in self.events:
            if wanted(event):
                return event
        while True:
            self.events.append(self._read())
            if wanted(self.events[-1]):
                return self.events[-1]

    def _read(self) -> Event:
        while b"\0" not in self._rest:
            piece = os.read(self._in, 1 << 16)
            if not piece:
                raise RuntimeError(f"{os.environ[VARIABLE]} ended")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        event: Event = json.loads(message)
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()


def _pipe() -> tuple[int, int]:
    """Make a pipe whose ends are none of the low descriptors that the browser's side overwrites."""
    import fcntl  # not on every system, and nobody needs it where no browser is named

    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
