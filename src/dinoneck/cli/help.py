"""The help of a verb: what it does, the options of a first use, and the others below their headings."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dinoneck.cli.options import REQUIRED, Option, description_of, options_of

_WIDEST = 100  # characters of a line
_COLUMN = 24  # where the texts begin
_OF_EVERY_VERB = {
    "--import MODULE": "module or Python file to import first, such as one that registers your own "
    "heads",
    "--json": "print one JSON document on stdout, and everything else on stderr",
    "-h, --help": "print this help",
}
"""Words of an option -> its text, of those that :mod:`dinoneck.cli.main` reads."""


def verb_help(prog: str, verb: Any, *, pairs: bool, first: Sequence[str]) -> str:
    """Return the help of a verb.

    Args:
        prog: what stands before the words.
        verb: its function, or a partial of it whose keywords are the defaults.
        pairs: whether every switch has its opposite too (``--x`` and ``--no-x``).
        first: the flags of a first use, in their order; those that the verb lacks are left out.
            Without any the function's own options come first.
    """
    options = options_of(verb)
    usage = [f"usage: {prog}"]
    usage += [_in_usage(option) for option in options if option.is_positional]
    for option in options:
        if option.default is REQUIRED and not option.is_positional:
            usage.append(f"{option.flag} {option.values}")
    lines = [" ".join([*usage, "[OPTIONS]"]), "", *_wrapped_description(description_of(verb))]
    for heading, members in _sections(options, first).items():
        lines += ["", f"{heading}:"]
        for option in members:
            lines += _entry(_words_of(option, pairs=pairs), _text_of(option))
    lines += ["", "of every verb:"]
    flags = [option.flag for option in options]
    for words, text in _OF_EVERY_VERB.items():
        if words.split()[0] not in flags:
            lines += _entry(words, text)
    return "\n".join(lines)


def verbs_help(prog: str, verbs: Mapping[str, Any]) -> str:
    """Return the help of a verb that has sub-verbs: a line for each of them."""
    lines = [f"usage: {prog} {{{','.join(verbs)}}} ...", "", "subcommands:"]
    for name, verb in verbs.items():
        lines += _entry(name, description_of(verb).partition("\n")[0])
    lines += ["", f"'{prog} {next(iter(verbs))} --help' shows the options of one."]
    return "\n".join(lines)


def _in_usage(option: Option) -> str:
    """An argument that is known by its place, in the line of usage."""
    return _name(option) if option.default is REQUIRED else f"[{_name(option)}]"


def _name(option: Option) -> str:
    """What an argument that is known by its place is called."""
    if option.values in ("TEXT", "PATH"):
        return option.flag.removeprefix("--").upper()
    return option.values


def _sections(options: Iterable[Option], first: Sequence[str]) -> dict[str, list[Option]]:
    """Heading -> its options."""
    positions = {flag: position for position, flag in enumerate(first)}
    earliest = []
    others: dict[str, list[Option]] = {}
    for option in options:
        if option.flag in positions:
            earliest.append(option)
        elif option.is_positional:
            others.setdefault("arguments", []).append(option)
        else:
            others.setdefault(option.heading or "options", []).append(option)
    earliest.sort(key=lambda option: positions[option.flag])
    # a required option is stated first, whatever its place in the signature
    others.get("options", []).sort(key=lambda option: option.default is not REQUIRED)
    sections = {"arguments": others.pop("arguments")} if "arguments" in others else {}
    if earliest:
        sections["for a first run, in the order of use"] = earliest
        if "options" in others:
            sections["more of the run"] = others.pop("options")
    return sections | others


def _words_of(option: Option, *, pairs: bool) -> str:
    """An option as it is typed; of a switch that is on its opposite too."""
    if option.is_positional:
        return _name(option)
    if not option.is_switch:
        return f"{option.flag} {option.values}"
    opposite = option.flag.replace("--", "--no-", 1)
    if option.default is not True:
        return option.flag
    return f"{option.flag}, {opposite}" if pairs else opposite


def _text_of(option: Option) -> str:
    """What an option is, with its default where there is one to state, and where it is not stated already."""
    default = option.default
    text = option.text
    if default is None:
        text = text.replace("None = ", "default: ")
    elif default in ((), "", {}):
        text = text.replace("empty = ", "default: ")
    elif "none" in option.values:
        text = text.replace("None = ", "none = ")
    else:
        text = text.replace("None = ", "without it ")
    if default is REQUIRED:
        return text if option.is_positional else f"{text.removesuffix('.')} (required)"
    says_nothing = default is None or default is False or default in ((), "", {})
    if says_nothing or "default" in text:
        return text
    return f"{text.removesuffix('.')} (default: {_default_text(option)})"


def _default_text(option: Option) -> str:
    """The default of an option, as it is typed."""
    default = option.default
    if default is True:
        return option.flag
    if option.spec is not None:
        return " ".join(option.spec.str_from_instance(default))
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size().columns)


def _entry(words: str, text: str) -> list[str]:
    """The lines of an option; long words have a line of their own."""
    indent = " " * _COLUMN
    lines = textwrap.wrap(
        text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if len(words) > _COLUMN - 4 or not lines:
        return [f"  {words}", *lines]
    lines[0] = f"  {words}".ljust(_COLUMN) + lines[0].lstrip()
    return lines


def _wrapped_description(text: str) -> list[str]:
    """The lines of a description: paragraphs are wrapped, indented lines stay."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(" "):
            lines += [*paragraph.splitlines(), ""]
        else:
            lines += [*textwrap.wrap(paragraph, _width(), break_on_hyphens=False), ""]
    return lines[:-1]
