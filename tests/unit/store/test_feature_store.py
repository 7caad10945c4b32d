"""The store gives back what the backbone gave, in whatever way it was written and however often it was interrupted."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
from dinoneck.store import MemoryStore, QuantisedTokens, StoreDataset, extraction, image_ids
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


@pytest.mark.parametrize("image_id", ["a", "b", "c"])
@pytest.mark.parametrize("view", range(4))
def test_stored_tokens_are_the_backbones_bit_for_bit(
    filled: FeatureStore, images: Path, two_layers: Backbone, image_id: str, view: int
) -> None:
    expected = two_layers(views_of(images / f"{image_id}.png", two_layers))[view]

    stored = filled[image_id, view]

    for stored_layer, layer in zip(stored.sequence, expected.sequence, strict=True):
        assert stored_layer.dtype == torch.float32
        assert torch.equal(stored_layer, layer.half().float())


def test_stored_tokens_know_their_layers_and_their_parts(
    filled: FeatureStore, two_layers: Backbone
) -> None:
    tokens = filled["a", 0]

    assert tokens.layers == (0, two_layers.depth - 1)
    assert tokens.grid == GridSize(2, 3)
    assert tokens.normed
    assert tokens.num_cls == 1
    assert tokens.num_registers == 2


def test_a_batch_keeps_order_repeats_and_patterns(filled: FeatureStore) -> None:
    batch = filled.batch(["c", "a", "c"], [3, 0, 1])

    for row, key in enumerate([("c", 3), ("a", 0), ("c", 1)]):
        for layer, expected in zip(batch.sequence, filled[key].sequence, strict=True):
            assert torch.equal(layer[row : row + 1], expected)


def test_the_layers_of_a_batch_are_contiguous(filled: FeatureStore) -> None:
    batch = filled.batch(["c", "a", "c"], [3, 0, 1])

    assert all(layer.is_contiguous() for layer in batch.sequence)


def test_views_of_an_image_differ(filled: FeatureStore) -> None:
    assert not torch.equal(filled["c", 0].sequence[0], filled["c", 1].sequence[0])


def test_an_id_alone_is_its_first_view(filled: FeatureStore) -> None:
    assert torch.equal(filled["c"].sequence[0], filled["c", 0].sequence[0])


def test_a_batch_may_keep_the_stored_dtype(filled: FeatureStore) -> None:
    assert filled.batch(["a"], dtype=None).sequence[0].dtype == torch.float16


def test_one_view_may_be_asked_for_all_images_of_a_batch(filled: FeatureStore) -> None:
    batch = filled.batch(["a", "b"], 2)

    assert torch.equal(batch.sequence[1][:1], filled["a", 2].sequence[1])
    assert torch.equal(batch.sequence[1][1:], filled["b", 2].sequence[1])


@pytest.fixture(scope="module")
def sized_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of noise with other proportions; a and c have the same."""
    folder = tmp_path_factory.mktemp("sized images")
    for name, size in (("a", (60, 40)), ("b", (60, 15)), ("c", (30, 20))):
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def kept_sizes(
    sized_images: Path, two_layers: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    """The store of these images with ``resize="keep"``."""
    folder = tmp_path_factory.mktemp("kept sizes")
    store = make(folder / "s", two_layers, image_size=(64, 64), resize="keep")
    store.extract(sized_images, batch_size=64)
    return store


def test_keep_gives_each_image_its_own_grid(kept_sizes: FeatureStore) -> None:
    assert [kept_sizes[image_id].grid for image_id in kept_sizes.ids] == [
        GridSize(3, 4),
        GridSize(1, 4),
        GridSize(3, 4),
    ]
    assert kept_sizes.verify() == []


def test_images_of_other_grids_are_stored_as_the_backbone_gives_them(
    kept_sizes: FeatureStore, sized_images: Path, two_layers: Backbone
) -> None:
    image = two_layers.preprocess(sized_images / "b.png", size=(64, 64), resize="keep")

    stored = kept_sizes["b"].sequence[1]

    assert torch.allclose(stored, two_layers(image).sequence[1], atol=4e-3)


def test_images_of_one_grid_make_a_batch_and_others_do_not(kept_sizes: FeatureStore) -> None:
    batch = kept_sizes.batch(["a", "c"])

    assert torch.equal(batch.sequence[0][:1], kept_sizes["a"].sequence[0])
    with pytest.raises(DataError, match="different grids"):
        kept_sizes.batch(["a", "b"])


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        pytest.param(None, [10] * 8, id="the store's own batch size"),
        pytest.param(6, [6] * 13 + [2], id="6"),
    ],
)
def test_passes_are_filled_across_images(
    tmp_path: Path, batch_size: int | None, sizes: list[int]
) -> None:
    paths = write_images(tmp_path / "p", [f"{i:03}.png" for i in range(80)])
    backbone = load_backbone("dinoneck_tiny")
    store = make(tmp_path / "s", backbone, views="none")
    seen_sizes: list[int] = []
    hook = backbone.register_forward_pre_hook(lambda _, images: seen_sizes.append(len(images[0])))

    extracted = store.extract(paths, batch_size=batch_size, workers=3)

    hook.remove()
    assert len(extracted.written) == 80
    assert seen_sizes == sizes
    prepare = backbone.preprocess.changed(size=SIZE)
    expected = torch.cat([backbone(prepare(path)).sequence[0] for path in paths])
    stored = store.batch([path.stem for path in paths]).sequence[0]
    assert torch.allclose(stored, expected, atol=4e-3)
    # every id has the tokens of its own image
    distances = torch.cdist(stored.flatten(1), expected.flatten(1))
    assert distances.argmin(dim=1).tolist() == [*range(80)]


