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
    for name, tensor in head.state_dict().items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{name} of the head is on the device meta; build the head with device='cpu'"
            )
    try:
        state, prefix = without_wrapper(read_state(file))
    except BackboneError as error:
        raise CheckpointError(str(error)) from error
    if prefix:
        logger.warning(
            "%s was saved from a wrapped module: %r is taken from all its names", where, prefix
        )
    file_names = _rename(state, rename or {}, where)
    unscaled = _unscaled(head, file_names)
    expected = {}
    for name, tensor in head.state_dict().items():
        path, _, _ = name.rpartition(".")
        if path not in unscaled:
            expected[name] = tensor
    _check_names(file_names, expected, where)
    for name, tensor in expected.items():
        file_name = file_names[name]
        _check_tensor(state[file_name], tensor, f"{where}: {file_name}")
    check_finite(state, where)
    weights = {name: state[file_names[name]] for name in expected}
    head.load_state_dict(weights, strict=False)
    for scale in unscaled.values():
        scale.reset_parameters()
    return head.eval()


def _check_names(file_names: Mapping[str, str], expected: Mapping[str, Tensor], where: str) -> None:
    """Compare the names in a file with those of the head.

    Args:
        file_names: the head's name of every tensor in the file -> its name there.
        expected: the tensors of the head.
        where: the file, for messages.
    """
    problems = []
    missing = expected.keys() - file_names.keys()
    if missing:
        problems.append(f"lacks {some_of(missing, _SHOWN)}")
    unknown = [file_names[name] for name in file_names.keys() - expected.keys()]
    if unknown:
        problems.append(f"holds {some_of(unknown, _SHOWN)}, which this head has no place for")
    if problems:
        raise CheckpointError(
            f"{where} {', and '.join(problems)}; "
            "rename={'beginning in the file': 'beginning in the head'} gives other names",
            step="tensors",
        )


def _check_tensor(tensor: Tensor, expected: Tensor, where: str) -> None:
    """Compare the shape and dtype of a file's tensor with those of the head."""
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"{where} has the shape {tuple(tensor.shape)}; expected {tuple(expected.shape)}. Build "
            "the head with the arguments of the weights",
            step="tensors",
        )
    if tensor.dtype != expected.dtype:
        raise CheckpointError(
            f"{where} is {tensor.dtype}; expected {expected.dtype}. Build the head with the dtype= "
            "of the weights",
            step="tensors",
        )


def _unscaled(head: nn.Module, file_names: Mapping[str, str]) -> dict[str, Any]:
    """The modules by path that measure the scale of tokens, and of which the file has no tensor."""
    unscaled = {}
    for path, module in head.named_modules():
        if not hasattr(module, "is_measured"):
            continue
        if not any(name.startswith(f"{path}.") for name in file_names):
            unscaled[path] = module
    return unscaled


def _rename(state: Mapping[str, Tensor], rename: Mapping[str, str], where: str) -> dict[str, str]:
    """The head's name of every tensor -> its name in the file."""
    if not isinstance(rename, Mapping) or not all(
        isinstance(text, str) for text in (*rename, *rename.values())
    ):
        raise CheckpointError(
            f"rename is {rename!r}; expected {{beginning in the file: beginning in the head}}, "
            "texts"
        )
    file_names: dict[str, str] = {}
    used: set[str] = set()
    for file_name in state:
        fitting = [beginning for beginning in rename if file_name.startswith(beginning)]
        beginning = max(fitting, key=len, default="")
        used.add(beginning)
        name = rename.get(beginning, "") + file_name.removeprefix(beginning)
        if name in file_names:
            raise CheckpointError(
                f"{where}: {file_name} and {file_names[name]} both become {name}", step="tensors"
            )
        file_names[name] = file_name
    unused = rename.keys() - used
    if unused:
        raise CheckpointError(
            f"{where}: no name begins with {some_of(map(repr, unused), _SHOWN)}; it holds "
            f"{some_of(state, _SHOWN)}",
            step="tensors",
        )
    return file_names
