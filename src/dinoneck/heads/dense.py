"""DenseHead: a convolution tower on the last token map, without a pyramid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Unpack

from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.grid import as_maps
from dinoneck.heads.head import Head, Tower
from dinoneck.heads.outputs import from_map_outputs, outputs_from_cells, scale_cells
from dinoneck.layers.blocks import ConvBlock
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.composition import Composition
from dinoneck.necks.layer_grouper import LayerGrouper
from dinoneck.tasks import Task, check_tasks
from dinoneck.tokens import Tokens


class DenseHead(Head):
    """LayerNorm -> linear -> ``depth`` 3x3 blocks on the last token map, then one linear layer per task and cell.

    The plain choice for labels per cell when one layer is enough; :class:`dinoneck.FPNHead` sees
    further.

    Args:
        embed_dim: channels of the tokens.
        tasks: dense, density, segmentation or ratio tasks (a ratio's shares are averaged over
            cells), and regressions with ``from_map``.
        hidden_dim: channels of the tower.
        depth: 3x3 blocks; 0 leaves a linear probe of every cell.
        compositions: outputs computed from the tasks' predictions, see
            :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task: (B, dim, rows, cols)}`` for dense and segmentation; ``{task: (B, dim)}``
        with the map as ``"task.map"`` for density and ratio.

    Raises:
        ConfigError: if tasks repeat a name or are of another kind, or a size is not positive.
        ShapeError: if the tokens have another width.

    Examples:
        >>> head = DenseHead(64, [Task("cover", dim=3, kind="dense")], hidden_dim=32)
        >>> import torch
        >>> tokens = Tokens.from_patches(torch.randn(2, 15, 64), grid=(3, 5), patch_size=16)
        >>> head.predict(tokens)["cover"].shape
        torch.Size([2, 3, 3, 5])
    """

    reads_last_layer = True

    def __init__(
        self,
        embed_dim: int,
        tasks: Task | Sequence[Task],
        hidden_dim: int = 256,
        depth: int = 2,
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, embed_dim=embed_dim, hidden_dim=hidden_dim)
        check_minimum(0, depth=depth)
        factory = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self._set_tasks(tasks, compositions)
        check_tasks(
            self._read_tasks, kinds=("dense", "density", "segmentation", "ratio"), owner="DenseHead"
        )
        self.entrance = LayerGrouper(embed_dim, 1, hidden_dim, 1, **factory)
        self.blocks = nn.ModuleList(
            ConvBlock(hidden_dim, hidden_dim, **factory) for _ in range(depth)
        )
        self.towers = nn.ModuleList(
            Tower(hidden_dim, task, 0, **factory) for task in self._read_tasks
        )

    def calibrate(self, batches: Iterable[Tokens]) -> None:
        """Set the entrance norm to the tokens, if it is still untouched."""
        self.entrance.calibrate(tokens.last.patches for tokens in batches)

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the tasks' outputs in normalised units."""
        tokens = self._tokens(tokens, **plain)
        (x,) = self.entrance(tokens.sequence[-1:])  # (B, P + N, D)
        # a copy: a program that torch exports of strided patches with a free batch size refuses 1
        patches = x[:, tokens.num_prefix_tokens :].contiguous()  # (B, N, D)
        maps = as_maps(patches, tokens.grid)  # (B, D, rows, cols)
        for block in self.blocks:
            maps = block(maps)
        outputs: dict[str, Tensor] = {}
        for task, tower in zip(self._read_tasks, self.towers, strict=True):
            cells = scale_cells(task, tower(maps))  # (B, dim, rows, cols)
            outputs.update(outputs_from_cells(task, cells))
        return outputs | from_map_outputs(self.tasks, outputs)
