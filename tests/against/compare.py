"""Where two plain forms differ, and which of the differences are meant."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARRAY = "<array>"
"""The only key of what stands for an array in a plain form, see ``canonical.py``."""
RAISED = "<raised>"
"""The only key of what stands for an error: its class and, for the report alone, its message."""
TYPED = "<type>"
"""The first key of what stands for a value of a type that JSON does not know; the second is VALUE."""
VALUE = "<value>"
LIST = Path(__file__).with_name("differences.toml")
FIELDS = ("address", "what", "commit", "why")
IDENTITY = ("dtype", "shape", "sha256", "order", "requires_grad")
"""What makes two arrays equal."""
ORDER = "order of keys"
"""The last step of the address of two mappings whose keys have another order."""
ABSENT = "absent"
SHOWN = 80
"""How many characters of a value the report shows."""


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        address: group, case and the keys that lead to the value, joined by ``/``.
        old: the value in 0.3.0, in a few words.
        here: the value in this checkout, in a few words.
        note: how far the two are apart, or empty.
    """

    address: str
    old: str
    here: str
    note: str = ""

    @property
    def group(self) -> str:
        return self.address.split("/")[0]

    @property
    def case(self) -> str:
        return self.address.split("/")[1] if "/" in self.address else ""


@dataclass
class Comparison:
    """Compares plain forms and collects what differs.

    Attributes:
        compared: how many values (numbers, texts, arrays) were compared.
        differences: in the order of the values.
    """

    compared: int = 0
    differences: list[Difference] = field(default_factory=list)

    def compare(self, address: str, old: Any, here: Any) -> None:
        """Compare two plain forms with everything that they hold."""
        if is_typed(old) or is_typed(here):
            self._compare_types(address, type_of(old), type_of(here))
            self.compare(address, content_of(old), content_of(here))
            return
        if is_marked(old, ARRAY) and is_marked(here, ARRAY):
            self._compare_arrays(address, old[ARRAY], here[ARRAY])
        elif is_mapping(old) and is_mapping(here):
            self._compare_mappings(address, old, here)
        elif isinstance(old, list) and isinstance(here, list):
            self._compare_lists(address, old, here)
        else:
            self._compare_values(address, old, here)

    def _compare_lists(self, address: str, old: list[Any], here: list[Any]) -> None:
        old_names = names_of(old)
        names_here = names_of(here)
        if old_names and names_here:
            old_by_name = dict(zip(old_names, old, strict=True))
            by_name_here = dict(zip(names_here, here, strict=True))
            self._compare_mappings(address, old_by_name, by_name_here)
        else:
            self._compare_mappings(address, by_position(old), by_position(here))

    def _compare_types(self, address: str, old: str, here: str) -> None:
        if old != here:
            start = first_difference(old, here)
            self._add(address, describe(old, start), describe(here, start), "type")

    def _compare_mappings(self, address: str, old: dict[str, Any], here: dict[str, Any]) -> None:
        for key, value in old.items():
            if key in here:
                self.compare(f"{address}/{key}", value, here[key])
            else:
                self._add(f"{address}/{key}", describe(value), ABSENT)
        for key, value in here.items():
            if key not in old:
                self._add(f"{address}/{key}", ABSENT, describe(value))
        shared_in_old = [key for key in old if key in here]
        shared_here = [key for key in here if key in old]
        if shared_in_old != shared_here:
            # an address of its own: an entry for it does not cover the values
            order = f"{address}/{ORDER}"
            self._add(order, ", ".join(shared_in_old), ", ".join(shared_here))

    def _compare_arrays(self, address: str, old: dict[str, Any], here: dict[str, Any]) -> None:
        self.compared += 1
        if any(old[name] != here[name] for name in IDENTITY):
            note = array_distance(old, here)
            self._add(address, describe({ARRAY: old}), describe({ARRAY: here}), note)

    def _compare_values(self, address: str, old: Any, here: Any) -> None:
        self.compared += 1
        # repr tells 1 from 1.0 and 0.0 from -0.0, and NaN equals NaN
        if repr(old) == repr(here):
            return
        note = ""
        if isinstance(old, int | float) and isinstance(here, int | float):
            note = f"difference {abs(old - here):.3g}"
        if isinstance(old, str) and isinstance(here, str):
            start = first_difference(old, here)
            self._add(address, describe(old, start), describe(here, start), note)
        else:
            self._add(address, describe(old), describe(here), note)

    def _add(self, address: str, old: str, here: str, note: str = "") -> None:
        self.differences.append(Difference(address, shorten(old), shorten(here), note))


def is_marked(value: Any, mark: str) -> bool:
    return isinstance(value, dict) and list(value) == [mark]


def typed(name: str, value: Any) -> dict[str, Any]:
    """Return the plain form of a value with a type that the plain form of its content does not tell."""
    return {TYPED: name, VALUE: value}


