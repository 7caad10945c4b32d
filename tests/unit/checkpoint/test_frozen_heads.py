"""Head files of every schema so far: read as what they are, migrated, and the same answers for ever."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.fixtures.head_files import ANSWERS, answers, state_sha256
from torch import Tensor, nn

from dinoneck import CheckpointError, HeadCheckpoint, Predictor, load_backbone, registry
from dinoneck.checkpoint import file as files
from dinoneck.checkpoint import migrate, read_header
from dinoneck.checkpoint.read import read_file
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.configured import Configured, fields_of

ROOT = Path(__file__).resolve().parents[2] / "fixtures"
FOLDERS = sorted(folder for folder in ROOT.glob("head_v*"))
FILES = [file for folder in FOLDERS for file in sorted(folder.glob("*.safetensors"))]
FIRST = ROOT / "head_v1"
NUMBERS = ROOT / "head_v2_numbers"


def record_of(file: Path) -> dict[str, Any]:
    return dict(json.loads((file.parent / ANSWERS).read_text())[file.stem])


def schema_of(folder: Path) -> int:
    return int(folder.name.split("_")[1].removeprefix("v"))


def test_the_folders_are_complete() -> None:
    assert {schema_of(folder) for folder in FOLDERS} == set(range(1, SCHEMA + 1))
    for folder in FOLDERS:
        assert {file.stem for file in folder.glob("*.safetensors")} == set(json.loads((folder / ANSWERS).read_text()))
    assert all(file.stat().st_size <= 50_000 for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_frozen_files_give_the_same_answers(file: Path) -> None:
    record, checkpoint = record_of(file), HeadCheckpoint.load(file)
    assert read_header(file).meta["schema"] == schema_of(file.parent)
    assert read_header(file).meta["digest"] == checkpoint.file_digest == record["digest"]
    assert checkpoint.meta["schema"] == SCHEMA
    assert state_sha256({**checkpoint.state_dict, **checkpoint.adapter_state}) == record["state_sha256"]
    found = answers(checkpoint.build())
    assert found.keys() == record["answers"].keys()
    for name, value in found.items():
        expected = torch.tensor(record["answers"][name])
        if record["exact"]:
            assert torch.equal(value, expected), name
        else:
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file", sorted(FIRST.glob("*.safetensors")), ids=lambda file: file.stem)
def test_migrated_files_are_sound_files_of_the_present_schema(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    old = HeadCheckpoint.load(file)
    old.save(tmp_path / "h")
    new = HeadCheckpoint.load(tmp_path / "h")
    assert file.read_bytes() == before
    assert read_header(tmp_path / "h").meta == new.meta == old.meta
    assert new.file_digest == old.meta["digest"] != old.file_digest
    kept = read_header(file).meta
    assert {key: new.meta[key] for key in kept if key not in ("schema", "digest", "config")} == {
        key: value for key, value in kept.items() if key not in ("schema", "digest", "config")
    }
    assert {key: new.meta["config"][key] for key in kept["config"]} == kept["config"]
    assert new.meta["config"].keys() - kept["config"].keys() <= {"norm_group_size"}
    assert [new.meta[key] for key in ("training", "license", "tta")] == [None] * 3
    assert state_sha256(new.state_dict | new.adapter_state) == record_of(file)["state_sha256"]


@pytest.mark.parametrize("file", sorted(NUMBERS.glob("*.safetensors")), ids=lambda file: file.stem)
def test_numbers_and_text_are_kept_as_they_were_spelled(file: Path, tmp_path: Path) -> None:
    """A writer that spells 1e-06 as 0.000001, or -0.0 as 0, would change the digest of files that people have."""
    loaded = HeadCheckpoint.load(file)
    loaded.save(tmp_path / "h")
    again = HeadCheckpoint.load(tmp_path / "h")
    kept = json.loads((file.parent / "headers.json").read_text(encoding="utf-8"))[file.stem]
    for meta in (loaded.meta, again.meta):
        assert holds(meta, kept), file.name
    assert again.meta == loaded.meta
    assert state_sha256(again.state_dict) == record_of(file)["state_sha256"]
    if loaded.meta["digest"] == loaded.file_digest:  # nothing was migrated
        assert (tmp_path / "h").read_bytes() == file.read_bytes()


def holds(found: Any, kept: Any) -> bool:
    """Whether ``found`` has every entry of ``kept``, spelled the same (1, 1.0 and -0.0 differ); it may have more."""
    if isinstance(kept, dict):
        return isinstance(found, dict) and all(key in found and holds(found[key], kept[key]) for key in kept)
    if isinstance(kept, list):
        return len(found) == len(kept) and all(map(holds, found, kept))
    return repr(found) == repr(kept)


def test_frozen_records_still_load_their_backbone() -> None:
    for folder in (FIRST, ROOT / "head_v2"):
        tuned = HeadCheckpoint.load(folder / "with_lora.safetensors")
        base = load_backbone("dinoneck_tiny")
        tuned.apply_adapter(base)
        tuned.check_backbone(base)
        predictor = Predictor(folder / "with_records.safetensors")
        assert predictor.backbone.layers == (1, 2)
        assert (predictor.preprocess.size, predictor.preprocess.blur) == ((32, 64), 5)


def test_migrations_are_pure() -> None:
    header, state = read_file(FIRST / "ensemble.safetensors")
    raw = read_header(FIRST / "ensemble.safetensors").meta
    before, tensors = copy.deepcopy(raw), {key: value.clone() for key, value in state.items()}
    first = migrate.to_present(raw, state, "x")
    assert raw == before
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
    assert first[0] == migrate.to_present(raw, state, "x")[0]
    assert first[0]["schema"] == SCHEMA == header.meta["schema"]
    assert migrate.STEPS.keys() == set(range(1, SCHEMA))


def rewritten(file: Path, change: Any) -> bytes:
    """An old file with other content, whose digest and spelling are right by its own rules."""
    with file.open("rb") as opened:
        header = files.parse(opened, file.stat().st_size, "x")
        data = files.read_data(opened, header, "x")
    meta = copy.deepcopy(header.meta)
    change(meta)
    meta["digest"] = files.digest(meta, data)
    return files.build(meta) + b"".join(data)


@pytest.mark.parametrize(
    ("change", "step", "message"),
    [
        (lambda meta: None, None, ""),
        (lambda meta: meta.pop("extra"), "schema", "missing required field `extra`"),
        (lambda meta: meta["config"].update(embed_dim=9), "tensors", "needs (4, 9)"),
        (lambda meta: meta["tensors"].pop(), "tensors", "cut short or something was appended"),
    ],
    ids=range(4),
)
def test_forged_files_of_schema_1(change: Any, step: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(rewritten(FIRST / "patch_mean.safetensors", change))
    if step is None:
        assert HeadCheckpoint.load(tmp_path / "h").file_digest == record_of(FIRST / "patch_mean.safetensors")["digest"]
        return
    with pytest.raises(CheckpointError) as caught:
        HeadCheckpoint.load(tmp_path / "h")
    assert (caught.value.step, message in str(caught.value)) == (step, True), caught.value


def test_damaged_files_of_schema_1_are_refused_as_such(tmp_path: Path) -> None:
    """Before a migration sees them: every 7th bit of a small file."""
    content = (FIRST / "decoder_injection.safetensors").read_bytes()
    for bit in range(0, len(content) * 8, 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "h").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_file(tmp_path / "h")


# -- versions of classes: a head whose argument and parameter were renamed ---------------------------------------


class Gain(Configured, nn.Module):
    """What it was at first: ``channels``, a parameter ``gain``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.arange(float(channels)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def _renamed(config: dict[str, Any], tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"width": config["channels"]}, {"scale": tensors["gain"]}


def _doubled(config: dict[str, Any], tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {**config, "times": 2}, {"scale": tensors["scale"] / 2}


class Scale(Configured, nn.Module):
    """Version 3: ``width``, a parameter ``scale``, and a factor that older ones did not have."""

    checkpoint_version: ClassVar[int] = 3
    checkpoint_migrations: ClassVar[Mapping[int, Any]] = {1: _renamed, 2: _doubled}

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale * self.times)


def test_a_renamed_parameter_is_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._OWN, "gain", Gain)
    HeadCheckpoint.from_module(Gain(3)).save(tmp_path / "old")
    monkeypatch.setitem(registry._OWN, "gain", Scale)
    checkpoint = HeadCheckpoint.load(tmp_path / "old")
    assert (checkpoint.config, checkpoint.meta["versions"]) == ({"width": 3, "times": 2}, {"gain": 3})
    assert torch.equal(checkpoint.build()(torch.ones(3)), torch.arange(3.0))
    checkpoint.save(tmp_path / "new")
    assert HeadCheckpoint.load(tmp_path / "new").meta == checkpoint.meta
    monkeypatch.setitem(registry._OWN, "gain", Gain)
    with pytest.raises(CheckpointError, match="'gain' in version 3; the one here is version 1. Install") as caught:
        HeadCheckpoint.load(tmp_path / "new")
    assert caught.value.step == "registry"


