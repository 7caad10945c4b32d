"""Older head files: pure functions that turn their content into the present form.

A file is checked in full as what it is before any of them runs, and what they give is checked like any other content.
There are two kinds: the schema's own steps are here; a class whose arguments or parameters' names have changed brings
its own, see :class:`dinoneck.configured.Configured`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dinoneck import registry
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.configured import Migration, is_part
from dinoneck.errors import CheckpointError, RegistryError

Content = tuple[dict[str, Any], dict[str, Any]]
MAX_TYPES = 256
_PARTS = 64  # that a configuration may name beyond the tensors in its file: such without a tensor


class Part(NamedTuple):
    """A registered module that another one's configuration names.

    Attributes:
        head_type: its registered name.
        config: its constructor arguments.
        prefix: of its tensors' names.
        place: argument that names it, and its index there; None where the argument is the part itself.
    """

    head_type: str
    config: dict[str, Any]
    prefix: str
    place: tuple[str, int | None]


def first_to_second(meta: Mapping[str, Any], tensors: Mapping[str, Any]) -> Content:
    """Schema 2 adds the versions of classes, facts of training, the head's licence and the views at prediction."""
    versions = dict.fromkeys(types_in(meta["head_type"], meta["config"]), 1)
    added = {"versions": versions, "training": None, "license": None, "tta": None}
    return {**meta, "schema": 2, **added}, dict(tensors)


STEPS: dict[int, Callable[[Mapping[str, Any], Mapping[str, Any]], Content]] = {1: first_to_second}


