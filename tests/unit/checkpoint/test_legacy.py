"""Older heads, read by names and without running anything."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinoneck import CheckpointError, FPNHead, HeadCheckpoint, TargetTransform, Task, Tokens, load_head
from dinoneck.checkpoint import import_biomass, import_described, import_patch_mean, read_legacy
from dinoneck.checkpoint.legacy import BIOMASS_TARGETS

WIDTH, HIDDEN = 12, 8
TASK = Task("GDM_g", unit="g", activation="relu")
LEVELS = {"Dry_Clover_g": 1.0, "Dry_Dead_g": 2.0, "Dry_Green_g": 4.0, "Dry_Total_g": 8.0, "GDM_g": 16.0}


class BiomassMLP(nn.Module):
    """The published module, written out."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, 1))
        if level:
            nn.init.zeros_(self.network[2].weight)
            nn.init.constant_(self.network[2].bias, level)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.network(x)).mean(dim=(1, 2))


def tokens_of(x: Tensor) -> Tokens:
    return Tokens.from_patches(x, grid=(2, 3), patch_size=14)


def state(level: float = 0.0) -> dict[str, Tensor]:
    return BiomassMLP(level).state_dict()


def test_a_biomass_mlp_predicts_the_same(tmp_path: Path) -> None:
    source, x = BiomassMLP(), torch.randn(4, 6, WIDTH)
    torch.save(source.state_dict(), tmp_path / "m.pth")
    head = import_patch_mean(tmp_path / "m.pth", TASK)
    assert torch.allclose(head(tokens_of(x))["GDM_g"][:, 0], source(x), atol=1e-6)
    assert not head.training
    assert all(parameter.requires_grad for parameter in head.parameters())
    HeadCheckpoint.from_module(head).save(tmp_path / "m.safetensors")
    assert torch.equal(load_head(tmp_path / "m.safetensors")(tokens_of(x))["GDM_g"], head(tokens_of(x))["GDM_g"])


def folder_of(place: Path, pattern: str = "t{index}_f{fold}.pth", folds: int = 2) -> Path:
    """Five targets that answer 1, 2, 4, 8 and 16, and a little more per fold."""
    place.mkdir()
    for index, (name, level) in enumerate(LEVELS.items()):
        for fold in range(folds):
            torch.save(state(level + fold / 10), place / pattern.format(index=index, name=name, fold=fold))
    return place


@pytest.mark.parametrize(
    ("written", "pattern"),
    [
        ("t{index}_f{fold}.pth", "t{target}_f{fold}.pth"),
        ("fold{fold}-{index}.pt", "fold{fold}-{target}.pt"),
        ("{name}_fold{fold}.pth", "{name}_fold{fold}.pth"),
    ],
)
def test_five_targets_keep_their_names(written: str, pattern: str, tmp_path: Path) -> None:
    imported = import_biomass(folder_of(tmp_path / "m", written), pattern, unit="g")
    assert len(imported) == 10
    tokens = tokens_of(torch.randn(1, 6, WIDTH))
    for output, fold, head in imported:
        (answer,) = head.predict(tokens).items()  # type: ignore[operator]
        assert answer[0] == output
        assert answer[1].item() == pytest.approx(LEVELS[output] + fold / 10)
        assert head.tasks[0].unit == "g"  # type: ignore[index, union-attr]
    assert [item.output for item in imported[::2]] == list(LEVELS) == list(BIOMASS_TARGETS)


def test_every_file_of_the_folder_is_accounted_for(tmp_path: Path) -> None:
    place, pattern = folder_of(tmp_path / "m"), "t{target}_f{fold}.pth"
    (place / "t3_f1.pth").rename(tmp_path / "away.pth")
    with pytest.raises(CheckpointError, match="lacks Dry_Total_g fold 1"):
        import_biomass(place, pattern, unit="g")
    (tmp_path / "away.pth").rename(place / "t3_f1.pth")
    torch.save(state(), place / "best.pth")
    with pytest.raises(CheckpointError, match=r"best\.pth does not match"):
        import_biomass(place, pattern, unit="g")
    (place / "best.pth").rename(place / "t7_f0.pth")
    with pytest.raises(CheckpointError, match="target 7 of 5"):
        import_biomass(place, pattern, unit="g")
    (place / "t7_f0.pth").rename(place / "t03_f0.pth")
    with pytest.raises(CheckpointError, match="both are target 'Dry_Total_g' of fold 0"):
        import_biomass(place, pattern, unit="g")
    for wrong in ("t{target}.pth", "{target}{fold}.pth", "../{target}_{fold}.pth", "{target}_{fold}_{x}.pth"):
        with pytest.raises(CheckpointError, match="is not a file name with"):
            import_biomass(place, wrong, unit="g")
    with pytest.raises(CheckpointError, match="holds no file like"):
        import_biomass(tmp_path, pattern, unit="g")


def test_wrappers_are_taken_away_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = "_orig_mod.module."
    torch.save({prefix + key: value for key, value in state(3.0).items()}, tmp_path / "m.pth")
    file = read_legacy(tmp_path / "m.pth")
    assert file.prefix == prefix
    assert repr(prefix) in caplog.text
    assert import_patch_mean(file, TASK)(tokens_of(torch.randn(1, 6, WIDTH)))["GDM_g"].item() == 3.0