@pytest.fixture
def continued(images: Path, two_layers: Backbone, tmp_path: Path) -> FeatureStore:
    """A store of one image, then of all of them, each in a shard of its own."""
    store = make(tmp_path / "s", two_layers)
    store.extract([images / "b.png"], root=images)
    store.extract(images, shard_bytes=1)
    return store


def test_extraction_goes_on_where_it_stopped(
    images: Path, two_layers: Backbone, tmp_path: Path
) -> None:
    store = make(tmp_path / "s", two_layers)
    first = store.extract([images / "b.png"], root=images)

    second = store.extract(images)

    assert first.written == ["b"]
    assert second.written == ["a", "c"]
    assert second.present == 1


def test_a_store_that_was_continued_is_that_of_one_extraction(
    continued: FeatureStore, filled: FeatureStore
) -> None:
    assert same(continued, filled)


def test_a_complete_store_is_left_as_it_is(continued: FeatureStore, images: Path) -> None:
    shards = sorted((Path(continued.path) / "data").iterdir())

    extracted = continued.extract(images)

    assert extracted.written == []
    assert sorted((Path(continued.path) / "data").iterdir()) == shards
    assert len(shards) == 3


def test_a_store_that_is_made_again_is_the_one_that_is_there(
    continued: FeatureStore, filled: FeatureStore, two_layers: Backbone
) -> None:
    reopened = make(Path(continued.path), two_layers)

    assert reopened.ids == filled.ids


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Images in two folders."""
    write_images(tmp_path, ["x/a.png", "x/b.b.jpg", "y/a.png"])
    return tmp_path


def test_ids_are_paths_below_the_root(folders: Path) -> None:
    assert list(image_ids(folders)) == ["x/a", "x/b.b", "y/a"]


def test_a_folder_in_a_list_is_a_root(folders: Path) -> None:
    assert list(image_ids([folders / "x"])) == ["a", "b.b"]


def test_a_root_may_be_stated(folders: Path) -> None:
    assert list(image_ids([folders / "x" / "a.png"], root=folders)) == ["x/a"]


def test_the_root_of_files_is_the_folder_that_they_share(folders: Path) -> None:
    files = [folders / "x" / "a.png", folders / "y" / "a.png"]

    assert list(image_ids(files)) == ["x/a", "y/a"]


def test_a_file_that_is_named_twice_has_one_id(folders: Path) -> None:
    assert list(image_ids([folders / "x" / "a.png"] * 2)) == ["a"]


CHANGED = (
    r"files of 2 stored images have changed: 'a', 'b'\. .* read from .*p1\. .*delete the shards"
)


@pytest.fixture
def first_images(tmp_path: Path) -> Path:
    """Two images in BMP files: of one shape they have one size, and their times are equal too."""
    return bmp_images(tmp_path / "p1", seed=0)


def bmp_images(root: Path, seed: int) -> Path:
    for path in write_images(root, ["a.bmp", "b.bmp"], seed=seed):
        os.utime(path, (10**9, 10**9))
    return root


@pytest.fixture
def of_first(first_images: Path, two_layers: Backbone, tmp_path: Path) -> FeatureStore:
    store = make(tmp_path / "s", two_layers)
    store.extract(first_images)
    return store


def test_equal_images_with_another_time_are_present(
    of_first: FeatureStore, first_images: Path
) -> None:
    (first_images / "a.bmp").touch()

    assert of_first.extract(first_images).present == 2


def test_equal_images_in_another_folder_are_present(
    of_first: FeatureStore, first_images: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(first_images, tmp_path / "moved")

    assert of_first.extract(moved).present == 2


def test_another_image_of_the_same_name_is_refused(of_first: FeatureStore, tmp_path: Path) -> None:
    """Names, sizes and times are equal: only the root and the hashes tell the images apart."""
    second_images = bmp_images(tmp_path / "p2", seed=10)

    with pytest.raises(StoreError, match=CHANGED):
        of_first.extract(second_images)


def test_an_image_that_was_overwritten_is_refused(
    of_first: FeatureStore, first_images: Path, two_layers: Backbone, tmp_path: Path
) -> None:
    second_images = bmp_images(tmp_path / "p2", seed=10)
    for name in ("a.bmp", "b.bmp"):
        shutil.copyfile(second_images / name, first_images / name)

    with pytest.raises(StoreError, match=CHANGED):
        make(tmp_path / "s", two_layers).extract(first_images)


def test_images_are_stored_again_once_their_shard_is_deleted(
    of_first: FeatureStore, first_images: Path, two_layers: Backbone, tmp_path: Path
) -> None:
    second_images = bmp_images(tmp_path / "p2", seed=10)
    for name in ("a.bmp", "b.bmp"):
        shutil.copyfile(second_images / name, first_images / name)
    (tmp_path / "s" / of_first.shard_of("a")).unlink()

    extracted = make(tmp_path / "s", two_layers).extract(first_images)

    assert extracted.written == ["a", "b"]


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


def test_images_of_a_folder_elsewhere_come_beside_those_that_are_stored(
    tmp_path: Path, two_layers: Backbone
) -> None:
    write_images(tmp_path / "first", ["a.png"])
    write_images(tmp_path / "second", ["z.png"], seed=5)
    store = make(tmp_path / "s", two_layers)
    store.extract(tmp_path / "first")

    extracted = store.extract(tmp_path / "second")

    assert extracted.written == ["z"]
    assert store.ids == ("a", "z")
    assert store.verify() == []


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

    restored = packed.dequantise()

    for layer, (x, y) in enumerate(zip(tokens.patches, restored.patches, strict=True)):
        bound = 0.5 * packed.scale[layer][..., None] * packed.channel_scale[layer]
        assert ((x - y).abs() <= bound * 1.001).all()
        assert ((x - y).norm() / x.norm()) < 0.02
        values_by_token, scale_by_token = quantise(x, torch.ones(32))
        by_token_alone = values_by_token.float() * scale_by_token[..., None]
        weights = 1 / packed.channel_scale[layer]
        error_by_token_alone = ((x - by_token_alone) * weights).norm()
        assert ((x - y) * weights).norm() < 0.25 * error_by_token_alone


def test_int8_keeps_the_prefix_exactly() -> None:
    tokens = outlier_tokens()

    restored = quantised(tokens).dequantise()

    assert torch.equal(restored.registers[0], tokens.registers[0])
    assert torch.equal(restored.cls_token[1], tokens.cls_token[1])


def test_channels_of_zeros_have_the_scale_one() -> None:
    zeros = Tokens.from_patches(torch.zeros(1, 4, 8), grid=(2, 2), patch_size=16)

    assert torch.equal(channel_rms([zeros]), torch.ones(1, 8))


def test_tokens_of_zeros_become_zeros() -> None:
    values, scale = quantise(torch.zeros(1, 4, 8), torch.ones(8))

    assert not values.any()
    assert not scale.any()


def test_the_mean_of_int8_is_that_of_the_dequantised_tokens() -> None:
    packed = quantised(outlier_tokens())

    pooled = packed.pool(dtype=torch.float64)

    plain = packed.dequantise(torch.float64)
    for layer, patches in zip(pooled, plain.patches, strict=True):
        torch.testing.assert_close(layer, patches.mean(1), rtol=1e-12, atol=1e-12)


def test_the_weighted_sum_of_int8_is_that_of_the_dequantised_tokens() -> None:
    packed = quantised(outlier_tokens())
    generator = torch.Generator().manual_seed(0)
    gate = torch.rand(2, 24, generator=generator, dtype=torch.float64)

    pooled = packed.pool(gate, torch.float64)

    plain = packed.dequantise(torch.float64)
    for layer, patches in zip(pooled, plain.patches, strict=True):
        expected = torch.einsum("bn,bnc->bc", gate, patches)
        torch.testing.assert_close(layer, expected, rtol=1e-12, atol=1e-12)


def test_int8_is_pooled_to_float32() -> None:
    assert quantised(outlier_tokens()).pool()[0].dtype == torch.float32


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


def test_an_int8_store(images: Path, int8: FeatureStore, two_layers: Backbone) -> None:
    expected = two_layers(views_of(images / "b.png", two_layers))[0]

    stored = int8["b", 0]

    packed = int8.quantised(["b"], 0)
    for layer, (x, y) in enumerate(zip(stored.patches, expected.patches, strict=True)):
        bound = 0.501 * packed.scale[layer][..., None] * packed.channel_scale[layer]
        assert ((x - y).abs() <= bound).all()
    assert torch.equal(stored.cls_token[0], expected.cls_token[0])


def test_shares_of_an_int8_store_are_the_store_in_any_order(
    images: Path, int8: FeatureStore, two_layers: Backbone, tmp_path: Path
) -> None:
    shared = make(tmp_path / "shared", two_layers, dtype="int8")

    shared.extract(images, shard=(1, 2))
    shared.extract(images, shard=(0, 2))

    assert same(int8, shared)


@pytest.fixture(params=["fp16", "int8"])
def stored(
    request: pytest.FixtureRequest, filled: FeatureStore, int8: FeatureStore
) -> FeatureStore:
    """The store of each dtype."""
    return int8 if request.param == "int8" else filled


def test_in_memory_a_store_gives_the_same_batches(stored: FeatureStore) -> None:
    kept = MemoryStore(stored)

    batch = kept.batch(["c", "a"], [3, 1])

    expected = stored.batch(["c", "a"], [3, 1])
    assert kept.ids == stored.ids
    assert kit.same(batch, expected)
    assert batch.layers == expected.layers


def test_in_memory_an_int8_store_gives_the_same_int8_tokens(int8: FeatureStore) -> None:
    packed = MemoryStore(int8).quantised(["a"])

    expected = int8.quantised(["a"])
    assert torch.equal(packed.q[0], expected.q[0])
    assert torch.equal(packed.pool()[0], expected.pool()[0])


def drawn_views(data: StoreDataset, epochs: int) -> list[list[int]]:
    """The views of all images, by epoch."""
    views = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        views.append([data.view_of(i) for i in range(len(data))])
    return views


def test_a_dataset_draws_all_views(filled: FeatureStore) -> None:
    data = StoreDataset(filled, views="random", seed=3)

    drawn = drawn_views(data, epochs=20)

    assert {view for views in drawn for view in views} == {0, 1, 2, 3}


def test_a_dataset_draws_the_views_of_an_epoch_again(filled: FeatureStore) -> None:
    data = StoreDataset(filled, views="random", seed=3)

    drawn = drawn_views(data, epochs=20)

    assert drawn_views(data, epochs=20) == drawn


def test_another_seed_draws_other_views(filled: FeatureStore) -> None:
    data = StoreDataset(filled, views="random", seed=3)
    other = StoreDataset(filled, views="random", seed=4)

    assert drawn_views(data, epochs=20) != drawn_views(other, epochs=20)


def test_a_batch_of_a_dataset_has_the_views_that_it_draws(filled: FeatureStore) -> None:
    data = StoreDataset(filled, views="random", seed=3)

    tokens, numbers = data.__getitems__([2, 0])

    assert numbers.tolist() == [2, 0]
    expected = filled.batch(["c", "a"], [data.view_of(2), data.view_of(0)])
    assert torch.equal(tokens.sequence[0], expected.sequence[0])


def test_a_dataset_of_views_has_each_image_once_per_view(filled: FeatureStore) -> None:
    data = StoreDataset(filled, ["b"], views=[0, 3])

    entries = [(data.id_of(i), data.view_of(i)) for i in range(len(data))]

    assert entries == [("b", 0), ("b", 3)]


def test_the_last_entry_of_a_dataset_may_be_counted_from_its_end(filled: FeatureStore) -> None:
    data = StoreDataset(filled, ["b"], views=[0, 3])

    tokens, _ = data[-1]

    assert torch.equal(tokens.sequence[0], filled["b", 3].sequence[0])


def test_a_dataset_ends_after_its_last_entry(filled: FeatureStore) -> None:
    data = StoreDataset(filled, views="random", seed=3)

    with pytest.raises(IndexError):
        data[3]


def run_program(folder: Path, program: str, *arguments: object) -> None:
    """Run it in a process of its own: a fork of one in which earlier tests left threads may hang or crash."""
    path = folder / "program.py"
    path.write_text(program)

    done = subprocess.run(
        [sys.executable, path, *map(str, arguments)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


WORKERS_READ = """
import sys
import torch
from dinoneck import FeatureStore
from dinoneck.store import StoreDataset

