"""What of a module, a backbone and a record goes into a head file; checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from dinoneck import registry
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.file import canonical, strict_json
from dinoneck.checkpoint.migrate import versions_of
from dinoneck.checkpoint.schema import VIEWS
from dinoneck.configured import normal
from dinoneck.data.photos import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError, RegistryError, did_you_mean


def named(module: nn.Module) -> tuple[str, dict[str, int]]:
    """The registered name of a module, and the versions of all classes in its configuration."""
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"{str(module)[:80]!r} is {type(module).__name__}; expected a registered module. The path comes first: "
            "save_head(path, module)",
            step="write",
        )
    try:
        head_type = registry.name_of(type(module))
    except RegistryError as error:
        inner = next((getattr(module, n) for n in ("_orig_mod", "module", "injection") if hasattr(module, n)), None)
        hint = f" Save the {type(inner).__name__} inside it instead." if isinstance(inner, nn.Module) else ""
        raise CheckpointError(f"{error}.{hint}", step="registry") from None
    return head_type, versions_of(head_type, cast("Any", module).config)


def check_whole(module: nn.Module, name: str) -> None:
    """Refuse state beyond the configuration and tensors, which a file would lose. Hooks are not part of a file.

    Raises:
        CheckpointError: naming it.
    """
    for where, part in module.named_modules():
        if getattr(part.get_extra_state, "__func__", None) is not nn.Module.get_extra_state:
            raise CheckpointError(
                f"{name}: {where or 'the module itself'} has a get_extra_state, which a file does not hold; keep it in "
                "parameters, buffers or constructor arguments",
                step="write",
            )


def probed(backbone: Backbone) -> dict[str, Any]:
    """The record with the functional probe; a backbone without values has none."""
    record = backbone.record()
    if record["weights_sha256"] is None:
        return record
    probe = backbone.probe()
    if not all(math.isfinite(number) for number in probe):
        raise CheckpointError(
            f"the backbone {backbone.name!r} gives values that are not finite; check its weights", step="write"
        )
    return {**record, "probe": probe}


def plain_backbone(backbone: Any) -> Any:
    """The Backbone inside torch.compile's wrapper."""
    inner = getattr(backbone, "_orig_mod", None)
    return inner if isinstance(inner, Backbone) else backbone


def plain(record: Mapping[str, Any] | None, where: str) -> dict[str, Any] | None:
    """A deep copy in JSON form."""
    if record is None:
        return None
    try:
        if not isinstance(record, Mapping):
            raise TypeError(f"expected a dict, got {type(record).__name__}")
        copied = normal(Any, dict(record), where)
        return cast("dict[str, Any]", strict_json(canonical(copied), where, where))
    except (CheckpointError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not a plain record of JSON values: {error}", step="write") from None


def inputs_of(preprocess: Preprocessing | Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """The record of how images are prepared, in its normal form."""
    if isinstance(preprocess, Preprocessing):
        return preprocess.record()
    record = plain(preprocess, "preprocess")
    try:
        return None if record is None else Preprocessing.from_record(record).record()
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: inputs: {error}", step="config") from None


def views_of(tta: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The record of views at prediction; a set of views is named by one of those known here."""
    record = {"ops": tta, "reduce": "mean"} if isinstance(tta, str) else plain(tta, "tta")
    ops = (record or {}).get("ops")
    if isinstance(ops, str) and ops not in VIEWS:
        raise CheckpointError(
            f"tta.ops is {ops[:80]!r}; expected one of {', '.join(VIEWS)}.{did_you_mean(ops, VIEWS)}", step="write"
        )
    return record
