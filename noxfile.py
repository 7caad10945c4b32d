"""``make matrix``: the first test tier on every supported Python, with the oldest and the newest dependencies.

uv resolves both ends from ``pyproject.toml``: *oldest* takes the lowest release of every direct dependency that has a
wheel for the Python, *newest* the highest. Interpreters are found on the machine; those that are missing are left out.
Each cell writes what it found to ``matrix-results/``; ``python -m benchmarks.matrix`` puts them on the page.
"""

from __future__ import annotations

import json
import platform
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ("3.11", "3.12", "3.13")
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
FOUND = Path("matrix-results")


@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", tuple(RESOLUTIONS))
def matrix(session: nox.Session, dependencies: str) -> None:
    """Install one end of the supported versions and run the first tier; arguments after -- go to pytest."""
    wanted = Path(session.create_tmp()) / f"{dependencies}.txt"
    python = str(Path(session.bin) / "python")
    session.run("uv", "pip", "compile", "pyproject.toml", "--extra", "test", "--quiet", "--only-binary", ":all:",
                "--resolution", RESOLUTIONS[dependencies], "--python", python, "--output-file", str(wanted),
                external=True)  # fmt: skip
    session.install("--requirement", str(wanted))
    session.install("--no-deps", "--editable", ".")
    FOUND.mkdir(exist_ok=True)
    name = f"{session.python}-{dependencies}"
    report = (FOUND / f"{name}.xml").resolve()
    session.run("python", "-m", "pytest", "-n", "2", "-m", "not slow", f"--junitxml={report}", *session.posargs,
                env={"OMP_NUM_THREADS": "1"}, success_codes=[0, 1])  # fmt: skip
    cell = {"python": session.python, "dependencies": dependencies, "machine": platform.machine()}
    cell |= counts(report) | {"versions": versions(wanted)}
    (FOUND / f"{name}.json").write_text(json.dumps(cell, indent=1, sort_keys=True) + "\n")
    if cell["failed"]:
        session.error(f"{name}: {cell['failed']} tests failed")


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
