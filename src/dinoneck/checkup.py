"""What ``dinoneck doctor`` looks at: packages, devices, a head's whole way, folders and the terminal. No network."""

from __future__ import annotations

import importlib
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinoneck.errors import first_line
from dinoneck.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_SETTINGS = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTORCH_ENABLE_MPS_FALLBACK",
)
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "spconv-cu126": "spconv"}
_FOR_DEVELOPERS = frozenset({"bench", "dev", "docs", "lint", "test"})
_LITTLE_DISK = 2 << 30


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        group: what it belongs to.
        name: what it is.
        state: ``ok``; ``note``: worth knowing; ``missing``: optional and not there; ``broken``: the core needs it.
        text: the result.
        remedy: what to do about it; empty if nothing.
    """

    group: str
    name: str
    state: str
    text: str
    remedy: str = ""


def checkup() -> list[Finding]:
    """Look at everything; nothing that is broken keeps the rest from being looked at."""
    findings: list[Finding] = []
    for group, look in _LOOKS.items():
        try:
            findings += look()
        except BaseException as error:
            _pass_signals(error)
            findings.append(Finding(group, "check", "broken", f"{type(error).__name__}: {first_line(error)}"))
    return findings


def _system() -> Iterator[Finding]:
    place = Path(__file__).resolve().parents[1]
    yield Finding("system", "dinoneck", "ok", f"{__version__} in {_short(place)}")
    text = f"{platform.python_version()} ({platform.python_implementation()}) at {_short(Path(sys.executable))}"
    yield Finding("system", "python", "ok", text)
    yield Finding("system", "platform", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    for name in _SETTINGS:
        if name in os.environ:
            yield Finding("system", name, "note", _short(os.environ[name]))


def _packages() -> Iterator[Finding]:
    """The packages that dinoneck declares: those of the core must be there, and can be imported."""
    from packaging.requirements import Requirement

    try:
        found = [Requirement(line) for line in metadata.requires("dinoneck") or []]
    except metadata.PackageNotFoundError:
        text = "runs from its sources and was not installed, so its requirements are unknown"
        yield Finding("packages", "dinoneck", "note", text, "pip install . in its folder")
        return
    extras = metadata.metadata("dinoneck").get_all("Provides-Extra") or []
    for wanted in found:
        if _wanted_by("", wanted):
            yield _package(wanted, "packages", f"pip install '{wanted.name}{wanted.specifier}'", needed=True)
    for extra in extras:
        parts = [wanted for wanted in found if _wanted_by(extra, wanted) and not _wanted_by("", wanted)]
        own = [wanted for wanted in parts if wanted.name != "dinoneck"]
        if extra not in _FOR_DEVELOPERS and own:
            yield _extra(extra, [_package(w, "extras", "", needed=False) for w in own])


def _wanted_by(extra: str, wanted: Requirement) -> bool:
    """Whether a requirement is one here, with this extra."""
    return wanted.marker is None or bool(wanted.marker.evaluate({"extra": extra}))


def _package(wanted: Requirement, group: str, remedy: str, needed: bool) -> Finding:
    """Whether a package is there, new enough, and can be imported."""
    broken = "broken" if needed else "missing"
    asked = f"{wanted.specifier}" or "any version"
    again = f"pip install --force-reinstall '{wanted.name}{wanted.specifier}'"
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(group, wanted.name, broken, f"not installed; dinoneck needs {asked}", remedy)
    except Exception as error:
        text = f"its metadata cannot be read: {type(error).__name__}: {first_line(error)}"
        return Finding(group, wanted.name, broken, text, again)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding(group, wanted.name, broken, f"{version}; dinoneck needs {asked}", remedy)
    module = _MODULES.get(re.sub(r"[-_.]+", "-", wanted.name).lower(), wanted.name.replace("-", "_"))
    try:
        importlib.import_module(module)
    except BaseException as error:  # a binary that fits no other one installed raises anything; some call sys.exit
        _pass_signals(error)
        text = f"{version}, but importing it fails: {type(error).__name__}: {first_line(error)}"
        return Finding(group, wanted.name, broken, text, again)
    return Finding(group, wanted.name, "ok", f"{version} (needs {asked})")


def _pass_signals(error: BaseException) -> None:
    """Let through what the user wants to end."""
    if isinstance(error, KeyboardInterrupt):
        raise error


def _extra(extra: str, parts: list[Finding]) -> Finding:
    """An extra as one line: what it lacks, or the versions of what it has."""
    lacking = [part for part in parts if part.state != "ok"]
    listed = ", ".join(f"{part.name} {part.text.split(' (needs')[0]}" for part in lacking or parts)
    if not lacking:
        return Finding("extras", extra, "ok", listed)
    return Finding("extras", extra, "missing", listed, f"pip install 'dinoneck[{extra}]', if you want it")


def _devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("devices", "cpu", "ok", f"{cores} cores usable, torch takes {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            text = f"{about.name}, {about.total_memory / (1 << 30):.1f} GiB, compute {about.major}.{about.minor}"
            yield Finding("devices", f"cuda:{index}", "ok", f"{text}, CUDA {torch.version.cuda}")
    elif torch.version.cuda is None:
        yield Finding("devices", "cuda", "note", "this torch was built without it; everything runs on the CPU")
    else:
        text = f"torch was built for CUDA {torch.version.cuda}, but no device can be used"
        yield Finding("devices", "cuda", "note", text, "'nvidia-smi' shows whether the driver sees one")
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "ok", "can be used: --device mps")


def _way() -> Iterator[Finding]:
    """A small head is saved, loaded in a checked way and used to predict; the prediction must stay."""
    import torch

    from dinoneck import PatchMeanHead, Predictor, Task, load_backbone, save_head

    backbone = load_backbone("dinoneck_tiny")
    head = PatchMeanHead(backbone.embed_dim, [Task("a")])
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "head.safetensors"
        save_head(file, head, backbone=backbone, preprocess=backbone.preprocess)
        size = file.stat().st_size
        [again] = Predictor(file)(image)
    [before] = Predictor(head, backbone)(image)
    if again["a"] != before["a"]:
        text = f"a head predicts {before['a']!r}, and {again['a']!r} after it was saved and loaded"
        yield Finding("a head's way", "save, load, predict", "broken", text, "please report this")
    else:
        text = f"works; a file of {size} bytes gave the same prediction bit for bit"
        yield Finding("a head's way", "save, load, predict", "ok", text)


def _hub() -> Iterator[Finding]:
    """The cache of the hub's client, and what in it dinoneck could use."""
    from dinoneck.backbones.known import KNOWN
    from dinoneck.hub_errors import cache_folder, is_offline

    cache = cache_folder()
    offline = is_offline()
    remedy = "unset HF_HUB_OFFLINE to download weights and heads" if offline else ""
    text = "offline: nothing is downloaded, what is in the cache is used" if offline else "downloads are allowed"
    yield Finding("hub", "network", "note" if offline else "ok", text, remedy)
    try:
        there = {entry.name for entry in cache.iterdir()}
    except OSError:
        there = set()
    if _writable(cache):
        yield Finding("hub", "cache", "ok", f"{_short(cache)}, {'writable' if cache.is_dir() else 'will be made'}")
    else:
        text = f"{_short(cache)} cannot be written to, so nothing can be downloaded"
        yield Finding("hub", "cache", "note", text, "set HF_HOME to a folder of yours")
    names = [
        f"{model.name}.{tag}"
        for model in KNOWN
        for tag, hub in model.hubs.items()
        if there & {f"models--timm--{model.name}.{tag}", f"models--{str(hub).replace('/', '--')}"}
    ]
    none = "none; the first use downloads them, or try --backbone dinoneck_tiny or --random-backbone"
    yield Finding("hub", "published backbones in it", "ok" if names else "note", ", ".join(names) or none)


