"""``python -m tests.wheel FOLDER``: build the wheel, install it alone, and run the demo from it outside the repository.

The new environment gets the wheel and nothing else; the heavy dependencies are borrowed from this
one through a path file, which does not see this one's editable install.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = [
    "--images",
    "12",
    "--folds",
    "2",
    "--epochs",
    "2",
    "--backbone",
    "dinoneck_tiny",
    "--random-backbone",
]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    return done.stdout


def environment(source: Path, folder: Path) -> Path:
    """Build the wheel of a source tree and install it into a new environment; return its interpreter."""
    folder.mkdir(parents=True)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        folder,
        source,
        cwd=folder,
    )
    [wheel] = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    own = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        ).strip()
    )
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def package_page(readme: str, version: str) -> str:
    """What a package index shows: README.md after the substitutions that pyproject.toml lists for the build."""
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"][
        "hooks"
    ]
    for rule in hooks["fancy-pypi-readme"]["substitutions"]:
        readme = re.sub(rule["pattern"], rule["replacement"], readme)
    return readme.replace("$HFPR_VERSION", version)


def targets(page: str) -> list[str]:
    """Every target of a link or an image in a Markdown page, without those in code."""
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", page, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"\]\(\s*<?([^)\s>]*)", prose) + re.findall(
        r"^\[[^\]]+\]:\s*(\S+)", prose, flags=re.MULTILINE
    )
    return inline + re.findall(r"\b(?:src|srcset|href)\s*=\s*[\"']?([^\"'\s>]*)", prose)


def check_metadata(wheel: Path) -> None:
    """The page in the wheel is the one that the tests check, and the addresses are there."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    if (
        metadata.get_payload().strip()
        != package_page((ROOT / "README.md").read_text(), metadata["Version"]).strip()
    ):
        sys.exit(
            f"{wheel.name}: its page differs from README.md after the substitutions of "
            "pyproject.toml"
        )
    if len(metadata.get_all("Project-URL") or []) < 5:
        sys.exit(f"{wheel.name}: its metadata lacks project addresses")


def install_offline(folder: Path) -> None:
    """Run the first cell of a notebook, which installs from a folder of wheels, in an empty environment."""
    cells = json.loads((ROOT / "examples" / "notebooks" / "regression.ipynb").read_text())["cells"]
    [cell] = [
        "".join(cell["source"]) for cell in cells if "install" in cell["metadata"].get("tags", ())
    ]
    without_dependencies = "import os\nos.environ['PIP_NO_DEPS'] = '1'\n"
    run(sys.executable, "-m", "venv", folder / "empty", cwd=folder)
    python = folder / "empty" / "bin" / "python"
    run(
        python,
        "-c",
        without_dependencies + cell.replace("/kaggle/input/dinoneck-wheels", str(folder)),
        cwd=folder,
    )
    if not [*(folder / "empty").rglob("dinoneck/__init__.py")]:
        sys.exit(
            "the first cell of the notebook did not install dinoneck from the folder of wheels"
        )


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    python = environment(ROOT, folder)
    [wheel] = folder.glob("*.whl")
    check_metadata(wheel)
    names = zipfile.ZipFile(wheel).namelist()
    strays = [name for name in names if not name.startswith(("dinoneck/", "dinoneck-"))]
    if strays or "dinoneck/py.typed" not in names:
        sys.exit(f"the wheel holds {strays}, py.typed: {'dinoneck/py.typed' in names}")
    with tempfile.TemporaryDirectory() as outside:
        where = run(
            python, "-c", "import dinoneck; print(dinoneck.__file__)", cwd=Path(outside)
        ).strip()
        if not Path(where).is_relative_to(folder / "env"):
            sys.exit(f"dinoneck came from {where}, not from the wheel")
        shown = run(
            folder / "env" / "bin" / "dinoneck", "demo", "--out", "demo", *DEMO, cwd=Path(outside)
        )
        head = Path(outside) / "demo" / "run" / "heads" / "fold-0.safetensors"
        run(folder / "env" / "bin" / "dinoneck", "verify", head, cwd=Path(outside))
    install_offline(folder)
    print(shown.strip().splitlines()[-1])
    print(f"{wheel.name}: {len(names)} files; the demo runs from the wheel alone")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
