"""An encoder built without storage, and completed after another library has loaded its weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dinoneck.backbones import weight_hashes
from dinoneck.interop.encoder import EncoderByName, PyramidEncoder


class DeferredEncoder:
    """Builds an encoder whose parameters have no storage; :meth:`complete` restores what a state dict does not hold.

    A state dict lacks non-persistent buffers, such as rotary frequencies, and which parameters are frozen. Both are
    recorded when the encoder is built.

    Args:
        recipe: what to build.

    Attributes:
        encoder: its parameters are on the meta device, its buffers are real.
    """

    def __init__(self, recipe: EncoderByName) -> None:
        self.recipe = recipe
        with torch.device("cpu"), _parameters_on_meta():
            self.encoder = recipe.build(weights=False)
        stored = self.encoder.state_dict().keys()
        self.unstored = {name: value.clone() for name, value in self.encoder.named_buffers() if name not in stored}
        self.frozen = {name for name, value in self.encoder.named_parameters() if not value.requires_grad}

    @torch.no_grad()
    def complete(self, encoder: PyramidEncoder, is_loaded: Callable[[Tensor], bool]) -> None:
        """Complete an encoder whose tensors have storage by now.

        Tensors that were not loaded get the values of a new build: seeded or published weights, a neck's initial ones.

        Args:
            encoder: the one built in the constructor, or its copy.
            is_loaded: whether the values of a parameter or buffer come from the file.
        """
        for name, value in self.unstored.items():
            encoder.get_buffer(name).copy_(value)
        state = encoder.state_dict(keep_vars=True)
        missing = {name: value for name, value in state.items() if not is_loaded(value)}
        if missing:
            initial = self.recipe.build(weights=any(name.startswith("backbone.") for name in missing)).state_dict()
            for name, value in missing.items():
                value.copy_(initial[name])
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        backbone = encoder.backbone
        adapter = backbone.adapter
        adapter.origin, adapter.origin_dtype = {"kind": "file"}, backbone.dtype
        adapter.origin_sha256 = weight_hashes.digest(adapter.model)
        backbone.train(encoder.training)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give modules that this thread builds in the ``with`` block parameters without storage, and real buffers."""
    this_thread = threading.get_ident()

    def without_storage(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != this_thread:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(without_storage)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