def test_steps_that_are_missing_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._OWN, "gain", Gain)
    HeadCheckpoint.from_module(Gain(3)).save(tmp_path / "old")
    monkeypatch.setitem(registry._OWN, "gain", Scale)

    def fails(config: dict[str, Any], tensors: dict[str, Any]) -> Any:
        raise KeyError("gone")

    for steps, step, message in (
        ({2: _doubled}, "registry", "nothing here turns into version 2"),
        ({1: fails, 2: _doubled}, "config", "KeyError"),
        ({1: _renamed, 2: lambda config, tensors: (config, tensors)}, "config", "lacks times"),
        ({1: _renamed, 2: lambda config, tensors: ({**config, "times": 2}, {})}, "tensors", "lacks scale"),
    ):
        monkeypatch.setattr(Scale, "checkpoint_migrations", steps)
        with pytest.raises(CheckpointError, match=message) as caught:
            HeadCheckpoint.load(tmp_path / "old")
        assert caught.value.step == step


def test_a_subclass_does_not_inherit_a_version() -> None:
    class Wider(Scale):
        pass

    assert (migrate.version_of(Scale), migrate.version_of(Wider), migrate.version_of(Gain)) == (3, 1, 1)


def test_arguments_change_with_a_version_only() -> None:
    """An argument that comes or goes without a new version would make every older file unreadable.

    One that the configuration omits at its default does not: it is absent from older files.
    """
    frozen = json.loads((ROOT / "arguments.json").read_text())
    for name in registry._HOMES:
        cls = registry.resolve(name)
        known = fields_of(cls).keys() - {"self", *getattr(cls, "omitted_arguments", ())}
        assert sorted(known) == frozen[name][str(migrate.version_of(cls))], name
        steps = vars(cls).get("checkpoint_migrations", {})
        assert set(steps) == set(range(1, migrate.version_of(cls))), name
