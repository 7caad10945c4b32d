"""What makes a training run this one: another run must not go on from its state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dinoneck.configured import encode
from dinoneck.errors import CheckpointError
from dinoneck.heads.head import Head
from dinoneck.losses.composition import CompositionLoss
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.losses.uncertainty import UncertaintyWeighting
from dinoneck.tensor_bytes import bytes_of
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import TokenSource, record_of

_SHOWN = 60


def identity(
    head: Head,
    loss: TaskLoss,
    source: TokenSource,
    recipe: Recipe,
    *,
    ids: Sequence[str],
    val_ids: Sequence[str],
    labels: Mapping[str, Mapping[str, Tensor]],
    groups: Sequence[Hashable] | None,
    numbers: Mapping[str, Any],
) -> dict[str, Any]:
    """Return name -> plain value; long things by their SHA-256.

    The weights that the head begins with are not part of it: a resumed run takes those of its state.

    Args:
        head: its type, configuration, tasks and the form of its weights count.
        loss: the names of its parts count, and the values of those that the head's configuration does not give.
        source: its record of these ids, or else the first sample's tokens.
        recipe: all that decides the result.
        ids: of the training samples.
        val_ids: of the validation samples.
        labels: kind -> name -> tensor of all samples.
        groups: of the training samples.
        numbers: epochs, batch size and so on.
    """
    tables = {f"{kind} of {name}": x for kind, table in labels.items() for name, x in sorted(table.items())}
    told = {
        "head": {"type": type(head).__name__, "config": encode(head.config), "weights": _forms(head)},
        "loss": {
            **({} if type(loss) is TaskLoss else {"type": type(loss).__qualname__}),
            "compositions": [_term(own, head) for own in loss.compositions],
            "weighting": _weighting(loss.weighting),
            "regularisers": [encode(own) for own in loss.regularisers],
        },
        "recipe": recipe.record(),
        "ids": _listed(ids),
        "val_ids": _listed(val_ids),
        "source": record_of(source, [*ids, *val_ids]),
        "groups": None if groups is None else _listed([str(group) for group in groups]),
        **{what: _sha256([repr((x.dtype, tuple(x.shape))).encode(), bytes_of(x)]) for what, x in tables.items()},
        **numbers,
    }
    plain: dict[str, Any] = json.loads(json.dumps(told))
    return plain


def check_same(found: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with the state of another run.

    Raises:
        CheckpointError: naming the first difference.
    """
    differences = list(_differences(found, own, ""))
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise CheckpointError(
            f"{where} holds the state of another run: {differences[0]}{more}. Give this run a folder of its own, or "
            "replace the older one: fit(..., resume=False), --no-resume",
            step="pairing",
        )


def _differences(found: Any, own: Any, name: str) -> Iterable[str]:
    if isinstance(found, Mapping) and isinstance(own, Mapping):
        for key in [*own, *(key for key in found if key not in own)]:
            yield from _differences(found.get(key), own.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(found, list) and isinstance(own, list) and len(found) == len(own):
        for place, pair in enumerate(zip(found, own, strict=True)):
            yield from _differences(*pair, f"{name}[{place}]")
    elif found != own:
        texts = repr(found), repr(own)
        place = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        begin = max(0, place - _SHOWN // 2)
        yield "{} is {} there and {} here".format(name, *(_cut(text, begin) for text in texts))


def _cut(text: str, begin: int) -> str:
    """The part of a long text where it begins to differ from another one."""
    begin = begin if len(text) > _SHOWN else 0
    end = begin + _SHOWN
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"


def _term(own: CompositionLoss, head: Head) -> Any:
    """Its name where the head's configuration gives all of it, else its values."""
    return own.name if any(own == CompositionLoss(each) for each in head.compositions) else encode(own)


def _weighting(own: UncertaintyWeighting | None) -> Any:
    """Its names; of another class, which and with which arguments."""
    if own is None or type(own) is UncertaintyWeighting:
        return None if own is None else list(own.names)
    return {"type": type(own).__qualname__, "config": own.config}


def _forms(head: Head) -> dict[str, str]:
    """Name -> dtype, shape and whether it is trained: a changed class of the same configuration is another head."""
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    return {
        name: f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}{'' if name in trained else ', not trained'}"
        for name, x in head.state_dict().items()
    }


def _listed(ids: Sequence[str]) -> dict[str, Any]:
    return {"count": len(ids), "sha256": _sha256(f"{image_id}\0".encode() for image_id in ids)}


def _sha256(chunks: Iterable[bytes | memoryview]) -> str:
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()
