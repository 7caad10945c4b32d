"""Weights that were saved without dinoneck, read without running anything, into a head that was built in Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from dinoneck.checkpoint.contents import check_finite
from dinoneck.errors import BackboneError, CheckpointError
from dinoneck.text import some_of
from dinoneck.weight_files import read_state, without_wrapper

logger = logging.getLogger(__name__)

_SHOWN = 5
Module = TypeVar("Module", bound=nn.Module)


def import_weights(
    head: Module, file: str | os.PathLike[str], rename: Mapping[str, str] | None = None
) -> Module:
    """Load a file of plain weights into a head; every tensor of the file and of the head takes part.

    The exception is the scale of the tokens: where the file has none, tokens pass unchanged.

    A pickle goes through torch's weights-only loader. Use torch 2.10 or later for files of people
    you do not know: the loader of earlier versions had a hole (CVE-2026-24747). ``module.`` and
    ``_orig_mod.`` (DDP, torch.compile) before every name are taken away.

    Args:
        head: a module, built with the shapes and the dtype of the weights; it stays as it was if
            they do not fit.
        file: ``.pt``, ``.pth``, ``.bin`` or ``.safetensors``: a state dict, or a dict that holds
            one under ``state_dict`` or ``model``.
        rename: beginnings of the file's names -> beginnings of the head's names; the longest that
            fits counts.

    Returns:
        The head, in eval mode.

    Raises:
        CheckpointError: if the file is missing, damaged, compressed or would run code; a name is
            missing or unknown; a shape or dtype differs; a value is not finite; a beginning in
            ``rename`` fits no name; or the head is on the device meta.

    Examples:
        >>> import tempfile, pathlib, torch
        >>> from dinoneck import PatchMeanMLP
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mlp.pt"
        >>> torch.save(nn.Sequential(nn.Linear(64, 8), nn.LeakyReLU(), nn.Linear(8, 1)).state_dict(), path)
        >>> mlp = import_weights(PatchMeanMLP(64, 8), path, {"0.": "hidden.", "2.": "out."})
    """
    where = str(file)
    if not isinstance(head, nn.Module):
        raise CheckpointError(
            f"the head is {type(head).__name__}; expected a module: import_weights(head, file)"
        )
    if empty := [name for name, value in head.state_dict().items() if value.is_meta]:
        raise CheckpointError(
            f"{empty[0]} of the head is on the device meta; build the head with device='cpu'"
        )
    try:
        state, prefix = without_wrapper(read_state(file))
    except BackboneError as error:
        raise CheckpointError(str(error)) from error
    if prefix:
        logger.warning(
            "%s was saved from a wrapped module: %r is taken from all its names", where, prefix
        )
    names, expected = _renamed(state, rename or {}, where), head.state_dict()
    unscaled = _unscaled(head, names)
    expected = {
        name: like for name, like in expected.items() if name.rpartition(".")[0] not in unscaled
    }
    problems = []
    if missing := expected.keys() - names.keys():
        problems.append(f"lacks {some_of(missing, _SHOWN)}")
    if unknown := names.keys() - expected.keys():
        theirs = some_of((names[name] for name in unknown), _SHOWN)
        problems.append(f"holds {theirs}, which this head has no place for")
    if problems:
        raise CheckpointError(
            f"{where} {', and '.join(problems)}; "
            "rename={'beginning in the file': 'beginning in the head'} gives other names",
            step="tensors",
        )
    _check_shapes(state, names, expected, where)
    check_finite(state, where)
    head.load_state_dict({name: state[names[name]] for name in expected}, strict=False)
    for scale in unscaled.values():
        scale.reset_parameters()
    return head.eval()


def _check_shapes(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    expected: Mapping[str, Tensor],
    where: str,
) -> None:
    for name, like in expected.items():
        value = state[names[name]]
        if value.shape != like.shape or value.dtype != like.dtype:
            raise CheckpointError(
                f"{where}: {names[name]} is {value.dtype} {tuple(value.shape)}; expected "
                f"{like.dtype} {tuple(like.shape)}. Build the head with the arguments and the "
                "dtype= of the weights",
                step="tensors",
            )


def _unscaled(head: nn.Module, names: Mapping[str, str]) -> dict[str, Any]:
    """The modules by path that measure the scale of tokens, and of which no name is there."""
    scales = {path: each for path, each in head.named_modules() if hasattr(each, "is_measured")}
    return {
        path: each
        for path, each in scales.items()
        if not any(name.startswith(f"{path}.") for name in names)
    }


def _renamed(state: Mapping[str, Tensor], rename: Mapping[str, str], where: str) -> dict[str, str]:
    """The head's name of every tensor -> its name in the file."""
    if not isinstance(rename, Mapping) or not all(
        isinstance(x, str) for x in (*rename, *rename.values())
    ):
        raise CheckpointError(
            f"rename is {rename!r}; expected {{beginning in the file: beginning in the head}}, "
            "texts"
        )
    names: dict[str, str] = {}
    used: set[str] = set()
    for theirs in state:
        begin = max((old for old in rename if theirs.startswith(old)), key=len, default="")
        used.add(begin)
        ours = rename.get(begin, "") + theirs.removeprefix(begin)
        if ours in names:
            raise CheckpointError(
                f"{where}: {theirs} and {names[ours]} both become {ours}", step="tensors"
            )
        names[ours] = theirs
    if unused := sorted(rename.keys() - used):
        raise CheckpointError(
            f"{where}: no name begins with {some_of(map(repr, unused), _SHOWN)}; it holds "
            f"{some_of(state, _SHOWN)}",
            step="tensors",
        )
    return names