if __name__ == "__main__":
    store = FeatureStore.open(sys.argv[1])
    data = StoreDataset(store, views=[0, 1, 2, 3])
    loader = data.loader(5, num_workers=2, multiprocessing_context=sys.argv[2], timeout=50)
    read = {}
    for tokens, numbers in loader:
        for row, number in enumerate(numbers.tolist()):
            read[number] = tokens.sequence[1][row]
    three_images_in_four_views = list(range(12))
    assert sorted(read) == three_images_in_four_views, sorted(read)
    for number, layer in read.items():
        expected = store[data.id_of(number), data.view_of(number)].sequence[1][0]
        assert torch.equal(layer, expected), number
"""


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same(filled: FeatureStore, tmp_path: Path, context: str) -> None:
    run_program(tmp_path, WORKERS_READ, filled.path, context)


@pytest.fixture
def read_only(images: Path, two_layers: Backbone, tmp_path: Path) -> Iterator[Path]:
    """The folder of a store in which nothing may be written; root may write anywhere."""
    store = make(tmp_path / "s", two_layers)
    store.extract(images)
    folders = [tmp_path / "s", tmp_path / "s" / "data"]
    for folder in folders:
        folder.chmod(0o555)
    yield tmp_path / "s"
    for folder in folders:
        folder.chmod(0o755)


def test_a_read_only_store_opens(read_only: Path, two_layers: Backbone) -> None:
    assert make(read_only, two_layers).ids == ("a", "b", "c")


def test_a_complete_read_only_store_has_nothing_to_extract(
    read_only: Path, images: Path, two_layers: Backbone
) -> None:
    assert make(read_only, two_layers).extract(images).present == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_more_images_for_a_read_only_store_are_refused(
    read_only: Path, two_layers: Backbone, tmp_path: Path
) -> None:
    more = write_images(tmp_path / "more", ["d.png"])

    with pytest.raises(StoreError, match="cannot be written"):
        make(read_only, two_layers).extract(more)


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


@pytest.fixture
def opened_by_name(filled: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """The store, opened by its name in the current folder, which is another one now."""
    folder = Path(filled.path)
    monkeypatch.chdir(folder.parent)
    store = FeatureStore.open(folder.name)
    monkeypatch.chdir("/")
    return store


def test_another_current_folder_later_is_no_other_store(
    opened_by_name: FeatureStore, filled: FeatureStore
) -> None:
    assert opened_by_name.path == Path(filled.path).name
    assert same(opened_by_name, filled)


def test_a_pickled_store_is_found_from_another_current_folder(
    opened_by_name: FeatureStore, filled: FeatureStore
) -> None:
    assert same(pickle.loads(pickle.dumps(opened_by_name)), filled)


@pytest.fixture
def remote(filled: FeatureStore) -> FeatureStore:
    """The store, read through fsspec as one that lies elsewhere."""
    return FeatureStore.open(f"local://{filled.path}", check="always")


def test_a_remote_store_lists_its_ids(remote: FeatureStore, filled: FeatureStore) -> None:
    assert remote.ids == filled.ids


def test_a_remote_store_gives_the_same_tokens(remote: FeatureStore, filled: FeatureStore) -> None:
    batch = remote.batch(["c", "a"], [1, 3])

    assert torch.equal(batch.sequence[1], filled.batch(["c", "a"], [1, 3]).sequence[1])


def test_remote_stores_fetch_only_what_is_asked_for(
    remote: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.ids  # noqa: B018 - the index is fetched before
    fetched: list[int] = []
    file_system = fsspec.get_filesystem_class("local")
    cat_file = file_system.cat_file

    def counted(self: object, *arguments: object, **options: object) -> bytes:
        content: bytes = cat_file(self, *arguments, **options)
        fetched.append(len(content))
        return content

    monkeypatch.setattr(file_system, "cat_file", counted)

    remote.batch(["c", "a"], [1, 3])

    # of each image one view: 2 layers x 9 tokens x 64 channels of 2 bytes
    assert fetched == [2 * 9 * 64 * 2] * 2


def test_a_remote_store_is_pickled(remote: FeatureStore, filled: FeatureStore) -> None:
    assert pickle.loads(pickle.dumps(remote)).ids == filled.ids


@pytest.fixture(scope="module")
def one_layer(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store of the last layer."""
    store = make(tmp_path_factory.mktemp("one layer") / "s", load_backbone("dinoneck_tiny"))
    store.extract(images)
    return store


