"""What a head was trained on, as its file records it, compared with the Tokens of every call."""

from __future__ import annotations

from dataclasses import dataclass

from dinoneck.errors import BackboneError
from dinoneck.grid import PatchSize
from dinoneck.tokens import Tokens


@dataclass(frozen=True)
class Origin:
    """The backbone record of a head file, as far as Tokens tell it too.

    Attributes:
        name: of the model.
        source: fingerprint of its weights; None = unknown, as in all that follow.
        layers: block indices of the tokens.
        normed: whether its final norm was applied.
        patch_size: pixels per patch.
    """

    name: str
    source: str | None = None
    layers: tuple[int, ...] | None = None
    normed: bool | None = None
    patch_size: PatchSize | None = None

    def check(self, tokens: Tokens, owner: str, reads: tuple[int, ...] | None = None) -> None:
        """Refuse tokens of another backbone. Only plain values are compared, and only those that both sides know.

        Args:
            tokens: that the head is given.
            owner: the head, for messages.
            reads: block indices that the head selects; None: it takes the layers as they come.

        Raises:
            BackboneError: naming what differs, both values and the remedy.
        """
        pairs: list[tuple[str, object, object]] = [
            ("source (fingerprint of the weights)", self.source, tokens.source),
            ("normed (final norm applied)", self.normed, tokens.normed),
            ("patch_size", self.patch_size, tokens.patch_size),
        ]
        if reads is None or tokens.layers is None or not set(reads) <= set(tokens.layers):
            pairs.append(("layers", self.layers if reads is None else reads, tokens.layers))
        differing = [
            f"{what}: trained on {own}, got {given}"
            for what, own, given in pairs
            if own is not None and given is not None and own != given
        ]
        if differing:
            raise BackboneError(
                f"this {owner} was trained on other tokens ({'; '.join(differing)}). Use tokens of {self.name!r} with "
                f"layers={self.layers}, norm={self.normed} and the weights that its file names (dinoneck inspect); "
                "load_head(path, check_backbone=False) takes any tokens"
            )
