"""``make matrix``: the quick test tier on every supported Python, with the oldest and the newest dependencies.

uv resolves both ends from ``pyproject.toml``: *oldest* takes the lowest release of every direct
dependency that has a wheel for the Python, *newest* the highest. Interpreters are found on the
machine; those that are missing are left out. ``benchmarks/results/matrix.json`` has a table for each
Python, in which each cell writes its row; the page shows the tables. A row of other code or of
another machine is dropped. ``nox -s oldest_torch`` runs the quick tier with the lowest torch, which
some extras do not allow. ``nox -s without_openvino`` runs the tests of backbones and of the command
line without the extra ``fast``.
"""

from __future__ import annotations

import os
import platform
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nox
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))

from benchmarks.results import RESULTS, is_stale, processor, read, write

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
STORED = "tests/docs/test_measured_pages.py::test_the_matrix_is_of_the_supported_pythons_and_without_a_failure"
# what the lowest torch cannot have: these extras and, in the list of the extra test, these packages
EXTRAS_OF_LATER_TORCH = {"export", "fast"}
PACKAGES_OF_LATER_TORCH = {"torch", "openvino"}
RUNTIME_TESTS = ("tests/unit/backbones", "tests/unit/cli")
SHOWN = ("torch", "torchvision", "timm", "transformers", "numpy", "huggingface_hub", "onnxruntime")


@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", tuple(RESOLUTIONS))
def matrix(session: nox.Session, dependencies: str) -> None:
    """Install one end of the supported versions and run the quick tier; arguments after -- go to pytest."""
    requirements = install(session, dependencies)
    run_quick_tier(session, dependencies, requirements)


@nox.session(python=PYTHONS[:1])
def oldest_torch(session: nox.Session) -> None:
    """Run the quick tier with the lowest torch, without the extras that need a later one.

    ``test`` asks for the torch of OpenVINO, so its list is taken apart: ``export`` and ``fast`` are
    left out, and the tests that need them are skipped.
    """
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = list(project["dependencies"])
    for line in extras["test"]:
        requirement = Requirement(line)
        if requirement.name == "dinoneck":
            for extra in sorted(requirement.extras - EXTRAS_OF_LATER_TORCH):
                lines += extras[extra]
        elif requirement.name not in PACKAGES_OF_LATER_TORCH:
            lines.append(line)
    direct = Path(session.create_tmp()) / "oldest_torch.in"
    direct.write_text("\n".join(lines) + "\n")

    requirements = compile_and_install(session, str(direct), "--resolution", RESOLUTIONS["oldest"])
    run_quick_tier(session, "oldest torch", requirements)


def run_quick_tier(session: nox.Session, title: str, requirements: Path) -> None:
    """Run the quick tests and store the row; arguments after -- go to pytest."""
    report = Path(session.create_tmp(), f"{title}.xml").resolve()
    # the stored table is judged once every cell has written its row
    session.run(
        "python",
        "-m",
        "pytest",
        "-n",
        "2",
        "-m",
        "not slow",
        f"--deselect={STORED}",
        f"--junitxml={report}",
        *session.posargs,
        env={"OMP_NUM_THREADS": "1"},
        success_codes=[0, 1],
    )
    installed = versions(requirements)
    row: dict[str, str | int] = {}
    for library in SHOWN:
        if library in installed:
            row[library] = installed[library]
    row |= counts(report)
    store_row(session, title, row)
    if row["failed"]:
        session.error(f"{session.python}, {title}: {row['failed']} tests failed")


def store_row(session: nox.Session, title: str, row: dict[str, str | int]) -> None:
    """Write the row of a cell into the table of its Python.

    The other rows stay if they are of the same code and machine.
    """
    printed = session.run(
        "python", "-c", "from dinoneck.version import __version__; print(__version__)", silent=True
    )
    machine = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "system": platform.system(),
        "versions": {"dinoneck": str(printed).strip()},
    }
    path = RESULTS / "matrix.json"
    table = f"Python {session.python}"
    rows = {}
    if path.exists():
        stored = read(path).get(table)
        if stored is not None and not is_stale(stored) and stored["machine"] == machine:
            rows = stored["rows"]
    rows[title] = row
    write(path, "matrix", "make matrix", machine, {table: dict(sorted(rows.items()))})


def install(session: nox.Session, dependencies: str) -> Path:
    """Install dinoneck with one end of the supported versions; return the file that names them."""
    return compile_and_install(
        session, "pyproject.toml", "--extra", "test", "--resolution", RESOLUTIONS[dependencies]
    )


def compile_and_install(session: nox.Session, source: str, *options: str) -> Path:
    """Install dinoneck with the versions that uv chooses; return the file that names them."""
    requirements = Path(session.create_tmp()) / "requirements.txt"
    python = str(Path(session.bin) / "python")
    session.run_install(
        "uv",
        "pip",
        "compile",
        source,
        *options,
        "--quiet",
        "--only-binary",
        ":all:",
        "--python",
        python,
        "--output-file",
        str(requirements),
        external=True,
    )
    session.install("--requirement", str(requirements))
    session.install("--no-deps", "--editable", ".")
    return requirements


@nox.session(python=PYTHONS[:1])
def without_openvino(session: nox.Session) -> None:
    """Run the tests of backbones and of the command line where the extra ``fast`` is not installed."""
    install(session, "newest")
    python = str(Path(session.bin) / "python")
    session.run("uv", "pip", "uninstall", "--python", python, "openvino", external=True)
    session.run(
        "python",
        "-m",
        "pytest",
        "-n",
        "2",
        "-m",
        "not slow",
        *(session.posargs or RUNTIME_TESTS),
        env={"OMP_NUM_THREADS": "1"},
    )


def counts(report: Path) -> dict[str, int]:
    """How many tests passed, were skipped and failed."""
    suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314 - pytest's own report
    if suite is None:
        raise ValueError(f"{report} is no report of pytest")
    tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {"passed": tests - skipped - failed, "skipped": skipped, "failed": failed}


def versions(requirements: Path) -> dict[str, str]:
    """The pinned version of every package that was installed."""
    pins = [line.split("==", 1) for line in requirements.read_text().splitlines() if "==" in line]
    return {name.strip().lower().replace("-", "_"): version.split()[0] for name, version in pins}
