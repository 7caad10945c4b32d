"""``python -m dinoneck.cli.replay HEAD TOKENS``: run a head file on stored tokens and print its outputs' digest.

The demo and the tests use it to compare a head with itself in a fresh process, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dinoneck.atomic import write_whole
from dinoneck.checkpoint.head_checkpoint import load_head
from dinoneck.tensor_bytes import bytes_of
from dinoneck.tokens import Tokens

_PLACE = "layer_{}"


def write_tokens(path: str | os.PathLike[str], tokens: Tokens) -> None:
    """Store Tokens with what is needed to rebuild them."""
    told = {
        "image_size": tokens.image_size,
        "patch_size": tokens.patch_size,
        "num_prefix_tokens": tokens.num_prefix_tokens,
        "num_cls": tokens.num_cls,
        "layers": tokens.layers,
        "normed": tokens.normed,
    }
    tensors = {_PLACE.format(i): x.contiguous() for i, x in enumerate(tokens.sequence)}
    write_whole(path, save(tensors, metadata={"tokens": json.dumps(told)}))


def read_tokens(path: str | os.PathLike[str]) -> Tokens:
    """Read what :func:`write_tokens` stored."""
    with safe_open(os.fspath(path), framework="pt") as file:
        told = json.loads(file.metadata()["tokens"])
        sequence = [file.get_tensor(_PLACE.format(i)) for i in range(len(file.keys()))]
    if isinstance(told["patch_size"], list):
        told["patch_size"] = tuple(told["patch_size"])
    return Tokens.from_sequence(sequence, **told)


def fingerprint(outputs: Mapping[str, Tensor]) -> str:
    """Return a digest of a head's outputs that any changed bit changes."""
    total = hashlib.sha256()
    for name, value in sorted(outputs.items()):
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(bytes_of(value))
    return total.hexdigest()


def main(arguments: Sequence[str]) -> int:
    """Print the fingerprint of a head's outputs on stored tokens."""
    head_file, tokens_file = arguments
    with torch.no_grad():
        print(fingerprint(load_head(head_file)(read_tokens(tokens_file))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
