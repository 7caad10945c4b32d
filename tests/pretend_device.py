"""A pretend GPU: tensors with real values on the CPU whose ``device`` is ``pretend:0``.

What a real GPU refuses, the pretend one refuses as well: tensors of two devices in one operation,
``numpy()``. Copies in either direction and reads of values (``item``, ``equal``, boolean masks ...)
are counted, and how often the host waits: for every read and copy but a non-blocking one out of
pinned memory. While a graph is captured each of these is an error, as it is on CUDA.
``torch.get_device_module("pretend")`` has the parts of ``torch.cuda`` that the benchmarks use, on
the clock of the CPU.
"""

from __future__ import annotations

import contextlib
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretend"
READS = {
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "equal",
    "is_nonzero",
    "_local_scalar_dense",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
LIKE = {
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "new_zeros",
    "new_empty",
    "new_ones",
    "new_full",
    "new_empty_strided",
}


class PretendDevice:
    """What happened on the device since it was made.

    Attributes:
        events: ``"to device"``, ``"to host"``, ``"read"`` (of a value) and ``"wait"`` (of the host)
            -> how often.
        places: (event, line of code) -> how often.
        capturing: a graph is being captured.
    """

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self.capturing = False
        self.pinned: set[int] = set()

    def record(self, event: str, what: str, *, waits: bool = True) -> None:
        """Count one event; RuntimeError while a graph is captured."""
        place = f"{_caller()} [{what}]"
        if self.capturing:
            raise RuntimeError(f"{event} while a graph is captured: {place}")
        self.events[event] += 1
        self.events["wait"] += waits
        self.places[event, place] += 1


_now = PretendDevice()


class PretendTensor(torch.Tensor):
    """Wraps a tensor on the CPU and names another device."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(NAME, 0),
        )
        made.elem = elem
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        """Read all values."""
        _now.record("read", f"tolist of {self.numel()}")
        return self.elem.tolist()

    def numpy(self, **_: Any) -> Any:
        """Refuse, as for CUDA."""
        raise TypeError(f"can't convert a {NAME} tensor to numpy; copy it to the CPU first")

    def untyped_storage(self) -> Any:
        """The memory of the values."""
        return self.elem.untyped_storage()

    def data_ptr(self) -> int:
        """Where the values lie."""
        return self.elem.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A clone; torch would copy the storage of a tensor that has a place in memory."""
        with mock.patch.object(PretendTensor, "data_ptr", return_value=0):
            return super().__deepcopy__(memo)

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(_moved(part) for part in parts))

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        """Copy values from the host."""
        _now.record("to device", "new_tensor")
        return PretendTensor(self.elem.new_tensor(data, dtype=dtype))

    @classmethod
    def __torch_dispatch__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations that have no tensor of the device among their arguments."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _moved(part: Any) -> Any:
    """An index that lies on the host, copied to the device."""
    if isinstance(part, list | range | np.ndarray):
        _now.record("to device", "index")
        return PretendTensor(torch.as_tensor(part if isinstance(part, np.ndarray) else list(part)))
    return part


def _plain(x: Any) -> Any:
    return x.elem if isinstance(x, PretendTensor) else x