@pytest.fixture
def npz(one_layer: FeatureStore, tmp_path: Path) -> Path:
    """The tokens of ``one_layer`` in the older layout: a file per image, with an array per view."""
    folder = tmp_path / "npz"
    folder.mkdir()
    for image_id in one_layer.ids:
        tokens = one_layer.batch([image_id] * 4, range(4))
        arrays = {}
        for view in range(4):
            arrays[f"patches_{view}"] = tokens.patches[0][view].numpy()
            arrays[f"cls_{view}"] = tokens.cls_token[0][view].numpy()
        np.savez(folder / f"{image_id}.npz", **arrays)
    return folder


def from_npz(npz: Path) -> FeatureStore:
    """Convert the folder of ``npz``: images of 2 x 3 patches, in four flips."""
    return FeatureStore.from_npz(
        npz, npz.parent / "converted", grid=(2, 3), patch_size=16, views="flips4"
    )


def states_of_shards(store: FeatureStore) -> dict[Path, int]:
    """Shard -> when it was written."""
    files = sorted(Path(store.path, "data").iterdir())
    return {file: file.stat().st_mtime_ns for file in files}


def test_a_folder_of_npz_files_becomes_a_store(npz: Path, one_layer: FeatureStore) -> None:
    store = from_npz(npz)

    assert store.ids == one_layer.ids
    assert store.views == one_layer.views
    for view in range(4):
        assert torch.equal(store["c", view].patches[0], one_layer["c", view].patches[0])
        assert torch.equal(store["c", view].cls_token[0], one_layer["c", view].cls_token[0])


