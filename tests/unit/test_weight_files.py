"""Names of wrappers in files of weights."""

from __future__ import annotations

import torch

from dinoneck.weight_files import without_wrapper


def test_wrappers_that_all_names_begin_with_are_taken_away() -> None:
    weight = torch.ones(2)

    tensors, taken = without_wrapper({"module._orig_mod.a": weight, "module._orig_mod.b": weight})

    assert taken == "module._orig_mod."
    assert tensors.keys() == {"a", "b"}


def test_a_state_without_tensors_has_no_wrapper() -> None:
    assert without_wrapper({}) == ({}, "")
