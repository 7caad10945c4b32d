"""``python -m tests.mutants [WORD]``: one-line faults, each of which the named tests must notice.

A fault is put into a copy of ``src``. Exits 1 if one survives, if its old text is not found exactly once, or if the
tests fail without any fault. WORD chooses the faults whose file, text or test contains it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import timm  # noqa: F401  imported once, before the forks; dinoneck itself is imported by each

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = "golden/test_golden.py::test_outputs_and_gradients_are_those_recorded"


class Mutant(NamedTuple):
    """``old`` becomes ``new`` in a file of src/dinoneck; the tests are named below ``tests/``."""

    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # a transposed grid; points read by the other convention; a patch that is cut counts as a whole one
    Mutant("grid.py", "spread.permute(0, 3, 1, 2)", "spread.permute(0, 3, 2, 1)",
           "unit/test_grid.py::test_patch_r_c_lands_at_r_c"),
    Mutant("grid.py", '"border", align_corners=False', '"border", align_corners=True', "unit/test_grid.py"),
    Mutant("grid.py", "cells = length // patch", "cells = -(-length // patch)", "unit/test_grid.py"),
    # CLS or a register is taken for a patch
    Mutant("tokens.py", "x[:, self.num_prefix_tokens :]", "x[:, self.num_prefix_tokens - 1 : -1]",
           "unit/test_tokens.py::test_views_hold_what_their_names_say"),
    # the sample's standard deviation; a prediction that stays in normalised units
    Mutant("transforms.py", "** 2).sum(dim=0) / count", "** 2).sum(dim=0) / (count - 1)",
           "unit/test_tasks.py::test_fit_takes_population_statistics_and_skips_nan"),
    Mutant("tasks.py", "self.transform.inverse(x, parts)", "x",
           "unit/test_tasks.py::test_other_maps_are_inverted_cell_by_cell"),
    # half a cell off
    Mutant("layers/resampling.py", "device=cells.device) + 1) * stride", "device=cells.device)) * stride",
           "unit/necks/test_sta_pyramid.py::test_reading_at_a_stride_is_grid_sample"),
    Mutant("necks/dpt.py", 'mode="bilinear", align_corners=False', 'mode="bilinear", align_corners=True',
           "unit/necks/test_dpt.py::test_it_is_the_formula"),
    # extra maps are lost in the top-down path
    Mutant("necks/vit_fpn.py", "level = level + extra[index]", "level = level + 0 * extra[index]",
           f"{GOLDEN}[vit_fpn-everything]"),
    # the gradient of tokens takes the sample's variance
    Mutant("layers/fused.py", "correction=0", "correction=1",
           "unit/necks/test_fused.py::test_values_and_gradients_are_those_of_the_modules"),
    # density maps start a thousand times too large; members of an ensemble count equally
    Mutant("heads/head.py", "return cells / DENSITY_CELLS if", "return cells if", f"{GOLDEN}[dense]"),
    Mutant("heads/ensemble.py", 'einsum("k,k...->...", shares, stacked)', "mean(stacked, dim=0)",
           "unit/heads/test_ensemble.py::test_members_are_averaged_in_natural_units"),
    # a masked value counts in the mean
    Mutant("losses/masked.py", "keep.sum().clamp_min(1)", "keep.numel()",
           "unit/losses/test_losses.py::test_masked_values_count_for_nothing"),
    Mutant("losses/task_loss.py", "in (errors * keep, keep)", "in (errors, keep)",
           "unit/training/test_fit_maps.py::test_weights_pull_towards_heavy_cells"),
    # the layers of a backbone without its final norm; other weights pass the probe
    Mutant("backbones/adapter.py", "self.final_norm(x) if norm else x", "x",
           "unit/backbones/test_probe.py::test_other_weights_norms_layers_and_recipes_are_noticed"),
    Mutant("backbones/weight_hashes.py", "gap if not gap <= tolerance else None", "None",
           "unit/backbones/test_probe.py::test_other_weights_norms_layers_and_recipes_are_noticed"),
    # damage that changes weights passes; the head's backbone record is not compared
    Mutant("checkpoint/file.py", '!= header.meta["digest"]:', '!= header.meta["digest"] and not buffers:',
           "unit/checkpoint/test_damaged_files.py::test_any_changed_bit_is_refused"),
    Mutant("checkpoint/read.py", "if tuple(value.shape) != entry.shape or not alike:", "if not alike:",
           "unit/checkpoint/test_damaged_files.py::test_forged_files_are_refused"),
    # flips are exchanged; every image draws the same changes
    Mutant("data/patterns.py", "return pattern.horizontal, pattern.vertical",
           "return pattern.vertical, pattern.horizontal",
           "unit/training/test_patterns_in_training.py::test_labels_of_a_cell_follow_the_image"),
    Mutant("data/patterns.py", 'f"{i}\\0{image_id}"', 'f"{i}\\0"',
           "unit/data/test_patterns.py::test_draws_repeat_and_depend_on_image_and_pattern"),
    # negative values are clipped by int8; a damaged record passes
    Mutant("store/encoding.py", "scale = x.abs().amax(dim=-1)", "scale = x.amax(dim=-1)",
           "unit/store/test_feature_store.py::test_int8_keeps_its_bound_and_beats_a_scale_per_token_alone"),
    Mutant("store/reading.py", "!= expected:", "is None:", "unit/cli/test_extract.py::test_extract_and_verify"),
    # images judge the head that saw them; weights of targets are lost
    Mutant("training/folds.py", "np.flatnonzero(row_fold != fold)", "np.flatnonzero(row_fold >= 0)",
           "unit/training/test_training.py::test_folds_keep_groups_whole_and_cover_every_row"),
    Mutant("training/metrics.py", "mean = (true * shares).sum() / (len(true) * shares.sum())", "mean = true.mean()",
           "unit/training/test_training.py::test_weighted_r2_is_the_competitions_formula"),
    # the average is not updated, or not used; another run's state is taken up; flipped images with upright labels
    Mutant("training/optim.py", ".to(self.values[name]), share)", ".to(self.values[name]), 0.0)",
           "unit/training/test_ema.py::test_it_follows_its_recursion"),
    Mutant("training/loop.py", "self.ema.copy_to(self.learner)", "pass",
           "unit/training/test_recipe.py::test_several_steps_are_the_plain_loop"),
    Mutant("training/state.py", "if old.get(name) != new.get(name)", "if name not in old",
           "unit/training/test_hostile_fit.py::test_a_changed_head_or_sample_is_another_run"),
    Mutant("training/batches.py", "horizontal, vertical = self.flips.flips(pattern)", "horizontal = vertical = False",
           "unit/training/test_patterns_in_training.py::test_labels_of_a_cell_follow_the_image"),
    # maps of turned views are turned further; tiles do not add up at their seams
    Mutant("inference/tiles.py", "torch.rot90(maps, -self.turns", "torch.rot90(maps, self.turns",
           "unit/inference/test_inference.py::test_views_undo_themselves_on_every_shape"),
    Mutant("inference/tiles.py", "+= ramp", "+= 1.0",
           "unit/inference/test_tiles.py::test_one_tile_fades_into_the_next"),
    # strides of the smaller image; residuals of the other sign; depth of the next pixel; a failure reported as success
    Mutant("interop/encoder.py", "stride / self.features_at for", "stride for",
           "unit/interop/test_encoder.py::test_strides_are_pixels_of_the_whole_images"),
    Mutant("viz/residuals.py", "(predicted - known)[chosen]", "(known - predicted)[chosen]",
           "unit/viz/test_residuals.py::test_points_are_the_values_and_residuals"),
    Mutant("points/projection.py", ".floor().long()", ".round().long()",
           "unit/points/test_projection.py::test_depth_of_another_size_is_read_half_pixels_considered"),
    Mutant("cli/main.py", '"ok": code == 0', '"ok": True', "unit/cli/test_viz_verb.py"),
]  # fmt: skip


def run(source: Path, tests: list[str]) -> int:
    """The exit code of pytest on a copy of src: 0 passed, 1 failed. A fork, so that torch is imported once."""
    log = source.parent / "log.txt"
    child = os.fork()
    if not child:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        sys.path[:0], sys.dont_write_bytecode = [str(source), str(ROOT)], True
        os.environ["PYTHONPATH"] = os.pathsep.join((str(source), str(ROOT)))
        code, options = 2, ["-n", "0", "-x", "-m", "", "--assert=plain", "--rootdir", str(ROOT)]
        try:
            code = pytest.main([*options, *(f"tests/{name}" for name in tests)])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):
        sys.exit(f"pytest ended with code {code}:\n{log.read_text()[-2000:]}")
    return code


def survives(mutant: Mutant, source: Path) -> bool:
    """Put the fault into the copy, run its tests, and take it out again."""
    path = source / "dinoneck" / mutant.file
    sound = path.read_text()
    if sound.count(mutant.old) != 1:
        sys.exit(f"{mutant.file}: {mutant.old!r} stands there {sound.count(mutant.old)} times; expected once")
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        return run(source, [mutant.tests]) == 0
    finally:
        path.write_text(sound)


def main(word: str) -> int:
    """Run every chosen mutant; 1 if one survives."""
    chosen = [mutant for mutant in MUTANTS if any(word in part for part in mutant)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("*.egg-info"))
        if run(source, sorted({mutant.tests for mutant in chosen})):
            sys.exit("the tests fail without any fault; repair that first")
        left = []
        for mutant in chosen:
            if survives(mutant, source):
                left.append(mutant)
            print(f"{'SURVIVES' if mutant in left else 'killed  '} {mutant.file}: {mutant.old}", flush=True)
    print(f"{len(chosen) - len(left)} of {len(chosen)} faults are noticed")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