def refused(content: Any, path: Path, message: str, step: str | None = None) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_patch_mean(path, TASK)
    assert step in (None, caught.value.step)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "m.pth", state()
    refused({**good, "module.x": torch.zeros(1)}, path, "begin with 'module.'.*some do not")
    refused({key: good[key] for key in list(good)[1:]}, path, "lacks network.0.weight", "tensors")
    refused(
        {**good, "network.3.weight": torch.zeros(1)}, path, "network.3.weight, which this head has no place", "tensors"
    )
    refused({**good, "network.2.weight": torch.zeros(1, HIDDEN + 1)}, path, "network.2.weight is", "tensors")
    refused({**good, "network.2.bias": torch.zeros(1).half()}, path, "one floating-point dtype", "tensors")
    refused({**good, "network.2.bias": torch.tensor([torch.nan])}, path, "not finite", "finite")
    refused({"model": good, "epoch": 3}, path, "holds epoch, model; expected tensors", "schema")
    refused({"state_dict": good, "optimizer": {}}, path, "holds optimizer next to", "schema")
    for task in (Task("a"), Task("a", dim=2, activation="relu"), Task("a", activation="softplus")):
        with pytest.raises(CheckpointError, match="ends in one ReLU"):
            import_patch_mean(path, task)
    with pytest.raises(CheckpointError, match="there is no weights file"):
        import_patch_mean(tmp_path / "no.pth", TASK)


class Trap:
    """An object whose unpickling would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_code_is_refused_and_named(tmp_path: Path) -> None:
    refused({**state(), "x": Trap(tmp_path / "ran")}, tmp_path / "m.pth", r"asks for posix\.system, which is code")
    refused(nn.Linear(2, 2), tmp_path / "m.pth", "which is code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_bare_pickle_does_not_run_and_torchs_advice_is_not_passed_on(protocol: int, tmp_path: Path) -> None:
    """The loader's own message names how to run the file after all."""
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"network.0.weight": Trap(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"asks for posix.system|is a pickle that may run code: Unsup") as no:
        read_legacy(tmp_path / "b.pt")
    assert "nothing of it ran" in str(no.value)
    assert "weights_only" not in str(no.value)
    assert not (tmp_path / "ran").exists()


def test_size_is_capped_packed_and_unpacked(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="at most 100 were expected"):
        read_legacy(tmp_path / "m.pth", max_bytes=100)
    with (
        zipfile.ZipFile(tmp_path / "m.pth") as old,
        zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed zip file"):
        read_legacy(tmp_path / "p.pth")
    (tmp_path / "d.pth").write_bytes((tmp_path / "m.pth").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_legacy(tmp_path / "d.pth")


FPN_TASKS = [Task("reg3", unit="g/m2", transform=TargetTransform(log1p=True)), Task("ratio", dim=3, kind="ratio")]
FPN_META = {"head_type": "fpn", "fpn_dim": 8, "num_levels": 2, "layer_indices": [1, 3], "patch_size": 16}


def fpn() -> FPNHead:
    head = FPNHead(WIDTH, FPN_TASKS, num_layers=2, layer_indices=(1, 3), fpn_dim=8, num_levels=2)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head.eval()


def described(path: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"tasks": FPN_TASKS, "embed_dim": WIDTH, "arguments": {"num_layers": 2}}
    return import_described(path, **{**given, **options})


def test_an_fpn_head_with_its_meta(tmp_path: Path) -> None:
    head = fpn()
    renamed = {key.replace("neck.", "spatial_neck.", 1): value for key, value in head.state_dict().items()}
    torch.save({"state_dict": renamed, "meta": {**FPN_META, "epoch": 7}}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="epoch"):
        described(tmp_path / "m.pt", rename={"spatial_neck.": "neck."})
    with pytest.raises(CheckpointError, match="rename="):
        described(tmp_path / "m.pt", notes=["epoch"])
    found, notes = described(tmp_path / "m.pt", rename={"spatial_neck.": "neck."}, notes=["epoch"])
    assert notes == {"epoch": 7}
    layers = [torch.randn(2, 15, WIDTH) for _ in range(2)]
    tokens = Tokens.from_patches(layers, grid=(3, 5), patch_size=16, layers=(1, 3))
    assert all(torch.equal(found(tokens)[name], value) for name, value in head(tokens).items())


@pytest.mark.parametrize(
    ("meta", "options", "message"),
    [
        ({"head_type": "fpm"}, {}, "Did you mean 'fpn'"),
        ({}, {"head_type": "dense"}, "expected one registered name"),
        ({"fpn_dim": "8"}, {}, "refuses"),
        ({"patch_size": 16}, {"arguments": {"num_layers": 2, "patch_size": 14}}, "contradicts"),
        ({"surprise": 1}, {}, r"surprise, which fpn has no argument for.*\(notes=, --note surprise\)"),
        ({}, {"notes": ["epoch"]}, "no entry epoch"),
        ({}, {"rename": {"nothing.": ""}}, "no name begins with"),
        ({"x": torch.zeros(1)}, {}, "more than plain values"),
    ],
    ids=range(8),
)
def test_meta_and_arguments_have_to_agree(
    meta: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save({"state_dict": fpn().state_dict(), "meta": {**FPN_META, **meta}}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=message):
        described(tmp_path / "m.pt", **options)