def test_npz_files_without_cls_tokens_become_a_store_of_patches(
    one_layer: FeatureStore, tmp_path: Path
) -> None:
    patches = one_layer["a"].patches[0]
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", patches_0=patches[0].numpy())

    store = FeatureStore.from_npz(tmp_path / "npz", tmp_path / "s", grid=(2, 3), patch_size=16)

    tokens = store["a"]
    assert tokens.num_cls == tokens.num_registers == 0
    assert torch.equal(tokens.patches[0], patches)
    assert store.verify() == []
    assert "layers=" not in repr(store)  # the files do not state them


def test_npz_files_that_were_converted_are_not_converted_again(
    npz: Path, one_layer: FeatureStore
) -> None:
    before = states_of_shards(from_npz(npz))

    again = from_npz(npz)

    assert before
    assert states_of_shards(again) == before
    assert again.ids == one_layer.ids


def test_a_folder_of_pt_files_becomes_a_store(one_layer: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "pt").mkdir()
    for image_id in one_layer.ids:
        maps = one_layer[image_id].maps()[0][0]
        torch.save(maps.half().contiguous(), tmp_path / "pt" / f"{image_id}.pt")

    store = FeatureStore.from_pt(tmp_path / "pt", tmp_path / "back", patch_size=16)

    assert torch.equal(store["b"].patches[0], one_layer["b"].patches[0])
    assert store["b"].num_prefix_tokens == 0


