"""The classes of this library that checkpoints of other programs hold, for torch's weights-only loader."""

from __future__ import annotations

from dinoneck.grid import GridSize
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.transforms import TargetTransform


def safe_globals() -> list[type]:
    """Return the plain classes that a checkpoint of a training loop, or ``torch.save(tokens)``, may hold.

    ``torch.load`` refuses classes that it does not know. These are data only: what a file claims of
    them is checked as their constructors check it. Nothing is registered when dinoneck is imported.

    Examples:
        >>> import io, torch
        >>> from dinoneck import Task
        >>> file = io.BytesIO()
        >>> torch.save({"task": Task("mass", unit="g")}, file)
        >>> _ = file.seek(0)
        >>> with torch.serialization.safe_globals(safe_globals()):
        ...     torch.load(file)["task"].unit
        'g'
    """
    return [Task, TargetTransform, Composition, Tokens, GridSize]
