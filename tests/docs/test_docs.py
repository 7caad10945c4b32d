"""Code blocks of README and docs run and are typed; links lead somewhere; the page of the commands is the help's."""

from __future__ import annotations

import ast
import codeop
import doctest
import functools
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.docs.command_line import MARK, PAGE, help_of, names, page
from tests.house.source import ROOT, imports
from tests.hub_server import WRITER

import dinoneck
from dinoneck.cli.main import BROKEN_PIPE, INTERRUPTED, REFUSED, TERMINATED

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# a block, and what it prints where the page shows it: "..." stands for anything
SHOWN = re.compile(
    BLOCK.pattern + r'(?:\n+```text title="prints"\n(.*?)^```)?', re.DOTALL | re.MULTILINE
)
# pages whose blocks take longer than seconds: they run in the slow tier
SLOW_PAGES = {
    "docs/explanation/how-sure-is-it.md",
    "docs/how-to/choose-layers.md",
    "docs/how-to/detectors.md",
    "docs/how-to/export.md",
    "docs/how-to/extract.md",
    "docs/how-to/fine-tune.md",
    "docs/how-to/from-your-notebook.md",
    "docs/how-to/labels.md",
    "docs/how-to/long-runs.md",
    "docs/how-to/own-head.md",
    "docs/how-to/own-images.md",
    "docs/how-to/paint-labels.md",
    "docs/how-to/pictures.md",
    "docs/how-to/predict.md",
    "docs/how-to/published-heads.md",
    "docs/how-to/report.md",
    "docs/how-to/share-a-head.md",
    "docs/how-to/tune-a-detector.md",
    "docs/integrations/decoders.md",
    "docs/integrations/training-loops.md",
    "docs/integrations/vits.md",
    "docs/reference/config-file.md",
    "docs/tutorials/classify.md",
    "docs/tutorials/count.md",
    "docs/tutorials/detect.md",
    "docs/tutorials/feature-store.md",
    "docs/tutorials/point-cloud.md",
    "docs/tutorials/regress.md",
    "docs/tutorials/segment.md",
    "examples/biomass/README.md",
}
HUB_PAGES = {"docs/how-to/share-a-head.md"}  # they push and pull: against a hub on loopback
# packages of the test extra that no test needs: without them a page is skipped from the block on
# that imports them
OPTIONAL = {
    "accelerate",
    "lightning",
    "prometheus_client",
    "segmentation_models_pytorch",
    "sklearn",
    "supervision",
}
# warnings of other packages
FILTERS = {
    "docs/how-to/share-a-head.md": ("ignore:Use 'content=:DeprecationWarning",),
    "docs/integrations/training-loops.md": (
        "ignore:.*LeafSpec.* is deprecated:FutureWarning",
        "ignore:Found .* in eval mode",
        "ignore:The '.*_dataloader' does not have many workers",
    ),
}
ANY_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# a command, with the lines that continue it
COMMAND = re.compile(r"^(?:\$ )?dinoneck ((?:.*\\\n)*.*)$", re.MULTILINE)
FLAG = re.compile(r"--[a-z][a-z-]*")
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def marks(page: Path) -> list[pytest.MarkDecorator]:
    filters = [pytest.mark.filterwarnings(line) for line in FILTERS.get(named(page), ())]
    return [pytest.mark.slow] * (named(page) in SLOW_PAGES) + filters


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=named(page), marks=marks(page))
        for page in PAGES
        if BLOCK.search(page.read_text())
    ],
)
def test_code_blocks_run_in_order(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if named(page) in HUB_PAGES:
        request.getfixturevalue("hub")
        monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.chdir(tmp_path)
    # a block may run the program, which stands next to Python where the environment is not activated
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    text = page.read_text()
    space: dict[str, Any] = {"__name__": "__main__"}
    capsys.readouterr()
    for number, (block, shown) in enumerate(SHOWN.findall(text)):
        for name in sorted(
            {module.split(".")[0] for module, _ in imports(ast.parse(block))} & OPTIONAL
        ):
            pytest.importorskip(
                name,
                reason=f"{named(page)}, block {number + 1} needs {name}, which is not installed",
            )
        exec(compile(block, f"{named(page)}, block {number + 1}", "exec"), space)
        printed = capsys.readouterr().out
        if shown and not doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS):
            pytest.fail(f"{named(page)}, block {number + 1} prints\n{printed}and not\n{shown}")
    assert text.count('```text title="prints"') == sum(
        bool(shown) for _, shown in SHOWN.findall(text)
    )
    assert "dinoneck" in text


