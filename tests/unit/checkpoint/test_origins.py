"""``save_head`` and ``Predictor`` compare their backbone and images with what a head was trained on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from tests.unit.tuned_backbones import change, train_blocks, train_lora
from torch.optim.swa_utils import AveragedModel

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    load_head,
    save_head,
    wrap_backbone,
)
from dinoneck.store import FeatureStore, MemoryStore
from dinoneck.training import LiveTokens, MemoryTokens, fit

COUNT = 4
IDS = [f"meadow-{number}" for number in range(COUNT)]
SMALL = (16, 32)  # 1 x 2 patches


def pictures() -> torch.Tensor:
    return torch.rand(COUNT, 3, 48, 64, generator=torch.Generator().manual_seed(5))


def new_head(seed: int = 3) -> PatchMeanHead:
    return kit.head(seed=seed)


def fit_on(source: Any, head: PatchMeanHead | None = None, **options: Any) -> PatchMeanHead:
    """Train a head for two epochs on tokens of the pictures, and return it in eval mode."""
    if head is None:
        head = new_head()
    values = dict(zip(IDS, [1.0, 5.0, 2.0, 8.0], strict=True))
    fit(head, source, {"mass": values}, epochs=2, batch_size=2, lr=0.01, **options)
    return head.eval()


def extracted(backbone: Backbone, **options: Any) -> MemoryTokens:
    return MemoryTokens.extract(backbone, list(pictures()), IDS, dtype=torch.float32, **options)


def direct(head: Any, backbone: Backbone, preprocess: Any = None) -> list[float]:
    """What the head gives for the pictures, without any file or Predictor."""
    images = (preprocess or backbone.preprocess)(list(pictures()))
    with torch.no_grad():
        return [float(value) for value in head.predict(backbone(images))["mass"][:, 0]]


def predicted(*arguments: Any, **options: Any) -> list[float]:
    rows = Predictor(*arguments, **options)(list(pictures()))
    return [row["mass"] for row in rows]


def with_lora(seed: int) -> Backbone:
    """The tiny backbone with frozen LoRA weights that are not zero."""
    backbone = kit.backbone().add_lora(2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return backbone.freeze()


# --- weights


def test_a_loaded_head_is_not_saved_with_the_base_of_its_lora_weights(tmp_path: Path) -> None:
    lora = with_lora(1)
    head = new_head().eval()
    save_head(tmp_path / "a", head, backbone=lora)
    loaded = load_head(tmp_path / "a")

    with pytest.raises(CheckpointError, match="fingerprint") as refused:
        save_head(tmp_path / "b", loaded, backbone=kit.backbone())

    assert str(lora.fingerprint) in str(refused.value)
    assert str(kit.backbone().fingerprint) in str(refused.value)
    own = HeadCheckpoint.load(tmp_path / "a").load_backbone()
    save_head(tmp_path / "b", loaded, backbone=own)
    assert predicted(tmp_path / "b") == pytest.approx(direct(head, lora), rel=1e-5)


def test_a_loaded_head_is_not_saved_with_the_weights_from_before_its_blocks_were_trained(
    tmp_path: Path,
) -> None:
    backbone = kit.backbone()
    train_blocks(backbone)
    save_head(tmp_path / "a", new_head(), backbone=backbone, backbone_weights=backbone.state_dict())
    loaded = load_head(tmp_path / "a")

    with pytest.raises(CheckpointError, match="pass the backbone that made the tokens"):
        save_head(tmp_path / "b", loaded, backbone=kit.backbone())


def test_a_loaded_head_is_saved_again_with_its_backbone(tmp_path: Path) -> None:
    backbone = kit.backbone()
    preprocess = backbone.preprocess.changed(size=SMALL)
    save_head(tmp_path / "a", new_head(), backbone=backbone, preprocess=preprocess)

    save_head(tmp_path / "b", load_head(tmp_path / "a"), backbone=kit.backbone())

    assert predicted(tmp_path / "b") == predicted(tmp_path / "a")
    assert HeadCheckpoint.load(tmp_path / "b").preprocess == preprocess


@pytest.mark.parametrize("prepare", [Backbone.unfreeze_last, Backbone.add_lora])
def test_what_fit_trained_along_is_not_lost_when_the_head_is_saved(
    tmp_path: Path, prepare: Any
) -> None:
    backbone = kit.backbone()
    prepare(backbone, 2)
    live = LiveTokens(backbone, list(pictures()), IDS)
    head = fit_on(live, backbone_lr=0.01)
    backbone.freeze()

    with pytest.raises(CheckpointError, match="what was trained along"):
        save_head(tmp_path / "h", head, backbone=kit.backbone())
    with pytest.raises(CheckpointError, match="what was trained along"):
        Predictor(head, kit.backbone())

    assert predicted(head, backbone) == pytest.approx(direct(head, backbone), rel=1e-5)
    save_head(tmp_path / "h", head, backbone=backbone, backbone_weights=backbone.state_dict())
    assert predicted(tmp_path / "h") == pytest.approx(direct(head, backbone), rel=1e-5)


def test_a_file_of_weights_without_the_trained_lora_weights_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = kit.backbone().add_lora(2)
    head = fit_on(LiveTokens(backbone, list(pictures()), IDS), backbone_lr=0.01)
    trained = backbone.freeze().fingerprint
    backbone.save_weights(tmp_path / "w.safetensors")
    again = kit.backbone(checkpoint=tmp_path / "w.safetensors")

    save_head(tmp_path / "h", head, backbone=again)

    in_file, of_head = caplog.messages
    assert "LoRA weights are not in" in in_file
    assert f"fingerprint {trained}, and this backbone has {again.fingerprint}, of a file" in of_head


def test_a_file_of_merged_lora_weights_is_taken(tmp_path: Path) -> None:
    backbone = kit.backbone().add_lora(2)
    head = fit_on(LiveTokens(backbone, list(pictures()), IDS), backbone_lr=0.01)
    backbone.freeze().merge_lora().save_weights(tmp_path / "w.safetensors")
    again = kit.backbone(checkpoint=tmp_path / "w.safetensors")

    save_head(tmp_path / "h", head, backbone=again)

    assert predicted(tmp_path / "h", again) == pytest.approx(direct(head, backbone), rel=1e-4)


def test_a_predictor_refuses_a_head_that_was_fitted_on_tokens_of_other_weights() -> None:
    made_tokens = kit.backbone(pretrained=False, seed=4)
    head = fit_on(extracted(made_tokens))
    with pytest.raises(CheckpointError, match=str(made_tokens.fingerprint)):
        Predictor(head, kit.backbone(pretrained=False, seed=6))
    assert predicted(head, made_tokens) == pytest.approx(direct(head, made_tokens), rel=1e-5)


def test_a_loop_that_goes_on_with_lora_after_a_file_is_saved_and_predicts(tmp_path: Path) -> None:
    save_head(tmp_path / "a", new_head(), backbone=kit.backbone())
    head = load_head(tmp_path / "a")
    backbone = kit.backbone().add_lora(2)
    weights = [p for p in [*head.parameters(), *backbone.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.05)
    images = backbone.preprocess(list(pictures()))
    for _ in range(2):
        optimizer.zero_grad()
        head(backbone(images))["mass"].square().sum().backward()
        optimizer.step()
    head.eval()
    backbone.freeze()

    save_head(tmp_path / "b", head, backbone=backbone)

    expected = direct(head, backbone)
    assert predicted(head, backbone) == pytest.approx(expected, rel=1e-5)
    assert predicted(tmp_path / "b") == pytest.approx(expected, rel=1e-5)


def test_a_loaded_head_that_was_not_trained_refuses_a_backbone_that_was(tmp_path: Path) -> None:
    save_head(tmp_path / "a", new_head(), backbone=kit.backbone())
    head = load_head(tmp_path / "a")
    backbone = kit.backbone()
    train_blocks(backbone)
    images = backbone.preprocess(list(pictures()))
    head(backbone(images))["mass"].sum().backward()
    backbone.freeze()
    with pytest.raises(BackboneError, match=r"trained on other tokens.*trained_on = None"):
        head.predict(backbone(images))


def test_nothing_is_compared_once_the_origin_is_taken_off(tmp_path: Path) -> None:
    head = fit_on(extracted(kit.backbone(pretrained=False, seed=4)))
    head.trained_on = None
    save_head(tmp_path / "h", head, backbone=kit.backbone())
    assert predicted(tmp_path / "h") == pytest.approx(direct(head, kit.backbone()), rel=1e-5)


def test_tokens_made_by_hand_are_compared_with_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = kit.tokens_from(torch.randn(COUNT, 9, 64), 2, 3, prefix=3)
    head = fit_on(MemoryTokens(IDS, tokens))
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h", head, backbone=kit.backbone())
    assert caplog.records == []


# --- layers and norm


@pytest.mark.parametrize(
    ("trained", "given", "named"),
    [
        ({"layers": [2]}, {"layers": [4]}, r"layers: 2 / 4.*with_layers\(\[2\], norm=True\)"),
        ({"norm": False}, {}, r"norm: False / True.*with_layers\(\[5\], norm=False\)"),
        ({"layers": [1, 4]}, {"layers": [4, 1]}, r"layers: 4 / 1.*with_layers\(\[1, 4\]"),
    ],
)
def test_a_head_is_used_with_the_layers_and_the_norm_that_it_was_fitted_on(
    tmp_path: Path, trained: dict[str, Any], given: dict[str, Any], named: str
) -> None:
    backbone = kit.backbone(**trained)
    head = fit_on(extracted(backbone))
    other = kit.backbone(**given)

    with pytest.raises(CheckpointError, match=named):
        save_head(tmp_path / "h", head, backbone=other)
    with pytest.raises(CheckpointError, match=named):
        Predictor(head, other)

    repaired = other.with_layers(backbone.layers, norm=backbone.norm)
    save_head(tmp_path / "h", head, backbone=repaired)
    assert predicted(tmp_path / "h") == pytest.approx(direct(head, backbone), rel=1e-5)


def test_a_head_of_a_file_keeps_its_layers_when_it_is_trained_on(tmp_path: Path) -> None:
    save_head(tmp_path / "a", new_head(), backbone=kit.backbone(layers=[2]))
    head = load_head(tmp_path / "a")
    with torch.no_grad():
        next(head.parameters()).add_(0.01)
    with pytest.raises(CheckpointError, match="the layers and the norm of the training"):
        save_head(tmp_path / "b", head, backbone=kit.backbone())


def test_other_layers_are_named_if_a_loop_trained_the_head_since(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = fit_on(extracted(kit.backbone(layers=[2])))
    change(head.parameters())
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h", head, backbone=kit.backbone())
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "2 / 5" in warning


def test_a_head_that_reads_the_last_layer_takes_that_layer_alone(tmp_path: Path) -> None:
    backbone = kit.backbone(layers=[2, 5])
    head = fit_on(extracted(backbone))
    save_head(tmp_path / "h", head, backbone=kit.backbone(layers=[5]))
    assert predicted(tmp_path / "h") == pytest.approx(direct(head, backbone), rel=1e-5)


# --- ensembles


def test_heads_with_lora_weights_of_their_own_make_no_ensemble_file(tmp_path: Path) -> None:
    means = []
    for number in (1, 2):
        save_head(tmp_path / f"{number}", new_head(number), backbone=with_lora(number))
        means.append(direct(new_head(number), with_lora(number)))
    members = [load_head(tmp_path / "1"), load_head(tmp_path / "2")]
    ensemble = HeadEnsemble.from_heads(members)

    with pytest.raises(CheckpointError, match=r"different backbones.*Predictor\(\{'a': FILE"):
        save_head(tmp_path / "e", ensemble, backbone=with_lora(1))
    with pytest.raises(CheckpointError, match="different backbones"):
        Predictor(ensemble, with_lora(1))

    rows = Predictor({"a": tmp_path / "1", "b": tmp_path / "2"})(list(pictures()))
    assert [row["a"]["mass"] for row in rows] == pytest.approx(means[0], rel=1e-5)
    assert [row["b"]["mass"] for row in rows] == pytest.approx(means[1], rel=1e-5)


def test_a_list_of_heads_with_other_backbones_proposes_a_mapping_alone(tmp_path: Path) -> None:
    for number in (1, 2):
        save_head(tmp_path / f"{number}", new_head(number), backbone=with_lora(number))
    with pytest.raises(CheckpointError, match=r"mapping.*each then has its own backbone") as error:
        Predictor([tmp_path / "1", tmp_path / "2"])
    assert "from_heads" not in str(error.value)


def test_an_ensemble_of_fitted_heads_is_saved_with_their_backbone(tmp_path: Path) -> None:
    backbone = kit.backbone()
    source = extracted(backbone)
    heads = [fit_on(source, new_head(seed)) for seed in (1, 2)]
    ensemble = HeadEnsemble.from_heads(heads)
    save_head(tmp_path / "e", ensemble, backbone=backbone)
    assert predicted(tmp_path / "e") == pytest.approx(direct(ensemble, backbone), rel=1e-5)


def test_an_ensemble_whose_members_read_their_own_layers_is_saved_again(tmp_path: Path) -> None:
    backbone = kit.backbone(layers=[2, 5])
    heads = [fit_on(extracted(kit.backbone(layers=[index])), new_head(index)) for index in (2, 5)]
    ensemble = HeadEnsemble(heads, layers=[[2], [5]])
    save_head(tmp_path / "a", ensemble, backbone=backbone)

    save_head(tmp_path / "b", load_head(tmp_path / "a"), backbone=backbone)

    assert predicted(tmp_path / "b") == pytest.approx(direct(ensemble, backbone), rel=1e-5)


# --- images


def test_images_are_prepared_as_for_the_store_that_a_head_was_fitted_on(tmp_path: Path) -> None:
    names = [f"{image_id}.png" for image_id in IDS]
    files = kit.write_images(tmp_path / "images", names, 48, 64)
    backbone = kit.backbone()
    store = FeatureStore.create(tmp_path / "store", backbone=backbone, image_size=SMALL)
    store.extract(tmp_path / "images", root=tmp_path / "images")
    head = new_head()
    values = dict(zip(store.ids, [1.0, 5.0, 2.0, 8.0], strict=True))
    fit(head, store, {"mass": values}, epochs=2, lr=0.01)
    head.eval()
    expected = [float(x) for x in head.predict(store.batch(store.ids))["mass"][:, 0]]

    save_head(tmp_path / "h", head, backbone=store.backbone_record)

    for predictor in (Predictor(tmp_path / "h"), Predictor(head, backbone)):
        values_of_images = [row["mass"] for row in predictor(files)]
        values_of_store = [row["mass"] for row in predictor.predict(store, store.ids)]
        assert values_of_images == pytest.approx(expected, rel=1e-2)  # the store holds float16
        assert values_of_store == pytest.approx(expected, rel=1e-5)


def test_the_size_that_was_set_for_the_backbone_goes_into_the_file(tmp_path: Path) -> None:
    backbone = kit.backbone()
    backbone.preprocess = backbone.preprocess.changed(size=SMALL)
    head = fit_on(extracted(backbone))
    by_hand = new_head(8).eval()
    save_head(tmp_path / "fitted", head, backbone=backbone)
    save_head(tmp_path / "by hand", by_hand, backbone=backbone)
    assert predicted(tmp_path / "fitted") == pytest.approx(direct(head, backbone), rel=1e-5)
    assert predicted(tmp_path / "by hand") == pytest.approx(direct(by_hand, backbone), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": (32, 32)}, r"size: \(16, 32\) / \(32, 32\)"),
        ({"resize": "pad"}, "resize: stretch / pad"),
        ({"interpolation": "area"}, "interpolation: bilinear / area"),
        ({"blur": 3}, "blur: 1 / 3"),
        ({"mean": (0.5, 0.5, 0.5)}, r"mean: \(0.485.*\) / \(0.5, 0.5, 0.5\)"),
        ({"std": (0.5, 0.5, 0.5)}, r"std: \(0.229.*\) / \(0.5, 0.5, 0.5\)"),
    ],
)
def test_another_preparation_of_images_than_that_of_the_tokens_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    backbone = kit.backbone()
    preprocess = backbone.preprocess.changed(size=SMALL)
    head = fit_on(extracted(backbone, preprocess=preprocess))
    with pytest.raises(CheckpointError, match=named):
        save_head(tmp_path / "h", head, backbone=backbone, preprocess=preprocess.changed(**changes))
    assert not (tmp_path / "h").exists()


def test_images_at_their_own_size_are_refused_where_the_tokens_had_a_size(tmp_path: Path) -> None:
    backbone = kit.backbone()
    head = fit_on(extracted(backbone, preprocess=backbone.preprocess.changed(size=SMALL)))
    with pytest.raises(CheckpointError, match=r"size: \(16, 32\) / that of each image"):
        save_head(tmp_path / "h", head, backbone=backbone, preprocess=backbone.preprocess)


def test_a_size_that_is_set_for_the_backbone_after_the_training_is_refused(
    tmp_path: Path,
) -> None:
    backbone = kit.backbone()
    preprocess = backbone.preprocess.changed(size=SMALL)
    head = fit_on(extracted(backbone, preprocess=preprocess))
    backbone.preprocess = preprocess.changed(size=(32, 32))
    with pytest.raises(CheckpointError, match="than backbone.preprocess does"):
        save_head(tmp_path / "h", head, backbone=backbone)
    with pytest.raises(CheckpointError, match="than backbone.preprocess does"):
        Predictor(head, backbone)
    expected = direct(head, backbone, preprocess)
    assert predicted(head, backbone, preprocess=preprocess) == pytest.approx(expected, rel=1e-5)


def test_images_of_any_size_may_be_brought_to_one_later(tmp_path: Path) -> None:
    backbone = kit.backbone()
    head = fit_on(extracted(backbone))
    preprocess = backbone.preprocess.changed(size=(48, 64))
    save_head(tmp_path / "h", head, backbone=backbone, preprocess=preprocess)
    assert HeadCheckpoint.load(tmp_path / "h").preprocess == preprocess
    assert predicted(tmp_path / "h") == pytest.approx(direct(head, backbone), rel=1e-5)


def test_live_tokens_state_how_their_images_were_prepared(tmp_path: Path) -> None:
    backbone = kit.backbone()
    train_lora(backbone)
    preprocess = backbone.preprocess.changed(size=SMALL)
    head = fit_on(LiveTokens(backbone, list(pictures()), IDS, preprocess=preprocess))
    save_head(tmp_path / "h", head, backbone=backbone)
    expected = direct(head, backbone, preprocess)
    assert predicted(tmp_path / "h") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_of_the_head_keeps_how_its_images_were_prepared(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    backbone = kit.backbone()
    preprocess = backbone.preprocess.changed(size=SMALL)
    head = fit_on(extracted(backbone, preprocess=preprocess))
    expected = direct(head, backbone, preprocess)
    for module in (head, HeadEnsemble.from_heads([head])):
        module.to(dtype)
        save_head(tmp_path / "h", module, backbone=backbone)
        assert predicted(tmp_path / "h") == pytest.approx(expected, rel=2e-2)
        assert predicted(module, backbone) == pytest.approx(expected, rel=2e-2)
        module.float()


def test_a_cast_head_refuses_another_backbone_still() -> None:
    head = fit_on(extracted(kit.backbone())).to(torch.bfloat16)
    with pytest.raises(CheckpointError, match="pass the backbone that made the tokens"):
        Predictor(head, kit.backbone(seed=7))


def test_a_cast_does_not_hide_that_a_head_was_trained_since() -> None:
    head = fit_on(extracted(kit.backbone()))
    before = head.trained_on.head_weights
    with torch.no_grad():
        next(head.parameters()).add_(0.01)
    assert head.double().trained_on.head_weights == before


def test_an_average_of_a_fitted_head_keeps_how_its_images_were_prepared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = kit.backbone()
    preprocess = backbone.preprocess.changed(size=SMALL)
    head = fit_on(extracted(backbone, preprocess=preprocess))
    average = AveragedModel(head)
    with torch.no_grad():
        next(head.parameters()).add_(0.01)
    for _ in range(2):
        average.update_parameters(head)
    expected = direct(average.module, backbone, preprocess)

    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h", average.module, backbone=backbone)

    assert predicted(tmp_path / "h") == pytest.approx(expected, rel=1e-5)
    assert "images are prepared as in that training" in caplog.text
    assert "size: (16, 32) / that of each image" in caplog.text


def test_members_whose_images_were_prepared_differently_share_none() -> None:
    backbone = kit.backbone()
    preprocess = backbone.preprocess.changed(size=SMALL)
    of_any_size = fit_on(extracted(backbone))
    of_one_size = fit_on(extracted(backbone, preprocess=preprocess))
    for heads in ([of_any_size, of_one_size], [of_one_size, of_any_size]):
        with pytest.raises(CheckpointError, match=r"size: .*pass preprocess="):
            Predictor(heads, backbone)
        mean = HeadEnsemble.from_heads(heads)
        expected = direct(mean, backbone, preprocess)
        assert predicted(heads, backbone, preprocess=preprocess) == pytest.approx(expected)


def test_a_file_and_a_head_whose_images_were_prepared_differently_share_none(
    tmp_path: Path,
) -> None:
    backbone = kit.backbone()
    small = fit_on(extracted(backbone, preprocess=backbone.preprocess.changed(size=SMALL)))
    save_head(tmp_path / "h", small, backbone=backbone)
    head = fit_on(extracted(backbone), new_head(8))
    with pytest.raises(CheckpointError, match="prepared in different ways"):
        Predictor([tmp_path / "h", head], backbone)


def test_heads_of_three_backbones_make_no_ensemble_if_one_does_not_state_its_own(
    tmp_path: Path,
) -> None:
    first = fit_on(extracted(kit.backbone()))
    unstated = new_head(8)
    third = fit_on(extracted(kit.backbone(seed=7)))
    tokens = kit.backbone()(torch.rand(COUNT, 3, 32, 32))
    fit_on(MemoryTokens(IDS, replace(tokens, source=None)), unstated)
    ensemble = HeadEnsemble.from_heads([first, unstated, third])
    with pytest.raises(CheckpointError, match="tokens of different backbones"):
        HeadCheckpoint.from_module(ensemble)


def test_a_store_in_memory_states_how_its_images_were_prepared(tmp_path: Path) -> None:
    names = [f"{image_id}.png" for image_id in IDS]
    files = kit.write_images(tmp_path / "images", names, 48, 64)
    backbone = kit.backbone()
    store = FeatureStore.create(tmp_path / "store", backbone=backbone, image_size=SMALL)
    store.extract(tmp_path / "images", root=tmp_path / "images")
    head = new_head()
    values = dict(zip(store.ids, [1.0, 5.0, 2.0, 8.0], strict=True))
    memory = MemoryStore(store)
    fit(head, memory, {"mass": values}, epochs=2, lr=0.01)
    expected = [float(x) for x in head.eval().predict(store.batch(store.ids))["mass"][:, 0]]

    save_head(tmp_path / "h", head, backbone=memory.backbone_record)

    rows = Predictor(tmp_path / "h")(files)
    assert [row["mass"] for row in rows] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_tokens_of_another_grid_do_not_keep_how_earlier_images_were_prepared(
    tmp_path: Path, is_loaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = kit.backbone()
    preprocess = backbone.preprocess.changed(size=SMALL)
    head: Any = fit_on(extracted(backbone, preprocess=preprocess))
    if is_loaded:
        save_head(tmp_path / "h", head, backbone=backbone)
        head = load_head(tmp_path / "h")
    same_grid = MemoryTokens(IDS, backbone(preprocess(list(pictures()))))
    other_grid = MemoryTokens(IDS, backbone(backbone.preprocess(list(pictures()))))

    fit_on(same_grid, head)
    assert head.trained_on.images == preprocess.record()
    assert caplog.text == ""
    fit_on(other_grid, head)
    assert head.trained_on.images is None
    assert "pass preprocess= to save_head" in caplog.text


# --- the backbone that a file describes


def test_a_mean_of_the_users_own_is_that_of_the_backbone_that_is_built_again(
    tmp_path: Path,
) -> None:
    backbone = kit.backbone()
    backbone.preprocess = backbone.preprocess.changed(mean=(0.4, 0.5, 0.6), std=(0.3, 0.3, 0.2))
    head = new_head().eval()
    save_head(tmp_path / "h", head, backbone=backbone, preprocess=backbone.preprocess)
    assert predicted(tmp_path / "h") == pytest.approx(direct(head, backbone), rel=1e-5)
    assert HeadCheckpoint.load(tmp_path / "h").load_backbone().preprocess == backbone.preprocess


def test_a_hook_in_the_backbone_of_the_training_is_missed_when_it_is_built_again(
    tmp_path: Path,
) -> None:
    backbone = kit.backbone()
    hook = backbone.adapter.blocks[3].register_forward_hook(lambda _, __, output: output * 1.4)
    head = new_head().eval()
    save_head(tmp_path / "h", head, backbone=backbone)
    with pytest.raises(CheckpointError, match="other outputs: its probe differs by"):
        Predictor(tmp_path / "h")
    assert predicted(tmp_path / "h", backbone) == pytest.approx(direct(head, backbone), rel=1e-5)
    hook.remove()


def test_a_wrapped_twin_with_equal_weights_and_other_outputs_is_refused(tmp_path: Path) -> None:
    changed_model = kit.backbone().adapter.model
    changed_model.blocks[2].mlp.act = torch.nn.ReLU()
    changed = wrap_backbone(changed_model)
    twin = wrap_backbone(kit.backbone().adapter.model)
    assert twin.fingerprint == changed.fingerprint
    head = new_head().eval()
    save_head(tmp_path / "h", head, backbone=changed)
    with pytest.raises(CheckpointError, match="other outputs: its probe differs by"):
        Predictor(tmp_path / "h", twin)
    assert predicted(tmp_path / "h", changed) == pytest.approx(direct(head, changed), rel=1e-5)


@pytest.mark.parametrize("wrap", [AveragedModel, torch.nn.DataParallel])
def test_a_wrapper_of_a_head_is_named_with_what_to_save(tmp_path: Path, wrap: Any) -> None:
    head = new_head()
    wrapped = wrap(head)
    with pytest.raises(CheckpointError, match=r"wraps a PatchMeanHead.*pass module.module"):
        save_head(tmp_path / "h", wrapped, backbone=kit.backbone())
    save_head(tmp_path / "h", wrapped.module, backbone=kit.backbone())
    expected = direct(head.eval(), kit.backbone())
    assert predicted(tmp_path / "h") == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_predictor_goes_on_when_the_lora_weights_of_its_backbone_are_merged(
    tmp_path: Path,
) -> None:
    backbone = with_lora(1)
    save_head(tmp_path / "h", new_head(), backbone=backbone)
    predictor = Predictor(tmp_path / "h", backbone)
    before = [row["mass"] for row in predictor(list(pictures()))]

    backbone.merge_lora()

    after = [row["mass"] for row in predictor(list(pictures()))]
    assert after == pytest.approx(before, rel=1e-4)
    change(backbone.adapter.blocks[1].parameters())
    with pytest.raises(BackboneError, match="changed after this Predictor was made"):
        predictor(list(pictures()))