WORKERS_READ_EPOCHS = """
import sys
import torch
from dinoneck import FeatureStore
from dinoneck.store import StoreDataset

store = FeatureStore.open(sys.argv[1])
data = StoreDataset(store, views="random", seed=3)
loader = data.loader(
    3, num_workers=1, persistent_workers=True, multiprocessing_context="fork", timeout=50
)
layers = []
drawn = []
for epoch in range(3):
    data.set_epoch(epoch)
    [(tokens, numbers)] = loader
    layers.append(tokens.sequence[0])
    drawn.append([data.view_of(number) for number in numbers.tolist()])
assert drawn[0] != drawn[1], drawn
for layer, views in zip(layers, drawn, strict=True):
    assert torch.equal(layer, store.batch(["a", "b", "c"], views).sequence[0]), views
"""


@pytest.mark.slow
def test_workers_that_are_running_see_the_next_epoch(filled: FeatureStore, tmp_path: Path) -> None:
    """They live on between epochs, and draw its views."""
    run_program(tmp_path, WORKERS_READ_EPOCHS, filled.path)


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


def test_the_scale_of_an_int8_store_is_that_of_its_first_images(
    images: Path, two_layers: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SCALE_IMAGES", 1)
    store = make(tmp_path / "s", two_layers, dtype="int8", views="none")

    store.extract(images)

    image = two_layers.preprocess.changed(size=SIZE)(images / "a.png")
    expected = channel_rms([two_layers(image)])
    for layer, scale in enumerate(store.quantised(["c"]).channel_scale):
        torch.testing.assert_close(scale, expected[layer])


def test_a_store_is_made_where_the_file_system_has_no_hard_links(
    images: Path, two_layers: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    make(tmp_path / "s", two_layers).extract(images)

    assert FeatureStore.open(tmp_path / "s").ids == ("a", "b", "c")


# what a training asks of a store: one hash of its tokens, and batches as they are stored


def test_the_digest_of_a_store_in_memory_is_that_of_the_store(stored: FeatureStore) -> None:
    kept = MemoryStore(stored, ["c", "a"])

    assert kept.digest(["a", "c"]) == stored.digest(["a", "c"])


def test_another_extraction_of_the_same_images_has_the_same_digest(
    filled: FeatureStore, continued: FeatureStore
) -> None:
    assert continued.digest(["a", "b", "c"]) == filled.digest(["a", "b", "c"])


def test_other_images_have_another_digest(
    filled: FeatureStore, two_layers: Backbone, tmp_path: Path
) -> None:
    other_images = write_images(tmp_path / "p", NAMES, seed=9)
    other = make(tmp_path / "s", two_layers)
    other.extract(other_images)

    assert other.digest(["a", "b", "c"]) != filled.digest(["a", "b", "c"])


def test_other_views_have_another_digest(
    filled: FeatureStore, images: Path, two_layers: Backbone, tmp_path: Path
) -> None:
    other = make(tmp_path / "s", two_layers, views="none")
    other.extract(images)

    assert other.digest(["a"]) != filled.digest(["a"])


def test_the_digest_of_fewer_images_is_another_one(filled: FeatureStore) -> None:
    assert filled.digest(["a", "b"]) != filled.digest(["a", "b", "c"])


def test_the_digest_of_an_id_that_is_not_stored_is_refused(filled: FeatureStore) -> None:
    with pytest.raises(DataError, match="'d' is not among"):
        filled.digest(["a", "d"])


@pytest.mark.parametrize("is_in_memory", [False, True], ids=["on disk", "in memory"])
def test_tensors_as_they_are_stored_become_the_batch(
    stored: FeatureStore, is_in_memory: bool
) -> None:
    reader = MemoryStore(stored) if is_in_memory else stored

    tensors, make_tokens = reader.stored(["c", "a"], [3, 1])

    tokens = make_tokens(tensors)
    assert kit.same(tokens, stored.batch(["c", "a"], [3, 1]))


def test_int8_tokens_keep_their_dtypes_on_another_device() -> None:
    packed = quantised(outlier_tokens())

    moved = packed.to("meta")

    for before, after in ((packed.q, moved.q), (packed.scale, moved.scale)):
        for layer, moved_layer in zip(before, after, strict=True):
            assert moved_layer.device.type == "meta"
            assert moved_layer.dtype == layer.dtype
            assert moved_layer.shape == layer.shape


def test_no_int8_tokens_are_pooled_to_none() -> None:
    packed = quantised(outlier_tokens())
    none = replace(
        packed,
        q=tuple(layer[:0] for layer in packed.q),
        scale=tuple(layer[:0] for layer in packed.scale),
        prefix=tuple(layer[:0] for layer in packed.prefix),
    )

    assert none.pool()[0].shape == (0, 32)


def test_a_dataset_of_one_view_has_each_image_once(filled: FeatureStore) -> None:
    data = StoreDataset(filled, views=2)

    entries = [(data.id_of(i), data.view_of(i)) for i in range(len(data))]

    assert entries == [("a", 2), ("b", 2), ("c", 2)]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        pytest.param(
            {},
            "0 images x 4 views, fp16, backbone='dinoneck_tiny', layers=(0, 5), size=(32, 48)",
            id="a size",
        ),
        pytest.param(
            {"image_size": None, "views": "none", "dtype": "int8"},
            "0 images x 1 view, int8, backbone='dinoneck_tiny', layers=(0, 5)",
            id="no size",
        ),
    ],
)
def test_a_store_shows_what_it_holds(
    two_layers: Backbone, tmp_path: Path, options: dict[str, object], facts: str
) -> None:
    store = make(tmp_path / "s", two_layers, **options)

    assert repr(store) == f"FeatureStore('{tmp_path / 's'}': {facts})"


def test_a_store_in_memory_shows_what_it_holds(filled: FeatureStore) -> None:
    kept = MemoryStore(filled, ["b"])

    assert repr(kept).startswith("MemoryStore(1 image x 4 views, fp16, backbone='dinoneck_tiny'")
