"""What ``dinoneck doctor`` reports: the system, packages, the device, and a head that is saved, loaded and used.

No network is used.
"""

from __future__ import annotations

import importlib
import platform
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from dinoneck.errors import first_line
from dinoneck.version import __version__

_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "spconv-cu126": "spconv"}
_FOR_DEVELOPERS = {"all", "bench", "dev", "docs", "lint", "test"}


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        name: what was checked.
        state: ``ok``; ``note``: worth knowing; ``missing``: of an extra; ``broken``: dinoneck needs
            it.
        text: the result.
        remedy: what to do about it; empty if nothing.
    """

    name: str
    state: str
    text: str
    remedy: str = ""


def checkup() -> Iterator[Finding]:
    """Yield the result of every check; an error in one does not stop the others."""
    for check in (_system, _packages, _device, _head):
        try:
            yield from check()
        except Exception as error:
            yield Finding(
                check.__name__.strip("_"), "broken", f"{type(error).__name__}: {first_line(error)}"
            )


def _system() -> Iterator[Finding]:
    """What a bug report begins with."""
    yield Finding("dinoneck", "ok", __version__)
    implementation = platform.python_implementation()
    yield Finding("python", "ok", f"{platform.python_version()} ({implementation})")
    yield Finding("platform", "ok", platform.platform())


def _packages() -> Iterator[Finding]:
    declared = [Requirement(line) for line in metadata.requires("dinoneck") or []]
    core = [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]
    yield from (_package(each, "") for each in core)
    others = [each for each in declared if each not in core and each.name != "dinoneck"]
    for extra in metadata.metadata("dinoneck").get_all("Provides-Extra") or []:
        chosen = [each for each in others if each.marker and each.marker.evaluate({"extra": extra})]
        yield from (_package(each, extra) for each in chosen if extra not in _FOR_DEVELOPERS)


def _package(needed: Requirement, extra: str) -> Finding:
    """Whether a package is installed, new enough, and can be imported."""
    name = f"{needed.name} ({extra})" if extra else needed.name
    bad, remedy = (
        ("missing", f"pip install 'dinoneck[{extra}]'")
        if extra
        else ("broken", f"pip install '{needed}'")
    )
    try:
        version = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return Finding(name, bad, f"not installed; expected {needed.specifier}", remedy)
    if not needed.specifier.contains(version, prereleases=True):
        return Finding(name, bad, f"{version}; expected {needed.specifier}", remedy)
    try:
        importlib.import_module(_MODULES.get(needed.name.lower(), needed.name.replace("-", "_")))  # noqa: TID251
    except (
        Exception,
        SystemExit,
    ) as error:  # a binary that was built for another version of torch raises anything
        text = f"{version}, and its import fails: {type(error).__name__}: {first_line(error)}"
        return Finding(
            name, "broken", text, f"pip install --upgrade --force-reinstall torch {needed.name}"
        )
    return Finding(name, "ok", version)


def _device() -> Iterator[Finding]:
    import torch

    cuda = torch.version.cuda
    if torch.cuda.is_available():
        yield Finding(
            "cuda",
            "ok",
            f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, CUDA {cuda}",
        )
    elif cuda:
        text = f"torch is built for CUDA {cuda} and finds no device; everything runs on the CPU"
        yield Finding(
            "cuda",
            "note",
            text,
            "'nvidia-smi' shows whether the driver sees one, and its CUDA version",
        )
    else:
        text = (
            "this torch is built without CUDA; MPS is available: "
            f"{torch.backends.mps.is_available()}"
        )
        yield Finding(
            "cuda", "note", text, "for an NVIDIA GPU, install a torch that is built for CUDA"
        )


def _head() -> Iterator[Finding]:
    import torch

    from dinoneck import PatchMeanHead, Predictor, Task, load_backbone, save_head

    backbone, image = load_backbone("dinoneck_tiny"), torch.rand(3, 32, 48)
    head = PatchMeanHead(backbone.embed_dim, [Task("a")])
    with tempfile.TemporaryDirectory() as folder:
        save_head(
            Path(folder) / "head.safetensors",
            head,
            backbone=backbone,
            preprocess=backbone.preprocess,
        )
        [loaded] = Predictor(Path(folder) / "head.safetensors")(image)
    [saved] = Predictor(head, backbone)(image)
    same = loaded["a"] == saved["a"]
    text = f"a head predicts {saved['a']!r}, and {loaded['a']!r} after it was saved and loaded"
    yield Finding(
        "save, load, predict",
        "ok" if same else "broken",
        text,
        "" if same else "please report this",
    )