def _folders() -> Iterator[Finding]:
    temporary = Path(tempfile.gettempdir())
    for name, place in (("working folder", Path.cwd()), ("temporary folder", temporary)):
        free = shutil.disk_usage(place).free
        text = f"{_short(place)}, {free / (1 << 30):.1f} GiB free"
        if not _writable(place):
            yield Finding("folders", name, "note", f"{text}, cannot be written to", "start elsewhere, or give --out")
        elif free < _LITTLE_DISK:
            yield Finding("folders", name, "note", text, "weights and feature stores need more")
        else:
            yield Finding("folders", name, "ok", text)


def _terminal() -> Iterator[Finding]:
    encodings = f"files {locale.getpreferredencoding(False)}, names {sys.getfilesystemencoding()}"
    out = getattr(sys.__stdout__, "encoding", None) or "unknown"
    text = f"output {out}, {encodings}, locale {'.'.join(filter(None, locale.getlocale())) or 'C'}"
    plain = "utf" not in out.lower()
    remedy = "set PYTHONUTF8=1 to see signs such as ² and ×" if plain else ""
    yield Finding("terminal", "encoding", "note" if plain else "ok", text, remedy)


def _writable(folder: Path) -> bool:
    """Whether a file can be made there, or the folder itself; nothing is left behind."""
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _short(path: Path | str) -> str:
    """A path without the name of its owner."""
    name, home = str(path), str(Path.home())
    return f"~{name[len(home) :]}" if len(home) > 1 and (name == home or name.startswith(home + os.sep)) else name


_LOOKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "system": _system,
    "packages": _packages,
    "devices": _devices,
    "a head's way": _way,
    "hub": _hub,
    "folders": _folders,
    "terminal": _terminal,
}