def versions_of(head_type: str, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the present version of every registered class that a head's configuration names."""
    return {name: version_of(registry.resolve(name)) for name in types_in(head_type, config)}


def version_of(cls: type) -> int:
    """Return the version that a class states itself, not its parents'; 1 if it states none."""
    return int(vars(cls).get("checkpoint_version", 1))


def types_in(head_type: str, config: Mapping[str, Any]) -> list[str]:
    """Return the registered names in a configuration, sorted: its own and those of its parts."""
    inner = (types_in(part.head_type, part.config) for part in _parts(head_type, config))
    return sorted({head_type, *(name for names in inner for name in names)})


def check_versions(meta: Mapping[str, Any], name: str) -> None:
    """Refuse a head of an unknown class, or of a later version of its class than the one here.

    Raises:
        CheckpointError: naming the class and both versions.
    """
    try:
        registry.resolve(meta["head_type"])
    except RegistryError as error:
        raise CheckpointError(f"{name}: {error}", step="registry") from None
    named, versions = types_in(meta["head_type"], meta["config"]), meta.get("versions") or {}
    if len(named) > MAX_TYPES:
        raise CheckpointError(
            f"{name}: the configuration names {len(named)} head types; a head is made of at most {MAX_TYPES}",
            step="config",
        )
    for head_type, version in versions.items():
        known = _known_version(head_type) if head_type in named else None  # the check of the configuration reports it
        if known is not None and version > known:
            made = meta["created_by"].get("dinoneck")
            raise CheckpointError(
                f"{name} holds {head_type!r} in version {version}; the one here is version {known}. Install the "
                f"version that wrote the file (dinoneck {str(made)[:40]}, or the package of {head_type!r}) or a later "
                "one",
                step="registry",
            )


def is_present(meta: Mapping[str, Any]) -> bool:
    """Whether a header that :func:`check_versions` let pass needs no migration."""
    named = types_in(meta["head_type"], meta["config"])
    return bool(
        meta["schema"] == SCHEMA
        and all(_known_version(head_type) in (meta["versions"].get(head_type), None) for head_type in named)
    )


def to_present(meta: Mapping[str, Any], tensors: Mapping[str, Any], name: str) -> Content:
    """Return what an older file would hold if it were written now; its listing of tensors and digest are left to do.

    Args:
        meta: the metadata of a sound file.
        tensors: the head's tensors by name, LoRA's left out; they are passed on, not copied.
        name: of the file, for messages.

    Raises:
        CheckpointError: if a step is missing or fails.
    """
    new, state = copy.deepcopy(dict(meta)), dict(tensors)
    for schema in range(new["schema"], SCHEMA):
        new, state = STEPS[schema](new, state)
    if sorted(new["versions"]) != types_in(new["head_type"], new["config"]):
        return new, state  # the check of the configuration refuses it
    if (count := _count(new["head_type"], new["config"])) > len(state) + _PARTS:
        raise CheckpointError(
            f"{name}: the configuration names {count} parts, the file holds {len(state)} tensors: it describes far "
            "more than the file lists",
            step="config",
        )
    present = versions_of(new["head_type"], new["config"])
    older = {head_type: version for head_type, version in new["versions"].items() if version != present[head_type]}
    new["config"], state = _carried(new["head_type"], new["config"], state, older, name)
    return {**new, "versions": versions_of(new["head_type"], new["config"])}, state


def _carried(
    head_type: str, config: dict[str, Any], tensors: dict[str, Any], older: Mapping[str, int], name: str
) -> Content:
    """Run the steps of a class, then those of its parts; classes that are not older have none."""
    cls = registry.resolve(head_type)
    own: Mapping[int, Migration] = vars(cls).get("checkpoint_migrations", {})
    for version in range(older.get(head_type, version_of(cls)), version_of(cls)):
        if version not in own:
            raise CheckpointError(
                f"{name} holds {head_type!r} in version {version}, which nothing here turns into version {version + 1}",
                step="registry",
            )
        try:
            config, tensors = own[version](copy.deepcopy(config), dict(tensors))
        except Exception as error:  # any type: the function got values from a file
            raise CheckpointError(
                f"{name}: {head_type!r} of version {version} cannot be carried over to {version + 1}: {error!r}",
                step="config",
            ) from error
    parts = [part for part in _parts(head_type, config) if not older.keys().isdisjoint(types_in(*part[:2]))]
    if not parts:
        return config, tensors
    rest, inside = _sorted_out(tensors, {part.prefix for part in parts})
    changed = []
    for part in parts:
        new, state = _carried(part.head_type, part.config, inside[part.prefix], older, name)
        changed.append(part._replace(config=new))
        rest |= {part.prefix + key: value for key, value in state.items()}
    return _with_parts(config, changed), rest


def _parts(head_type: str, config: Mapping[str, Any]) -> Iterator[Part]:
    """The registered modules among a configuration's arguments, under the attribute of the argument's name.

    Members of an ensemble stand under ``heads``; a PyramidHead's neck is written flat, without its ``embed_dim``.
    """
    for name, value in config.items():
        if _is_flat_neck(name, value):
            own = {key: item for key, item in value.items() if key != "type"}
            yield Part(value["type"], {"embed_dim": config.get("embed_dim"), **own}, "neck.", (name, None))
        elif _is_named(value):
            yield Part(value["type"], value["config"], f"{name}.", (name, None))
        elif isinstance(value, list):
            prefix = "heads" if (head_type, name) == ("ensemble", "members") else name
            for place, item in enumerate(value):
                if _is_named(item):
                    yield Part(item["type"], item["config"], f"{prefix}.{place}.", (name, place))


def _is_flat_neck(name: str, value: Any) -> bool:
    """Whether an argument is the neck of a PyramidHead or of a class derived from it."""
    return name == "neck" and isinstance(value, dict) and isinstance(value.get("type"), str) and not _is_named(value)


def _is_named(value: Any) -> bool:
    return is_part(value) and isinstance(value["type"], str)


def _count(head_type: str, config: Mapping[str, Any]) -> int:
    """How many modules a configuration names, itself included."""
    return 1 + sum(_count(part.head_type, part.config) for part in _parts(head_type, config))


def _sorted_out(
    tensors: Mapping[str, Any], prefixes: Collection[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The tensors of no part, and those of each by its prefix, under the names they have inside it."""
    rest: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {prefix: {} for prefix in prefixes}
    for key, value in tensors.items():
        first, _, other = key.partition(".")
        second = other.partition(".")[0]
        for prefix in (f"{first}.", f"{first}.{second}."):
            if prefix in inside and key.startswith(prefix):
                inside[prefix][key.removeprefix(prefix)] = value
                break
        else:
            rest[key] = value
    return rest, inside


def _with_parts(config: Mapping[str, Any], parts: Iterable[Part]) -> dict[str, Any]:
    """The configuration with those of its parts exchanged."""
    new = copy.deepcopy(dict(config))
    for part in parts:
        name, place = part.place
        if _is_flat_neck(name, new[name]):
            new["neck"] = {"type": part.head_type, **{k: v for k, v in part.config.items() if k != "embed_dim"}}
        else:
            (new[name] if place is None else new[name][place])["config"] = part.config
    return new


def _known_version(head_type: str) -> int | None:
    try:
        return version_of(registry.resolve(head_type))
    except RegistryError:
        return None  # the check of the configuration reports it
