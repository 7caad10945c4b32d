"""Writes the verbs of docs/reference/command-line.md from the parser: ``python -m tests.docs.command_line``.

The page keeps what stands above its mark; below it comes a section per verb, in words that do not depend on the version
of Python, as those of ``--help`` do.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from dinoneck.cli.main import VERBS, parser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "command-line.md"
MARK = "<!-- from here on written by: python -m tests.docs.command_line -->\n"
_NO_ROW = (argparse._HelpAction, argparse._SubParsersAction)


def sections() -> str:
    """Every verb, with its sub-verbs, arguments and examples."""
    top = parser()
    verbs = _sub_verbs(top)
    parts = ["## For every verb\n", _table(top._actions)]
    for name in VERBS:
        parts += _section(f"dinoneck {name}", verbs[name], 2)
    return "\n".join(parts)


def _section(name: str, verb: argparse.ArgumentParser, depth: int) -> Iterator[str]:
    yield f"{'#' * depth} {name}\n"
    yield f"{_sentence(verb.description or '')}\n"
    yield f"```console\n{_examples(verb)}\n```\n"
    plain = [action for group in verb._action_groups[:2] for action in group._group_actions]
    yield from _group("", plain)
    for group in verb._action_groups[2:]:
        yield from _group(group.title or "", group._group_actions)
    for sub_name, sub in _sub_verbs(verb).items():
        yield from _section(f"{name} {sub_name}", sub, depth + 1)


def _group(title: str, actions: list[argparse.Action]) -> Iterator[str]:
    if any(not isinstance(action, _NO_ROW) for action in actions):
        if title:
            yield f"{title[:1].upper()}{title[1:]}:\n"
        yield _table(actions)


def _sub_verbs(verb: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in verb._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def _examples(verb: argparse.ArgumentParser) -> str:
    lines = (verb.epilog or "").removeprefix("example: ").splitlines()
    return "\n".join(f"$ {line.strip()}" for line in lines)


def _table(actions: list[argparse.Action]) -> str:
    rows = ["| argument | meaning |", "|---|---|"]
    for action in actions:
        if not isinstance(action, _NO_ROW):
            rows.append(f"| {_spelled(action)} | {_meaning(action)} |")
    return "\n".join(rows) + "\n"


def _spelled(action: argparse.Action) -> str:
    """``--name VALUE``, or the name of what is given without one."""
    value = action.metavar or action.dest.replace("_", "-")
    value = action.dest.upper() if "{None}" in value else value
    if not action.option_strings:
        more = {"+": " ...", "*": " ...", "?": ""}.get(str(action.nargs), "")
        return f"`[{value}{more}]`" if action.nargs in ("?", "*") else f"`{value}{more}`"
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    if action.nargs == 0:
        return names
    name, choices = _generated(action.metavar)
    shown = name or ("" if action.choices or choices else action.dest.upper())
    if choices or name.endswith("..."):
        return f"`{action.option_strings[-1]} {name}`".replace(" `", "`")
    shown = {"+": f"{shown} ...", "*": f"[{shown} ...]", "?": f"[{shown}]"}.get(str(action.nargs), str(shown)).strip()
    return f"`{action.option_strings[-1]} {shown}`" if shown else names


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("|", "\\|").replace("%%", "%")
    text = re.sub(r":\w+:`~?([^`]+)`|``", lambda found: f"`{found[1]}`" if found[1] else "`", text)
    text = re.sub(r"\.? \((?:default: (?:None|none|''|False|True|)|required)\)$", "", text)
    text = re.sub(r"\. \(default: (.*)\)$", r" (default \1)", text)
    given = _generated(action.metavar)[1] or (
        [] if action.metavar else [str(choice) for choice in action.choices or ()]
    )
    choices = ", ".join(f"`{choice}`" for choice in given)
    needed = "**needed**" if action.option_strings and action.required else ""
    return "; ".join(filter(None, [needed, ": ".join(filter(None, [choices, text]))]))


def _generated(metavar: str | tuple[str, ...] | None) -> tuple[str, list[str]]:
    """The name of a value, and its choices, of what the generated flags of ``train`` have in its place."""
    text = str(metavar or "").replace("{None}|", "").replace("|none", "")
    if (listed := re.fullmatch(r"\{([\w,-]+)\}", text)) is not None:
        return "", [word for word in listed[1].split(",") if word != "None"]
    several = re.search(r"\[\[?([A-Z]+) \[", text)
    return (f"{several[1]} ..." if several else text.strip("[]")), []


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) else ".")


def page() -> str:
    """The whole page as it should be."""
    return PAGE.read_text(encoding="utf-8").split(MARK)[0] + MARK + "\n" + sections()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
