"""What ``dinoneck doctor`` reports: the system, packages, the device, and a head that is saved, loaded and used.

No network is used.
"""

from __future__ import annotations

import importlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import Requirement

from dinoneck import cpu_libraries
from dinoneck.text import counted, first_line
from dinoneck.version import __version__

if TYPE_CHECKING:
    import torch

# package -> the module that it installs, where the names differ in more than "-" and "_"
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "spconv-cu126": "spconv"}
_FOR_DEVELOPERS = {"all", "bench", "dev", "docs", "lint", "test"}


# what is timed: a few seconds in all
_MEASURED_BACKBONE = "vit_small_patch16_dinov3"
_MEASURED_BLOCKS = 4
_MEASURED_IMAGES = 4
_MEASURED_PIXELS = 224
_MEASURED_ROUNDS = 5


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
    yield from _run_checks(_system, _packages, _device, _runtime, _head)


def measure() -> Iterator[Finding]:
    """Yield how many times as fast as torch OpenVINO runs blocks of a small ViT here, per precision."""
    yield from _run_checks(_gain)


def _run_checks(*checks: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.strip("_")
            yield Finding(name, "broken", f"{type(error).__name__}: {first_line(error)}")


def _system() -> Iterator[Finding]:
    """What a bug report begins with."""
    yield Finding("dinoneck", "ok", __version__)
    implementation = platform.python_implementation()
    yield Finding("python", "ok", f"{platform.python_version()} ({implementation})")
    yield Finding("platform", "ok", platform.platform())


def _packages() -> Iterator[Finding]:
    """A finding for every package that dinoneck needs, then one for each of its extras."""
    requirements = [Requirement(line) for line in metadata.requires("dinoneck") or []]
    of_extras = []
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement, "")
        elif requirement.name != "dinoneck":
            of_extras.append(requirement)
    for extra in metadata.metadata("dinoneck").get_all("Provides-Extra") or []:
        if extra in _FOR_DEVELOPERS:
            continue
        packages = []
        for requirement in of_extras:
            if requirement.marker and requirement.marker.evaluate({"extra": extra}):
                packages.append(_package(requirement, extra))
        if packages:
            yield _extra(extra, packages)


def _extra(name: str, packages: Sequence[Finding]) -> Finding:
    """The finding of an extra, of those of its packages: what is wrong, or else the versions."""
    for state in ("broken", "missing"):
        faults = [package for package in packages if package.state == state]
        if faults:
            text = "; ".join(f"{fault.name} {fault.text}" for fault in faults)
            return Finding(f"extra {name}", state, text, faults[0].remedy)
    versions = ", ".join(f"{package.name} {package.text}" for package in packages)
    return Finding(f"extra {name}", "ok", versions)


def _package(needed: Requirement, extra: str) -> Finding:
    """Whether a package is installed, new enough, and can be imported."""
    name = needed.name
    if extra:
        state_if_not_usable = "missing"
        remedy = f"pip install 'dinoneck[{extra}]'"
    else:
        state_if_not_usable = "broken"
        remedy = f"pip install '{needed}'"
    try:
        version = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        text = f"not installed; expected {needed.specifier}"
        return Finding(name, state_if_not_usable, text, remedy)
    if not needed.specifier.contains(version, prereleases=True):
        text = f"{version}; expected {needed.specifier}"
        return Finding(name, state_if_not_usable, text, remedy)
    module = _MODULES.get(needed.name.lower(), needed.name.replace("-", "_"))
    try:
        _import(module)
    # a binary that was built for another version of torch raises anything
    except (Exception, SystemExit) as error:
        text = f"{version}, and its import fails: {type(error).__name__}: {first_line(error)}"
        remedy = f"pip install --upgrade --force-reinstall torch {needed.name}"
        return Finding(name, "broken", text, remedy)
    return Finding(name, "ok", version)


def _import(module: str) -> None:
    """Import a module; OpenVINO and ONNX Runtime as dinoneck does, so that they report nothing."""
    if module == "openvino":
        cpu_libraries.openvino()
    elif module == "onnxruntime":
        cpu_libraries.onnxruntime()
    else:
        importlib.import_module(module)  # noqa: TID251


def _device() -> Iterator[Finding]:
    """What torch finds to compute on."""
    import torch

    cuda = torch.version.cuda
    if torch.cuda.is_available():
        devices = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        yield Finding("cuda", "ok", f"{devices}, CUDA {cuda}")
    elif cuda:
        text = f"torch is built for CUDA {cuda} and finds no device; everything runs on the CPU"
        remedy = "'nvidia-smi' shows whether the driver sees one, and its CUDA version"
        yield Finding("cuda", "note", text, remedy)
    else:
        has_mps = torch.backends.mps.is_available()
        text = f"this torch is built without CUDA; MPS is available: {has_mps}"
        remedy = "for an NVIDIA GPU, install a torch that is built for CUDA"
        yield Finding("cuda", "note", text, remedy)