@pytest.mark.parametrize(
    "page",
    [ROOT / "docs/quick-start.md", *sorted((ROOT / "docs/tutorials").glob("*.md"))],
    ids=named,
)
def test_tutorials_can_be_pasted_line_by_line(page: Path) -> None:
    """Python's prompt wants an empty line behind an indented block, and none inside it."""
    for block in BLOCK.findall(page.read_text()):
        waiting: list[str] = []
        for line in [*block.splitlines(), ""]:
            waiting.append(line)
            try:
                done = codeop.compile_command("\n".join(waiting), symbol="single")
            except SyntaxError as error:
                pytest.fail(f"{named(page)}: {error.msg} at {line!r}")
            waiting = [] if done is not None else waiting
        assert not waiting, waiting


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize(
    "name",
    [
        m.name
        for m in pkgutil.walk_packages(dinoneck.__path__, "dinoneck.")
        if "__main__" not in m.name
    ],
)
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where examples write
    if name == "dinoneck.export.exporting":
        pytest.importorskip("onnxscript", reason="needs dinoneck[export]")

    failed, _ = doctest.testmod(importlib.import_module(name))

    assert failed == 0


def commands_on(text: str) -> list[str]:
    """What follows ``dinoneck`` in the commands that the blocks of a page show."""
    commands = []
    for language, block in ANY_BLOCK.findall(text):
        if language in ("", "console", "bash", "sh"):
            commands += COMMAND.findall(block)
    return commands


@functools.cache
def flags_of(verb: str) -> frozenset[str]:
    """Every flag in the help of a verb, of its sub-verbs and of its kinds of training."""
    flags = set()
    for words in names():
        if words[0] == verb:
            flags.update(FLAG.findall(help_of(*words)))
    return frozenset(flags)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_verb_of_a_page_has_the_flags_that_it_shows(page: Path) -> None:
    for command in commands_on(page.read_text()):
        verb, *words = shlex.split(command.replace("\\\n", " "), comments=True)
        for word in words:
            flag = FLAG.match(word)
            if flag is not None:
                assert flag[0] in flags_of(verb), f"dinoneck {verb} has no {flag[0]}: {command}"


def test_the_readme_shows_commands() -> None:
    assert len(commands_on(README)) >= 3


def test_every_extra_that_the_readme_installs_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"pip install \"?\./dinoneck\[([\w-]+)\]", README)
    assert extras
    for extra in extras:
        assert extra in declared["optional-dependencies"]


def test_every_make_target_of_the_readme_exists() -> None:
    targets = re.findall(r"^make ([\w-]+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: dinoneck\.(\S+)$", pages, re.MULTILINE))
    for name in dinoneck.HOMES:
        assert name in shown, name
    for package in dinoneck.PACKAGES:
        for name in getattr(importlib.import_module(f"dinoneck.{package}"), "__all__", ()):
            value = getattr(importlib.import_module(f"dinoneck.{package}"), name)
            own = getattr(value, "__name__", name)  # an alias has that of its class
            assert {f"{package}.{name}", f"{package}.{own}", name} & shown, f"{package}.{name}"


def test_no_page_is_unfinished() -> None:
    for file in PAGES:
        assert not re.search(
            r"^(TABLE|MACHINE)$|\b(TODO|TBD|FIXME)\b", file.read_text(), re.MULTILINE
        ), file


UNTYPED_TORCH = 'Call to untyped function "backward" in typed context  [no-untyped-call]'


@pytest.mark.slow
def test_the_first_blocks_of_a_user_are_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options and what was found out by ``make types``: torch alone takes mypy a minute."""
    pytest.importorskip("mypy")
    monkeypatch.setenv("MYPYPATH", str(ROOT / "src"))
    files = []
    for name in ("README.md", "docs/quick-start.md"):
        file = tmp_path / Path(name).with_suffix(".py").name.replace("-", "_")
        file.write_text("\n".join(BLOCK.findall((ROOT / name).read_text())))
        files.append(file)
    options = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]

    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    errors = [
        line
        for line in done.stdout.splitlines()
        if ": error: " in line and not line.endswith(UNTYPED_TORCH)
    ]
    assert not errors and "error" not in done.stderr, done.stdout + done.stderr
    assert "checked 2 source files" in done.stdout


def test_the_page_is_that_of_the_help() -> None:
    """Word by word: lines may be wrapped otherwise."""
    assert PAGE.read_text(encoding="utf-8").split() == page().split(), (
        "run: python -m tests.docs.command_line"
    )


def test_every_help_has_an_example_and_explains_every_argument() -> None:
    for verb in names():
        text = help_of(*verb)
        words = " ".join(verb).replace("=", " ")
        assert verb in (("list",), ("viz",)) or f"Example: dinoneck {words}" in text, verb
        lines = text.splitlines()
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("  -"):
                assert re.search(r"\S {2,}\S", line.strip()) or after.startswith(" " * 6), (
                    verb,
                    line,
                )


def test_the_page_names_every_code() -> None:
    intro = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", intro, re.MULTILINE)]
    assert codes == [0, REFUSED, 2, INTERRUPTED, BROKEN_PIPE, TERMINATED]
