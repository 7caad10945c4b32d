"""Bodies that arrive slowly give way to requests that wait for a slot."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from typing import Any

import pytest
from benchmarks.service import HEADERS, multipart, scene

from dinoneck.data import Preprocessing
from dinoneck.serve import Settings
from dinoneck.serve.models import Model
from dinoneck.serve.refusal import Refusal

if None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")):
    pytest.skip("the extra serve is not installed", allow_module_level=True)

from starlette.requests import Request

from dinoneck.serve.worker import Worker

IMAGE = scene("PNG", 48, 32)
LONG = 60.0
SHORT = 0.05


class Body:
    """A request whose body arrives when a test says so."""

    def __init__(self) -> None:
        self._parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()],
        }
        self.request = Request(scope, self._parts.get)

    def send(self, body: bytes, *, is_last: bool = True) -> Body:
        part = {"type": "http.request", "body": body, "more_body": not is_last}
        self._parts.put_nowait(part)
        return self


def whole_body() -> Body:
    return Body().send(multipart(("a.png", IMAGE)))


def worker(slots: int, body_timeout: float) -> Worker:
    """A worker of one thread, whose prediction for an image is the number of its columns."""

    def predict(image: Any, maps: str) -> dict[str, Any]:
        return {"values": {"columns": image.shape[-1]}}

    preprocess = Preprocessing(16, size=(32, 48))
    model = Model(
        predict=predict,
        preprocess=preprocess,
        recipe=lambda size: preprocess,
        backbones=(),
        facts={},
    )
    settings = Settings(
        concurrency=1, queue=slots - 1, timeout=LONG, body_timeout=body_timeout, max_images=2
    )
    return Worker(model, settings)


async def begun(worker: Worker, body: Body) -> asyncio.Task[bytes]:
    """Start a request, and wait until it has its slot."""
    task = asyncio.create_task(worker.predict(body.request, "none"))
    await asyncio.sleep(0)
    return task


def columns(reply: bytes) -> list[int]:
    return [image["values"]["columns"] for image in json.loads(reply)["images"]]


def test_a_body_that_takes_longer_than_its_limit_gives_its_slot_to_the_next_request() -> None:
    async def scenario() -> None:
        service = worker(slots=1, body_timeout=SHORT)
        slow = await begun(service, Body().send(b"--", is_last=False))
        await asyncio.sleep(2 * SHORT)

        reply = await service.predict(whole_body().request, "none")

        assert columns(reply) == [48]
        with pytest.raises(Refusal, match="did not arrive within 0.05 s, and other requests") as e:
            await slow
        assert (e.value.status, e.value.code) == (408, "too_slow")

    asyncio.run(scenario())


def test_a_body_that_was_sent_lately_keeps_its_slot() -> None:
    async def scenario() -> None:
        service = worker(slots=1, body_timeout=LONG)
        whole = multipart(("a.png", IMAGE))
        body = Body().send(whole[:200], is_last=False)
        young = await begun(service, body)

        with pytest.raises(Refusal, match="1 requests are in progress") as e:
            await service.predict(whole_body().request, "none")

        assert (e.value.status, e.value.code) == (503, "busy")
        body.send(whole[200:])
        assert columns(await young) == [48]

    asyncio.run(scenario())


def test_a_slow_body_that_nobody_waits_for_is_predicted() -> None:
    async def scenario() -> None:
        service = worker(slots=2, body_timeout=SHORT)
        body = Body()
        slow = await begun(service, body)
        await asyncio.sleep(2 * SHORT)
        other = await service.predict(whole_body().request, "none")

        body.send(multipart(("a.png", IMAGE)))

        assert columns(await slow) == columns(other) == [48]

    asyncio.run(scenario())


def test_the_oldest_of_several_slow_bodies_gives_way_and_no_slot_is_lost() -> None:
    async def scenario() -> None:
        slots = 3
        service = worker(slots=slots, body_timeout=SHORT)
        bodies = [Body() for _ in range(slots)]
        slow = [await begun(service, body) for body in bodies]
        await asyncio.sleep(2 * SHORT)

        for _ in range(2):  # the first one's slot serves both
            assert columns(await service.predict(whole_body().request, "none")) == [48]

        assert [task.done() for task in slow] == [True, False, False]
        for body in bodies[1:]:
            body.send(multipart(("a.png", IMAGE)))
        assert [columns(await task) for task in slow[1:]] == [[48], [48]]
        # all slots are free again, and not one more
        held = [await begun(service, Body()) for _ in range(slots)]
        with pytest.raises(Refusal, match=f"{slots} requests are in progress"):
            await service.predict(whole_body().request, "none")
        for task in held:
            task.cancel()

    asyncio.run(scenario())


def test_a_body_that_is_complete_when_its_slot_is_given_away_is_late() -> None:
    async def scenario() -> None:
        service = worker(slots=1, body_timeout=SHORT)
        body = Body()
        slow = await begun(service, body)
        await asyncio.sleep(2 * SHORT)

        body.send(multipart(("a.png", IMAGE)))  # arrives before the task runs again
        reply = await service.predict(whole_body().request, "none")

        assert columns(reply) == [48]
        with pytest.raises(Refusal, match="did not arrive"):
            await slow

    asyncio.run(scenario())