def is_typed(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == [TYPED, VALUE]


def type_of(plain: Any) -> str:
    """Return the name of a typed value's type, and JSON's name of any other."""
    if is_typed(plain):
        return str(plain[TYPED])
    if is_marked(plain, ARRAY):
        return "array"
    if is_marked(plain, RAISED):
        return "error"
    return type(plain).__name__


def content_of(plain: Any) -> Any:
    """Return what a typed value holds, which may be typed too, and any other value as it is."""
    return plain[VALUE] if is_typed(plain) else plain


def without_type(plain: Any) -> Any:
    """Return the content of a typed value, also of one inside another, and any other value as it is."""
    while is_typed(plain):
        plain = plain[VALUE]
    return plain


def is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and not is_marked(value, ARRAY) and not is_marked(value, RAISED)


def by_position(values: Sequence[Any]) -> dict[str, Any]:
    return {str(position): value for position, value in enumerate(values)}


def names_of(values: Sequence[Any]) -> list[str]:
    """Return the ``name`` of every mapping in a list; none if one has none, or two have the same.

    An item that is added to a list of names is then one difference, not one of all behind it.
    """
    names = []
    for value in values:
        content = without_type(value)
        name = content.get("name") if is_mapping(content) else None
        if not isinstance(name, str) or name in names:
            return []
        names.append(name)
    return names


def first_difference(old: str, here: str) -> int:
    """Return the position of the first character that differs."""
    for position, (a, b) in enumerate(zip(old, here, strict=False)):
        if a != b:
            return position
    return min(len(old), len(here))


def array_distance(old: dict[str, Any], here: dict[str, Any]) -> str:
    """Say how far two arrays are apart, by the values that are kept of them."""
    if "sample" not in old or "sample" not in here or old["shape"] != here["shape"]:
        return ""
    pairs = list(zip(old["sample"], here["sample"], strict=True))
    largest = max((abs(a - b) for a, b in pairs), default=0.0)
    if len(pairs) == old["count"]:
        scope = "of all values"
    else:
        scope = f"of {len(pairs)} of {old['count']} values"
    return f"largest difference {scope} {largest:.3g}, norms {old['norm']:.6g}, {here['norm']:.6g}"


def describe(value: Any, start: int = 0) -> str:
    """Describe a plain form in a few words; a text from a position on."""
    if is_marked(value, ARRAY):
        array = value[ARRAY]
        shape = "x".join(map(str, array["shape"])) or "scalar"
        numbers = " ".join(f"{number:.6g}" for number in array.get("sample", [])[:4])
        words = f"{array['dtype']} {shape}, {array['sha256'][:8]}"
        if array["order"] != sorted(array["order"]):
            words += f", axes in memory {' '.join(map(str, array['order']))}"
        if array["requires_grad"]:
            words += ", requires grad"
        return f"{words}: {numbers}"
    if is_typed(value):
        return f"{value[TYPED]} {describe(value[VALUE])}"
    if is_marked(value, RAISED):
        return f"raises {value[RAISED]['class']}: {value[RAISED]['message']}"
    if isinstance(value, dict):
        return f"a mapping of {', '.join(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str) and start > 10:
        return "..." + repr(value[start - 10 :])
    return repr(value)


def shorten(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return text[: SHOWN - 3] + "..."


@dataclass(frozen=True)
class Entry:
    """A difference that is meant, see ``differences.toml``."""

    address: str
    what: str
    commit: str
    why: str

    @property
    def group(self) -> str:
        return self.address.split("/")[0]

    def covers(self, address: str) -> bool:
        """Whether this entry is about an address, or about something above it."""
        return fnmatch.fnmatchcase(address, self.address) or fnmatch.fnmatchcase(
            address, f"{self.address}/*"
        )


def read_list(path: Path, groups: Collection[str]) -> list[Entry]:
    """Read the differences that are meant.

    Raises:
        ValueError: if an entry lacks a field, has an unknown one, or names no group.
    """
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    entries = []
    for number, fields in enumerate(document.get("difference", []), start=1):
        if sorted(fields) != sorted(FIELDS):
            raise ValueError(
                f"{path.name}: entry {number} has {', '.join(fields)}; expected {', '.join(FIELDS)}"
            )
        entry = Entry(**fields)
        if entry.group not in groups:
            raise ValueError(
                f"{path.name}: the address {entry.address} of entry {number} begins with no group; "
                f"expected one of {', '.join(groups)}"
            )
        entries.append(entry)
    return entries


@dataclass(frozen=True)
class Judgement:
    """Differences and entries, sorted by whether they fit.

    Attributes:
        listed: differences that an entry is about.
        unlisted: differences without an entry.
        stale: entries of the groups that were run which are about no difference.
    """

    listed: list[Difference]
    unlisted: list[Difference]
    stale: list[Entry]


def judge(
    differences: Sequence[Difference], entries: Sequence[Entry], groups: Collection[str]
) -> Judgement:
    """Sort differences by whether the list has them; ``groups`` are those that were run whole."""
    listed = []
    unlisted = []
    used = set()
    for difference in differences:
        covering = [entry for entry in entries if entry.covers(difference.address)]
        used.update(covering)
        if covering:
            listed.append(difference)
        else:
            unlisted.append(difference)
    stale = [entry for entry in entries if entry.group in groups and entry not in used]
    return Judgement(listed=listed, unlisted=unlisted, stale=stale)