def _made(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` and ``torch.as_tensor``, which no dispatch mode sees."""

    def make(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if not _is_ours(device) or isinstance(data, PretendTensor):
            return original(
                data,
                **options,
                **({} if _is_ours(device) or device is None else {"device": device}),
            )
        _now.record("to device", original.__name__)
        return PretendTensor(original(data, **options))

    return make


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the wrapped values, record what the host waits for, refuse two devices in one operation."""
    name = func.overloadpacket.__name__
    if name == "_to_copy":
        return _copied(func, args[0], kwargs)
    if name == "copy_":
        return _filled(args[0], args[1])
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    ours = any(isinstance(x, PretendTensor) for x in given)
    if ours and (
        name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None)
    ):
        _now.record("read", name)
    if ours and name in INDEXING:
        _record_indices(args[1])
    elif ours and (
        strange := [x for x in given if not isinstance(x, PretendTensor) and x.ndim > 0]
    ):
        shapes = [tuple(x.shape) for x in strange]
        raise RuntimeError(f"{name} has tensors on {NAME} and on the CPU {shapes} at {_caller()}")
    device = kwargs.get("device")
    stays = ours if device is None or name not in LIKE else _is_ours(device)
    result_is_ours = stays or _is_ours(device)
    if device is not None:
        kwargs = {**kwargs, "device": "cpu" if _is_ours(device) else device}
    result = func(*tree_map(_plain, args), **tree_map(_plain, {**kwargs, **_unpinned(kwargs)}))
    if kwargs.get("pin_memory"):
        _now.pinned.add(result.untyped_storage().data_ptr())
    # what is changed in place stays itself
    wrapped = {id(x.elem): x for x in given if isinstance(x, PretendTensor)}

    def outside(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return wrapped[id(x)] if id(x) in wrapped else PretendTensor(x)

    return tree_map(outside, result) if result_is_ours else result


def _copied(func: Any, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """``x.to(...)``."""
    device, ours = kwargs.get("device"), isinstance(x, PretendTensor)
    goes = ours if device is None else _is_ours(device)
    if ours != goes:
        waits = not (
            goes and kwargs.get("non_blocking") and x.untyped_storage().data_ptr() in _now.pinned
        )
        _now.record("to device" if goes else "to host", f"{x.nbytes} bytes", waits=waits)
    options = {**kwargs, **_unpinned(kwargs), "non_blocking": False}
    if device is not None:
        options["device"] = "cpu"
    made: Tensor = func(_plain(x), **options)
    return PretendTensor(made) if goes else made


def _filled(target: Tensor, source: Tensor) -> Tensor:
    """``target.copy_(source)``."""
    goes = isinstance(target, PretendTensor)
    if goes != isinstance(source, PretendTensor):
        _now.record(
            "to device" if goes else "to host",
            f"copy_ of {source.numel() * source.element_size()} bytes",
        )
    _plain(target).copy_(_plain(source))
    return target


def _record_indices(indices: Any) -> None:
    """Count what the indices of an operation cost: masks are read, those on the host are copied."""
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            _now.record("read", "boolean mask")
        if index is not None and not isinstance(index, PretendTensor):
            _now.record("to device", "index")


def _unpinned(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"pin_memory": False} if "pin_memory" in kwargs else {}


def _caller() -> str:
    """The innermost line outside torch and this file."""
    frame = sys._getframe()
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"


class Event:
    """A moment of the CPU's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.moment = 0.0

    def record(self) -> None:
        """Take the time."""
        self.moment = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is under way."""

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to another."""
        return 1e3 * (end.moment - self.moment)


class Graph:
    """What a captured graph is here: the call itself, which :func:`graph` watched once."""

    def replay(self) -> None:
        """Do nothing: the results of the capture stay."""


@contextlib.contextmanager
def graph(_: Graph) -> Iterator[None]:
    """Capture: every copy and every read is an error."""
    _now.capturing = True
    try:
        yield
    finally:
        _now.capturing = False


class Stream:
    """The one stream."""

    def wait_stream(self, _: Stream) -> None:
        """Nothing is under way."""


def _module() -> types.ModuleType:
    """The parts of ``torch.cuda`` that are asked for."""
    parts: dict[str, Callable[..., Any]] = {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": Stream,
        "current_stream": lambda *_: Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda *_: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_name": lambda *_: "a pretend GPU",
        "_is_in_bad_fork": lambda: False,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "manual_seed_all": lambda _: None,
        "is_current_stream_capturing": lambda: _now.capturing,
    }
    module = types.ModuleType(f"torch.{NAME}")
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def _register() -> None:
    """Make the name known to torch, once per process."""
    if hasattr(torch, NAME):
        return
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        pytest.skip(f"torch {torch.__version__} cannot be given a device written in Python")
    setup(NAME, backend_module=_module())
    # autocast leaves this device's operations as they are
    autocast = torch.library.Library("_", "IMPL")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.append(autocast)


_libraries: list[torch.library.Library] = []


def _submit(
    pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **options: Any
) -> Future[Any]:
    """``ThreadPoolExecutor.submit`` for threads that see the device too: modes belong to one thread."""

    def run() -> Any:
        with _Mode():
            return function(*args, **options)

    return _SUBMIT(pool, run)


_SUBMIT = ThreadPoolExecutor.submit


def _without_autograd(mode: bool = True) -> contextlib.AbstractContextManager[Any]:
    return torch.no_grad() if mode else contextlib.nullcontext()


@contextlib.contextmanager
def pretend_device() -> Iterator[PretendDevice]:
    """Open the device ``"pretend"`` and yield the record of what happens on it."""
    global _now
    _register()
    _now = PretendDevice()
    # wrapped tensors have no views in inference mode; without autograd the work is the same
    patches = [
        mock.patch.object(torch, name, _made(getattr(torch, name)))
        for name in ("tensor", "as_tensor")
    ]
    patches.append(mock.patch.object(ThreadPoolExecutor, "submit", _submit))
    with (
        mock.patch.object(torch, "inference_mode", _without_autograd),
        patches[0],
        patches[1],
        patches[2],
        _Mode(),
    ):
        yield _now