def _runtime() -> Iterator[Finding]:
    """What computes the tokens of frozen backbones on the CPU, and the folder of its programs."""
    from dinoneck.backbones import openvino
    from dinoneck.backbones.program_files import LARGEST_CACHE_BYTES, program_folder

    if openvino.is_installed():
        version = metadata.version("openvino")
        text = f"OpenVINO {version}, where it is faster than torch ('dinoneck doctor --measure')"
        yield Finding("runtime", "ok", text)
    else:
        text = "torch; openvino, which may be several times as fast on a CPU, is not installed"
        yield Finding("runtime", "note", text, "pip install 'dinoneck[fast]'")
    folder = program_folder()
    if folder is None:
        text = "none: there is no home folder, so programs are compiled in every process"
        remedy = "set DINONECK_CACHE to a folder that can be written"
        yield Finding("program cache", "note", text, remedy)
        return
    size = folder.size()
    text = (
        f"{folder.path}: {counted(size.num_programs, 'file')}, {size.num_bytes / 1e6:.0f} MB of at "
        f"most {LARGEST_CACHE_BYTES / 1e6:.0f} MB"
    )
    if folder.is_usable():
        yield Finding("program cache", "ok", text)
    else:
        text = f"{text}; it is not used, because it is not yours alone"
        remedy = f"chmod go-w {folder.path}, or set DINONECK_CACHE to a folder of yours"
        yield Finding("program cache", "note", text, remedy)


def _gain() -> Iterator[Finding]:
    """Time both precisions in OpenVINO and in torch."""
    import torch

    from dinoneck.backbones import openvino

    if openvino.is_installed():
        yield _gain_in(torch.float32)
        yield _gain_in(torch.bfloat16)
    else:
        text = "openvino is not installed"
        yield Finding("measured", "missing", text, "pip install 'dinoneck[fast]'")


def _gain_in(dtype: torch.dtype) -> Finding:
    """Compile blocks of a small ViT, and time them in turns with torch."""
    import torch

    from dinoneck import load_backbone
    from dinoneck.backbones import openvino
    from dinoneck.backbones.program_costs import timed
    from dinoneck.dtypes import dtype_name

    backbone = load_backbone(
        _MEASURED_BACKBONE, pretrained=False, seed=0, layers=[_MEASURED_BLOCKS - 1], dtype=dtype
    )
    num_threads = torch.get_num_threads()
    program, compile_seconds = timed(
        lambda: openvino.compile_program(
            backbone.adapter,
            (_MEASURED_PIXELS, _MEASURED_PIXELS),
            layers=backbone.layers,
            norm=backbone.norm,
            num_threads=num_threads,
        )
    )
    images = torch.zeros(_MEASURED_IMAGES, 3, _MEASURED_PIXELS, _MEASURED_PIXELS)
    torch_times = []
    program_times = []
    for _ in range(_MEASURED_ROUNDS):
        torch_times.append(timed(lambda: backbone(images))[1])
        program_times.append(timed(lambda: program(images))[1])
    torch_seconds = min(torch_times)
    program_seconds = min(program_times)
    text = (
        f"OpenVINO is {torch_seconds / program_seconds:.2f} x as fast as torch: {_MEASURED_BLOCKS} "
        f"blocks of a ViT-S on {_MEASURED_IMAGES} images of {_MEASURED_PIXELS} x "
        f"{_MEASURED_PIXELS} px take {program_seconds:.3f} s and {torch_seconds:.3f} s with "
        f"{counted(num_threads, 'thread')}; compiling took {compile_seconds:.1f} s"
    )
    return Finding(f"measured in {dtype_name(dtype)}", "ok", text)


def _head() -> Iterator[Finding]:
    """Whether a head predicts after it was saved and loaded as it did before."""
    import torch

    from dinoneck import PatchMeanHead, Predictor, Task, load_backbone, save_head

    backbone = load_backbone("dinoneck_tiny")
    image = torch.rand(3, 32, 48)
    head = PatchMeanHead(backbone.embed_dim, [Task("a")])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "head.safetensors"
        save_head(file, head, backbone=backbone, preprocess=backbone.preprocess)
        [loaded] = Predictor(file)(image)
    [saved] = Predictor(head, backbone)(image)
    if loaded["a"] == saved["a"]:
        text = "a head predicts the same after it was saved and loaded"
        yield Finding("save, load, predict", "ok", text)
    else:
        text = f"a head predicts {saved['a']!r}, and {loaded['a']!r} after it was saved and loaded"
        yield Finding("save, load, predict", "broken", text, remedy="please report this")
