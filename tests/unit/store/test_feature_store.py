"""The store gives back what the backbone gave, in whatever way it was written and however often it was interrupted."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.store.store_samples import SIZE, make, same, write_images

from dinoneck import Backbone, DataError, FeatureStore, GridSize, StoreError, Tokens, load_backbone
from dinoneck.data import Preprocessing, Views
from dinoneck.grid import PadTo
from dinoneck.store import MemoryStore, QuantisedTokens, StoreDataset, image_ids
from dinoneck.store.encoding import channel_rms, quantise
from dinoneck.store.images import views_of as image_views

NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def two_layers() -> Backbone:
    return load_backbone("dinoneck_tiny", layers=[0, -1])


@pytest.fixture(scope="module")
def filled(
    images: Path, two_layers: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    store = make(tmp_path_factory.mktemp("store") / "s", two_layers)
    assert store.extract(images).written == ["a", "b", "c"]
    return store


@pytest.fixture(scope="module")
def int8(
    images: Path, two_layers: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    store = make(tmp_path_factory.mktemp("store") / "s", two_layers, dtype="int8")
    store.extract(images)
    return store


def views_of(path: Path, backbone: Backbone) -> torch.Tensor:
    """The four flipped views of an image."""
    image = backbone.preprocess.changed(size=SIZE)(path)
    return torch.cat([image, image.flip(-1), image.flip(-2), image.flip(-1, -2)])


def test_stored_tokens_are_the_backbones_bit_for_bit(
    filled: FeatureStore, images: Path, two_layers: Backbone
) -> None:
    for image_id in filled.ids:
        views = two_layers(views_of(images / f"{image_id}.png", two_layers))
        for pattern, expected in enumerate(views):
            given = filled[image_id, pattern]
            assert given.layers == expected.layers == (0, two_layers.depth - 1)
            assert (given.grid, given.normed, given.num_cls, given.num_registers) == (
                GridSize(2, 3),
                True,
                1,
                2,
            )
            for x, y in zip(given.sequence, expected.sequence, strict=True):
                assert x.dtype == torch.float32
                assert torch.equal(x, y.half().float())


def test_a_batch_keeps_order_repeats_and_patterns(filled: FeatureStore) -> None:
    batch = filled.batch(["c", "a", "c"], [3, 0, 1])
    for row, key in enumerate([("c", 3), ("a", 0), ("c", 1)]):
        for x, y in zip(batch.sequence, filled[key].sequence, strict=True):
            assert torch.equal(x[row : row + 1], y)
            assert x.is_contiguous()
    assert not torch.equal(filled["c", 0].sequence[0], filled["c", 1].sequence[0])
    assert torch.equal(filled["c"].sequence[0], filled["c", 0].sequence[0])
    assert filled.batch(["a"], dtype=None).sequence[0].dtype == torch.float16
    assert torch.equal(filled.batch(["a", "b"], 2).sequence[1][1:], filled["b", 2].sequence[1])


def test_keep_gives_each_image_its_own_grid(two_layers: Backbone, tmp_path: Path) -> None:
    for name, size in (("a", (60, 40)), ("b", (60, 15)), ("c", (30, 20))):
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "p" / f"{name}.png")
    store = make(tmp_path / "s", two_layers, image_size=(64, 64), resize="keep")
    store.extract(tmp_path / "p", batch_size=64)
    assert [store[i].grid for i in store.ids] == [GridSize(3, 4), GridSize(1, 4), GridSize(3, 4)]
    with pytest.raises(DataError, match="different grids"):
        store.batch(["a", "b"])
    assert torch.equal(store.batch(["a", "c"]).sequence[0][:1], store["a"].sequence[0])
    assert store.verify() == []
    image = two_layers.preprocess(tmp_path / "p" / "b.png", size=(64, 64), resize="keep")
    assert torch.allclose(store["b"].sequence[1], two_layers(image).sequence[1], atol=4e-3)


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [10] * 8), (6, [6] * 13 + [2])])
def test_passes_are_filled_across_images(
    tmp_path: Path, batch_size: int | None, sizes: list[int]
) -> None:
    paths, backbone = (
        write_images(tmp_path / "p", [f"{i:03}.png" for i in range(80)]),
        load_backbone("dinoneck_tiny"),
    )
    seen: list[int] = []
    backbone.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    store = make(tmp_path / "s", backbone, views="none")
    assert len(store.extract(paths, batch_size=batch_size, workers=3).written) == 80
    assert seen == sizes
    prepare = backbone.preprocess.changed(size=SIZE)
    expected = torch.cat([backbone(prepare(path)).sequence[0] for path in paths])
    stored = store.batch([path.stem for path in paths]).sequence[0]
    assert torch.allclose(stored, expected, atol=4e-3)
    # every id has the tokens of its own image
    distances = torch.cdist(stored.flatten(1), expected.flatten(1))
    assert distances.argmin(dim=1).tolist() == [*range(80)]


def test_extraction_goes_on_where_it_stopped(
    images: Path, filled: FeatureStore, two_layers: Backbone, tmp_path: Path
) -> None:
    store = make(tmp_path / "s", two_layers)
    first = store.extract([images / "b.png"], root=images)
    assert first.written == ["b"]
    second = store.extract(images, shard_bytes=1)
    assert (second.written, second.present) == (["a", "c"], 1)
    assert store.extract(images).written == []
    assert same(store, filled)
    assert len(list((tmp_path / "s" / "data").iterdir())) == 3
    reopened = make(tmp_path / "s", two_layers)
    assert reopened.ids == filled.ids


def test_ids_are_paths_below_the_root(tmp_path: Path) -> None:
    write_images(tmp_path, ["x/a.png", "x/b.b.jpg", "y/a.png"])
    found = image_ids(tmp_path)
    assert list(found) == ["x/a", "x/b.b", "y/a"]
    assert list(image_ids([tmp_path / "x"])) == ["a", "b.b"]
    assert list(image_ids([tmp_path / "x" / "a.png"], root=tmp_path)) == ["x/a"]
    assert list(image_ids([tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"])) == ["x/a", "y/a"]
    assert list(image_ids([tmp_path / "x" / "a.png"] * 2)) == ["a"]


def test_another_image_of_the_same_name_is_refused(tmp_path: Path, two_layers: Backbone) -> None:
    """BMP files of one shape have one size: only their time, root and hash tell them apart."""
    first, second = tmp_path / "p1", tmp_path / "p2"
    for seed, root in enumerate((first, second)):
        for path in write_images(root, ["a.bmp", "b.bmp"], seed=10 * seed):
            os.utime(path, (10**9, 10**9))
    store = make(tmp_path / "s", two_layers)
    store.extract(first)
    moved = shutil.copytree(first, tmp_path / "moved")
    (first / "a.bmp").touch()  # another time, the same bytes
    assert store.extract(first).present == store.extract(moved).present == 2
    message = (
        r"files of 2 stored images have changed: 'a', 'b'\. .* read from .*p1\. .*delete the shards"
    )
    # equal names, sizes and times below another root
    with pytest.raises(StoreError, match=message):
        store.extract(second)
    for name in ("a.bmp", "b.bmp"):
        (first / name).write_bytes((second / name).read_bytes())
    with pytest.raises(StoreError, match=message):
        make(tmp_path / "s", two_layers).extract(first)
    (tmp_path / "s" / store.shard_of("a")).unlink()
    assert make(tmp_path / "s", two_layers).extract(first).written == ["a", "b"]


def test_a_stored_image_is_not_stored_again_under_the_id_of_another_root(
    tmp_path: Path, two_layers: Backbone
) -> None:
    images = tmp_path / "p" / "x"
    write_images(images, ["a.png", "b.png"])
    store = make(tmp_path / "s", two_layers)
    store.extract(images)
    write_images(images, ["c.png"], seed=5)
    with pytest.raises(StoreError, match=r"2 images would be stored twice: .*a\.png .* 'x/a' now"):
        store.extract(images, root=tmp_path / "p")
    assert store.ids == ("a", "b")
    assert store.extract(images, root=images).written == ["c"]


def test_another_file_at_the_place_of_a_stored_image_is_stored_under_another_root(
    tmp_path: Path, two_layers: Backbone
) -> None:
    images = tmp_path / "p" / "x"
    write_images(images, ["a.png"])
    store = make(tmp_path / "s", two_layers)
    store.extract(images)
    write_images(images, ["a.png"], seed=5)
    extracted = store.extract(images, root=tmp_path / "p")
    assert extracted.written == ["x/a"]
    assert not torch.equal(store["a"].sequence[0], store["x/a"].sequence[0])


def outlier_tokens() -> Tokens:
    """Channels of very different size, as DINO tokens have them."""
    channels = torch.exp(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    channels[:3] *= 40
    x = torch.randn(2, 3 + 24, 32, generator=torch.Generator().manual_seed(2)) * channels
    return Tokens.from_sequence(
        [x, x.flip(0)], image_size=(64, 96), patch_size=16, num_prefix_tokens=3
    )


def quantised(tokens: Tokens) -> QuantisedTokens:
    scale = channel_rms([tokens])
    values, scales = zip(*map(quantise, tokens.patches, scale), strict=True)
    prefix = tuple(x[:, :3] for x in tokens.sequence)
    return QuantisedTokens(values, scales, prefix, tuple(scale), replace(tokens, sequence=()))


def test_int8_keeps_its_bound_and_beats_a_scale_per_token_alone() -> None:
    tokens = outlier_tokens()
    packed = quantised(tokens)
    back = packed.dequantise()
    for layer, (x, y) in enumerate(zip(tokens.patches, back.patches, strict=True)):
        bound = 0.5 * packed.scale[layer][..., None] * packed.channel_scale[layer]
        assert ((x - y).abs() <= bound * 1.001).all()
        naive_q, naive_scale = quantise(x, torch.ones(32))
        naive = naive_q.float() * naive_scale[..., None]
        assert ((x - y).norm() / x.norm()) < 0.02
        weights = 1 / packed.channel_scale[layer]
        assert ((x - y) * weights).norm() < 0.25 * ((x - naive) * weights).norm()
    assert torch.equal(back.registers[0], tokens.registers[0])
    zeros = Tokens.from_patches(torch.zeros(1, 4, 8), grid=(2, 2), patch_size=16)
    assert torch.equal(channel_rms([zeros]), torch.ones(1, 8))
    assert not any(x.any() for x in quantise(zeros.patches[0], torch.ones(8)))
    assert torch.equal(back.cls_token[1], tokens.cls_token[1])


def test_int8_is_pooled_as_it_is() -> None:
    packed = quantised(outlier_tokens())
    plain = packed.dequantise(torch.float64)
    generator = torch.Generator().manual_seed(0)
    gate = torch.rand(2, 24, generator=generator, dtype=torch.float64)
    for layer, patches in enumerate(plain.patches):
        torch.testing.assert_close(
            packed.pool(dtype=torch.float64)[layer], patches.mean(1), rtol=1e-12, atol=1e-12
        )
        weighted = torch.einsum("bn,bnc->bc", gate, patches)
        torch.testing.assert_close(
            packed.pool(gate, torch.float64)[layer], weighted, rtol=1e-12, atol=1e-12
        )
    assert packed.pool()[0].dtype == torch.float32


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_a_linear_layer_on_int8_is_that_on_the_dequantised_tokens(has_bias: bool) -> None:
    packed = quantised(outlier_tokens())
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 32, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64) if has_bias else None
    projected = packed.linear(weight, bias)
    dequantised = packed.dequantise(torch.float64)
    assert len(projected) == 2
    for layer, sequence in zip(projected, dequantised.sequence, strict=True):
        expected = torch.nn.functional.linear(sequence, weight, bias)
        torch.testing.assert_close(layer, expected, rtol=1e-12, atol=1e-12)


def test_a_linear_layer_on_int8_gives_the_dtype_of_its_weight_and_gradients() -> None:
    packed = quantised(outlier_tokens())
    layer = torch.nn.Linear(32, 5, dtype=torch.bfloat16)
    projected = packed.linear(layer.weight, layer.bias)[0]
    projected.float().square().sum().backward()
    assert projected.dtype == torch.bfloat16
    assert layer.weight.grad is not None and bool(layer.weight.grad.any())


def test_the_length_of_int8_tokens_is_their_number_of_images() -> None:
    assert len(quantised(outlier_tokens())) == 2


def test_an_int8_store(
    images: Path, int8: FeatureStore, two_layers: Backbone, tmp_path: Path
) -> None:
    expected = two_layers(views_of(images / "b.png", two_layers))[0]
    given, packed = int8["b", 0], int8.quantised(["b"], 0)
    for layer, (x, y) in enumerate(zip(given.patches, expected.patches, strict=True)):
        assert (
            (x - y).abs() <= 0.501 * packed.scale[layer][..., None] * packed.channel_scale[layer]
        ).all()
    assert torch.equal(given.cls_token[0], expected.cls_token[0])
    split = make(tmp_path / "split", two_layers, dtype="int8")
    for share in ((1, 2), (0, 2)):
        split.extract(images, shard=share)
    assert same(int8, split)


def test_in_memory_it_gives_the_same(filled: FeatureStore, int8: FeatureStore) -> None:
    for store in (filled, int8):
        kept = MemoryStore(store)
        assert kept.ids == store.ids
        one, two = kept.batch(["c", "a"], [3, 1]), store.batch(["c", "a"], [3, 1])
        assert kit.same(one, two) and one.layers == two.layers
    assert torch.equal(
        MemoryStore(int8).quantised(["a"]).pool()[0], int8.quantised(["a"]).pool()[0]
    )


def test_a_dataset_draws_patterns_that_can_be_repeated(filled: FeatureStore) -> None:
    data = StoreDataset(filled, views="random", seed=3)
    drawn = [
        [data.view_of(i) for i in range(3)] for epoch in range(20) if data.set_epoch(epoch) is None
    ]
    assert {p for epoch in drawn for p in epoch} == {0, 1, 2, 3}
    data.set_epoch(0)
    assert [data.view_of(i) for i in range(3)] == drawn[0]
    other = StoreDataset(filled, views="random", seed=4)
    assert any(
        [other.view_of(i) for i in range(3)] != e
        for e in drawn
        if other.set_epoch(drawn.index(e)) is None
    )
    tokens, numbers = data.__getitems__([2, 0])
    assert numbers.tolist() == [2, 0]
    expected = filled.batch(["c", "a"], [data.view_of(2), data.view_of(0)])
    assert torch.equal(tokens.sequence[0], expected.sequence[0])
    views = StoreDataset(filled, ["b"], views=[0, 3])
    assert [(views.id_of(i), views.view_of(i)) for i in range(len(views))] == [("b", 0), ("b", 3)]
    assert torch.equal(views[-1][0].sequence[0], filled["b", 3].sequence[0])
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(filled: FeatureStore, context: str) -> None:
    data = StoreDataset(filled, views=[0, 1, 2, 3])
    loader = data.loader(5, num_workers=2, multiprocessing_context=context, timeout=50)
    seen = {
        int(n): tokens.sequence[1][i] for tokens, numbers in loader for i, n in enumerate(numbers)
    }
    assert sorted(seen) == list(range(12))
    for n, x in seen.items():
        assert torch.equal(x, filled[data.id_of(n), data.view_of(n)].sequence[1][0])


def test_a_read_only_store_opens(images: Path, two_layers: Backbone, tmp_path: Path) -> None:
    store = make(tmp_path / "s", two_layers)
    store.extract(images)
    folders = [tmp_path / "s", tmp_path / "s" / "data"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert make(tmp_path / "s", two_layers).ids == store.ids
        assert make(tmp_path / "s", two_layers).extract(images).present == 3
        if os.geteuid() != 0:  # root may write anywhere
            with pytest.raises(StoreError, match="cannot be written"):
                make(tmp_path / "s", two_layers).extract(write_images(tmp_path / "more", ["d.png"]))
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_other_images_in_a_replaced_shard_are_read_after_the_index_is_deleted(
    images: Path, two_layers: Backbone, tmp_path: Path
) -> None:
    store = make(tmp_path / "s", two_layers)
    store.extract(images)
    # the index trusts the folder of the shards, and so compares no sizes when it is opened
    os.utime(tmp_path / "s" / "data", (10**9, 10**9))
    store.refresh(rebuild=True)
    others = write_images(tmp_path / "others", NAMES, seed=9)
    other = make(tmp_path / "o", two_layers)
    other.extract(others, root=tmp_path / "others")
    [shard] = (tmp_path / "s" / "data").iterdir()
    [other_shard] = (tmp_path / "o" / "data").iterdir()
    shutil.copy(other_shard, shard)

    for reader in (store, store, FeatureStore.open(tmp_path / "s")):
        with pytest.raises(StoreError, match="was replaced"):
            reader.batch(["b"])
    (tmp_path / "s" / "index.sqlite").unlink()

    assert same(FeatureStore.open(tmp_path / "s"), other)


def test_another_current_folder_later_is_no_other_store(
    filled: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(filled.path)
    monkeypatch.chdir(folder.parent)
    store = FeatureStore.open(folder.name)
    monkeypatch.chdir("/")
    assert store.path == folder.name
    assert same(store, filled)
    assert same(pickle.loads(pickle.dumps(store)), filled)


def test_remote_stores_fetch_only_what_is_asked_for(
    filled: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(f"local://{filled.path}", check="always")
    assert store.ids == filled.ids
    fetched: list[int] = []
    file_system = fsspec.get_filesystem_class("local")
    cat_file = file_system.cat_file

    def counted(self: object, *place: object, **options: object) -> bytes:
        raw: bytes = cat_file(self, *place, **options)
        fetched.append(len(raw))
        return raw

    monkeypatch.setattr(file_system, "cat_file", counted)
    assert torch.equal(
        store.batch(["c", "a"], [1, 3]).sequence[1], filled.batch(["c", "a"], [1, 3]).sequence[1]
    )
    assert fetched == [2 * 9 * 64 * 2] * 2
    assert pickle.loads(pickle.dumps(store)).ids == store.ids


def test_the_older_layouts_are_read(images: Path, tmp_path: Path) -> None:
    store = make(tmp_path / "one", load_backbone("dinoneck_tiny"))
    store.extract(images)
    (tmp_path / "npz").mkdir()
    (tmp_path / "pt").mkdir()
    for image_id in store.ids:
        tokens = store.batch([image_id] * 4, range(4))
        arrays = {f"patches_{i}": tokens.patches[0][i].numpy() for i in range(4)}
        arrays |= {f"cls_{i}": tokens.cls_token[0][i].numpy() for i in range(4)}
        np.savez(tmp_path / "npz" / f"{image_id}.npz", **arrays)
        torch.save(tokens.maps()[0][0].half().contiguous(), tmp_path / "pt" / f"{image_id}.pt")
    back = FeatureStore.from_npz(
        tmp_path / "npz", tmp_path / "back", grid=(2, 3), patch_size=16, views="flips4"
    )
    assert back.ids == store.ids
    assert back.views == store.views
    for view in range(4):
        assert torch.equal(back["c", view].patches[0], store["c", view].patches[0])
        assert torch.equal(back["c", view].cls_token[0], store["c", view].cls_token[0])
    again = FeatureStore.from_npz(
        tmp_path / "npz", tmp_path / "back", grid=(2, 3), patch_size=16, views="flips4"
    )
    assert again.ids == back.ids
    from_pt = FeatureStore.from_pt(tmp_path / "pt", tmp_path / "back_pt", patch_size=16)
    assert torch.equal(from_pt["b"].patches[0], store["b"].patches[0])
    assert from_pt["b"].num_prefix_tokens == 0


def test_workers_that_are_running_see_the_next_epoch(filled: FeatureStore) -> None:
    """They live on between epochs, and draw its views."""
    data = StoreDataset(filled, views="random", seed=3)
    loader = data.loader(3, num_workers=1, persistent_workers=True, timeout=50)
    read, drawn = [], []
    for epoch in range(3):
        data.set_epoch(epoch)
        [(tokens, numbers)] = loader
        read.append(tokens.sequence[0])
        drawn.append([data.view_of(int(number)) for number in numbers])

    assert drawn[0] != drawn[1]
    for tokens, views in zip(read, drawn, strict=True):
        assert torch.equal(tokens, filled.batch(["a", "b", "c"], views).sequence[0])


@pytest.mark.parametrize("pad_to", ["corner", "center"])
def test_padding_is_the_mean_colour_in_every_view(pad_to: PadTo) -> None:
    """It is normalised to 0, and follows the image when that is flipped or turned."""
    preprocess = Preprocessing(16, size=(32, 32), resize="pad", pad_to=pad_to)
    top = 0 if pad_to == "corner" else 8
    bright = np.full((16, 32, 3), 255, np.uint8)
    views = Views([*Views.named("color20").views, *Views.named("d6").views])

    stored = image_views(bright, preprocess, views, "a")

    for i, view in enumerate(stored):
        upright = views.undo(view, i)
        assert not upright[:, :top].any(), views.views[i]
        assert not upright[:, top + 16 :].any(), views.views[i]
        assert upright[:, top : top + 16].all(), views.views[i]
