"""Faults of the modules: grids, tokens, layers, necks, heads, losses, backbones and points."""

from __future__ import annotations

from tests.mutants.mutant import GOLDEN, Mutant

MODULES = (
    Mutant(
        "The grid is transposed: patch (r, c) lands at (c, r).",
        "grid.py",
        "spread.permute(0, 3, 1, 2)",
        "spread.permute(0, 3, 2, 1)",
        "unit/test_grid.py::test_patch_r_c_lands_at_r_c",
    ),
    Mutant(
        "Points are sampled with align_corners=True, so they read between the wrong cells.",
        "grid.py",
        '"border", align_corners=False',
        '"border", align_corners=True',
        "unit/test_grid.py",
    ),
    Mutant(
        "A patch that the image's edge cuts counts as a whole patch.",
        "grid.py",
        "cells = length // patch",
        "cells = -(-length // patch)",
        "unit/test_grid.py",
    ),
    Mutant(
        "The CLS token or a register is taken for a patch.",
        "tokens.py",
        "x[:, self.num_prefix_tokens :]",
        "x[:, self.num_prefix_tokens - 1 : -1]",
        "unit/test_grid.py::test_views_hold_what_their_names_say",
    ),
    Mutant(
        "A target's transform divides by the sample's standard deviation instead of the "
        "population's.",
        "transforms.py",
        ".square().nanmean(dim=0)",
        ".square().nansum(dim=0).div(len(spread) - 1)",
        "unit/test_tasks.py::test_fit_takes_population_statistics_and_skips_nan",
    ),
    Mutant(
        "A predicted map stays in normalised units.",
        "tasks.py",
        "self.transform.inverse(x, parts)",
        "x",
        "unit/test_tasks.py::test_other_maps_are_inverted_cell_by_cell",
    ),
    Mutant(
        "Maps that are read at a stride are half a cell off.",
        "layers/resampling.py",
        "device=cells.device) + 1) * stride",
        "device=cells.device)) * stride",
        "unit/necks/test_pyramids.py::test_reading_at_a_stride_is_grid_sample",
    ),
    Mutant(
        "The DPT neck enlarges its maps with align_corners=True.",
        "necks/dpt.py",
        "align_corners=self.align_corners)",
        "align_corners=True)",
        "unit/necks/test_dpt.py::test_it_is_transformers_neck",
    ),
    Mutant(
        "Extra maps are lost in the pyramid's top-down path.",
        "necks/vit_fpn.py",
        "level = level + extra[index]",
        "level = level + 0 * extra[index]",
        f"{GOLDEN}[vit_fpn-everything]",
    ),
    Mutant(
        "The gradient of tokens behind a norm uses the sample's variance.",
        "layers/fused.py",
        "correction=0",
        "correction=1",
        "unit/necks/test_layer_grouper.py::test_values_and_gradients_are_those_of_the_modules",
    ),
    Mutant(
        "Density maps start a thousand times too large.",
        "heads/head.py",
        "return cells / DENSITY_CELLS if",
        "return cells if",
        f"{GOLDEN}[dense]",
    ),
    Mutant(
        "The members of an ensemble count equally, whatever their weights are.",
        "heads/ensemble.py",
        'einsum("k,k...->...", shares, stacked)',
        "mean(stacked, dim=0)",
        "unit/heads/test_heads.py::test_members_are_averaged_in_natural_units",
    ),
    Mutant(
        "A masked value counts in the mean of a loss.",
        "losses/masked.py",
        "keep.sum().clamp_min(1)",
        "keep.numel()",
        "unit/losses/test_losses.py::test_masked_values_count_for_nothing",
    ),
    Mutant(
        "The weights of cells are left out of the loss of maps.",
        "losses/task_loss.py",
        "in (errors * keep, keep)",
        "in (errors, keep)",
        "unit/training/test_fit.py::test_weights_pull_towards_heavy_cells",
    ),
    Mutant(
        "A backbone gives its layers without the final norm.",
        "backbones/adapter.py",
        "self.final_norm(x) if norm else x",
        "x",
        "unit/backbones/test_weights.py::test_other_weights_norms_layers_and_recipes_are_noticed",
    ),
    Mutant(
        "A backbone of other weights passes the functional probe.",
        "backbones/weight_hashes.py",
        "gap if not gap <= tolerance else None",
        "None",
        "unit/backbones/test_weights.py::test_other_weights_norms_layers_and_recipes_are_noticed",
    ),
    Mutant(
        "A point reads the depth of the next pixel.",
        "points/projection.py",
        ".floor().long()",
        ".round().long()",
        "unit/points/test_projection.py::test_depth_of_another_size_is_read_half_pixels_considered",
    ),
    Mutant(
        "The weights of a CLS gate do not sum to one over an image.",
        "heads/cls_gating.py",
        "weights = logits.softmax(dim=-1).to(patches.dtype)",
        "weights = logits.sigmoid().to(patches.dtype)",
        "unit/heads/test_heads.py::test_the_gate_is_the_formula",
    ),
    Mutant(
        "An ensemble averages normalised units and uses the first member's transform for all.",
        "heads/ensemble.py",
        "rows = self._each(tokens)\n"
        "        return {task.name: self._reduced(task, rows) for task in self.predicted}",
        "rows = [(weight, head(own)) for weight, head, own in self._running(tokens)]\n        "
        "first = {task.name: task for head in reversed(self._members()) for task in head.tasks}\n "
        "       values = {task.name: first[task.name].predict(self._reduced(task, rows)) for task "
        "in self.tasks}\n        return with_composed(values, self.compositions)",
        "unit/heads/test_heads.py::test_members_are_averaged_in_natural_units",
    ),
    Mutant(
        "The finest level of a pyramid reads the deepest layers.",
        "necks/layer_grouper.py",
        "return tuple(tuple(range(begin, end)) for begin, end in pairwise(begins))",
        "return tuple(tuple(range(begin, end)) for begin, end in pairwise(begins))[::-1]",
        "unit/necks/test_layer_grouper.py::test_auto_groups_are_contiguous_even_and_shallow_first",
    ),
    Mutant(
        "A backbone gives its layers in ascending order, not in the order asked.",
        "backbones/adapter.py",
        "return [outputs[number] for number in layers]",
        "return [outputs[number] for number in sorted(layers)]",
        "unit/backbones/test_backbone.py::test_layers_are_block_outputs_in_the_callers_order",
    ),
    Mutant(
        "The unknown pixels of a mask are trained as class 0.",
        "losses/masked.py",
        "keep = keep & (target != ignore_index)",
        "target = torch.where(target == ignore_index, 0, target)",
        "unit/losses/test_task_loss.py::test_every_kind_has_its_loss",
    ),
    Mutant(
        "The voxels of one sample of a batch are found with the coordinates of another sample.",
        "points/voxels.py",
        "wanted = at_stride(encode(coords, batch), self.stride)",
        "wanted = at_stride(encode(coords), self.stride)",
        "unit/points/test_voxel_grids.py::test_looking_up_is_a_dictionary",
    ),
)
