"""The average of a head and its linear baseline, for users of :func:`dinoneck.training.fit`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.text import counted, some_of
from dinoneck.training.baselines import baseline_head
from dinoneck.training.ids import IdMatcher
from dinoneck.training.samples import match_samples
from dinoneck.training.targets import read_values
from dinoneck.training.token_sources import LiveTokens, TokenSource

_GROUPS = "groups"  # what messages call the groups


def with_linear_baseline(
    head: Head,
    source: TokenSource,
    targets: Any,
    *,
    ids: Sequence[str] | None = None,
    target_ids: Sequence[str] | None = None,
    groups: Any = None,
    seed: int = 0,
) -> HeadEnsemble:
    """Return the average of a trained head and a linear baseline, which is fitted to the same images.

    It is the third method of ``dinoneck train``, next to the head and the baseline alone. Numbers and
    densities are ridge regression on the mean token of the last layer, classes and ratios softmax
    regression on it, labels logistic regression; dense maps and segmentations are fitted to single
    patches of all layers. Inner folds of the images choose the strength of each.

    Args:
        head: after :func:`dinoneck.training.fit`. It is a member, not copied.
        source: the tokens that it was trained on.
        targets: of its training, as :func:`dinoneck.training.fit` takes them, in original units.
        ids: of the training images: no held-out image may be among them. None = all ids of the
            targets.
        target_ids: one id per row of targets and groups that are arrays.
        groups: id -> label, a Series, or one label per row with ``target_ids``: inner folds keep
            groups whole. None = every image is its own.
        seed: of the patches that are drawn for maps.

    Returns:
        The average of both, in eval mode, for :func:`dinoneck.save_head` and
        :class:`dinoneck.Predictor`; its ``heads`` are the head and the baseline.

    Raises:
        ConfigError: if the head predicts objects, or the tokens are of a backbone that is trained
            along.
        DataError: for ids without targets, tokens or a group, or values that cannot be used.

    Examples:
        >>> from dinoneck import PatchMeanHead, Task, Tokens
        >>> from dinoneck.training import MemoryTokens, fit
        >>> patches = torch.rand(8, 1, 4, generator=torch.Generator().manual_seed(0))
        >>> tokens = Tokens.from_patches(patches, grid=(1, 1), patch_size=16)
        >>> source = MemoryTokens(list("abcdefgh"), tokens)
        >>> targets = {"mass": dict(zip("abcdefgh", patches[:, 0, 0].tolist()))}
        >>> head = PatchMeanHead(4, Task("mass"), hidden_dim=2)
        >>> _ = fit(head, source, targets, epochs=1)
        >>> average = with_linear_baseline(head, source, targets)
        >>> [type(member).__name__ for member in average.heads]
        ['PatchMeanHead', 'LinearHead']
    """
    if not isinstance(head, Head):
        raise ConfigError(f"head is a {type(head).__name__}; expected the head that fit trained")
    if isinstance(source, LiveTokens):
        raise ConfigError(
            "source is LiveTokens, of a backbone that is trained along with the head: the linear "
            "baseline reads a frozen one; pass MemoryTokens or a FeatureStore"
        )
    of_objects = [task.name for task in head.tasks if task.is_masks]
    if of_objects:
        raise ConfigError(f"{', '.join(of_objects)} are objects, which have no linear baseline")
    matched = match_samples(
        source.ids,
        targets,
        None,
        labels={task.name: task.labels for task in head.tasks},
        ids=ids,
        target_ids=target_ids,
    )
    row_of_id = {image_id: row for row, image_id in enumerate(source.ids)}
    rows = [row_of_id[image_id] for image_id in matched.train_ids]
    values_of_rows = {}
    for task in head.tasks:
        values = read_values(task, matched.values[task.name])
        values_of_rows[task.name] = _in_rows(values, rows, count=len(source.ids))
    baseline = baseline_head(
        source,
        values_of_rows,
        rows=rows,
        tasks=head.tasks,
        groups=_groups_of_rows(groups, source.ids, matched.train_ids, target_ids),
        compositions=head.compositions,
        seed=seed,
    )
    baseline.to(next(head.parameters()).device)
    baseline.trained_on = head.trained_on
    return HeadEnsemble.from_heads([head, baseline]).eval()


def _in_rows(values: Tensor, rows: Sequence[int], *, count: int) -> Tensor:
    """Values (n, ...) in their rows of ``count``; in the others missing."""
    missing = torch.nan if values.is_floating_point() else -1
    all_rows = values.new_full((count, *values.shape[1:]), missing)
    all_rows[list(rows)] = values
    return all_rows


def _groups_of_rows(
    groups: Any,
    source_ids: Sequence[str],
    train_ids: Sequence[str],
    target_ids: Sequence[str] | None,
) -> list[Hashable]:
    """A label per row of the source; images that are not trained on have their id."""
    if groups is None:
        return list(source_ids)
    columns = IdMatcher(source_ids).columns({_GROUPS: groups}, target_ids)
    label_of_id = columns[_GROUPS]
    missing = [repr(image_id) for image_id in train_ids if image_id not in label_of_id]
    if missing:
        raise DataError(
            f"{counted(len(missing), 'id')} without a group: {some_of(missing, 3)}; groups need a "
            "label for every training image"
        )
    return [label_of_id.get(image_id, image_id) for image_id in source_ids]
