"""wrap_backbone gives the tokens of the model's own forward, also of models that people have changed, or refuses."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from tests.unit.backbones.official_objects import Dinov2Like, Dinov3Like
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dinoneck import Backbone, BackboneError, wrap_backbone

Change = Callable[[Any], object]


def vit(**setting: Any) -> VisionTransformer:
    torch.manual_seed(0)
    setting = {
        "img_size": 24,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 4,
        "num_heads": 2,
        "num_classes": 3,
        "dynamic_img_size": True,
        **setting,
    }
    return VisionTransformer(**setting)


def eva(**setting: Any) -> Eva:
    torch.manual_seed(0)
    setting = {
        "img_size": 48,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "num_classes": 0,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "num_reg_tokens": 3,
        "use_abs_pos_emb": False,
        "use_fc_norm": False,
        "dynamic_img_size": True,
        **setting,
    }
    return Eva(**setting)


def dinov2(kind: type[nn.Module] = transformers.Dinov2Model, **setting: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=42, **setting
    )
    return kind(config)


def dinov3(kind: type[nn.Module] = transformers.DINOv3ViTModel, **setting: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_register_tokens=2,
        image_size=64,
        **setting,
    )
    return kind(config)


def images_for(backbone: Backbone, *, rows: int = 5, cols: int = 2) -> Tensor:
    height, width = backbone.adapter.patch_size
    size = backbone.adapter.fixed_size or (rows * height, cols * width)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, backbone.adapter.in_chans, *size, generator=generator)


def own_sequence(model: Any, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        if hasattr(model, "forward_features"):
            return model.forward_features(images)
        return model(images).last_hidden_state


# --- what is kept


def replace_norm(model: Any) -> None:
    model.norm = nn.RMSNorm(model.embed_dim)


def drop_blocks(model: Any) -> None:
    model.blocks = model.blocks[:2]


def double_a_block(model: Any) -> None:
    model.blocks[1].register_forward_hook(lambda block, inputs, output: output * 2)


def negate_positions(model: Any) -> None:
    make = model._pos_embed
    model._pos_embed = lambda x: -make(x)


def override_a_block(model: Any) -> None:
    block = model.blocks[0]
    block.forward = types.MethodType(lambda self, x, **_: x + self.mlp(self.norm1(x)), block)


def replace_head(model: Any) -> None:
    model.head = None


def observe(model: Any) -> None:
    model.blocks.register_forward_hook(lambda *_: None)


def scale_logits(model: Any) -> None:
    model.register_forward_hook(lambda model, inputs, logits: logits * 3)


def compile_blocks(model: Any) -> None:
    for block in model.blocks:
        block.compile(backend="eager")


KEPT: list[tuple[str, Callable[[], Any], Change]] = [
    ("a norm of another class", vit, replace_norm),
    ("dropped blocks", vit, drop_blocks),
    ("a hook on a block", vit, double_a_block),
    ("other positions", vit, negate_positions),
    ("a block's forward", vit, override_a_block),
    ("no head", vit, replace_head),
    ("a hook that observes", vit, observe),
    ("a hook on the logits", vit, scale_logits),
    ("compiled blocks", vit, compile_blocks),
    ("training mode", lambda: vit(drop_path_rate=0.5, pos_drop_rate=0.5), nn.Module.train),
    ("patch dropout", lambda: vit(patch_drop_rate=0.5), nn.Module.train),
    ("a size that is not square", lambda: vit(img_size=(16, 56)), id),
    ("one size", lambda: vit(dynamic_img_size=False, img_size=(40, 64)), id),
    ("one size and a hook", lambda: vit(dynamic_img_size=False, img_size=56), double_a_block),
    ("padding", lambda: vit(dynamic_img_pad=True), id),
    ("registers, no CLS", lambda: vit(class_token=False, global_pool="", reg_tokens=5), id),
    ("five channels", lambda: vit(in_chans=5), id),
    ("rotary positions", eva, id),
    ("rotary positions, one size", lambda: eva(dynamic_img_size=False), id),
    ("rotary positions of its own", eva, lambda model: setattr(model, "rope", Turned(model.rope))),
    ("transformers, eager attention", lambda: dinov2(attn_implementation="eager"), id),
    ("transformers, SDPA", lambda: dinov3(attn_implementation="sdpa"), id),
    ("transformers, dropped blocks", dinov2, lambda model: model.encoder.layer.pop(3)),
    ("transformers, no norm", dinov3, lambda model: setattr(model, "norm", nn.Identity())),
]


class Turned(nn.Module):
    """Rotary positions of a grid turned by half."""

    def __init__(self, rope: Any) -> None:
        super().__init__()
        self.rope = rope

    def get_embed(self, shape: Any = None) -> Tensor:
        return self.rope.get_embed(shape).flip(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "change"), [(make, change) for _, make, change in KEPT], ids=[row[0] for row in KEPT]
)
def test_tokens_of_changed_models_are_their_own(make: Callable[[], Any], change: Change) -> None:
    model = make()
    change(model)
    norm = not isinstance(getattr(model, "norm", None), nn.Identity) or isinstance(
        model, transformers.DINOv3ViTModel
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = wrap_backbone(model, norm=norm)
    images = images_for(backbone)
    tokens = backbone(images)
    assert torch.equal(tokens.sequence[0], own_sequence(model, images))


# --- what is refused


def hook_on_the_list(model: Any) -> None:
    model.blocks.register_forward_hook(lambda blocks, inputs, output: output * 2)


def hook_before_the_model(model: Any) -> None:
    model.register_forward_pre_hook(lambda model, inputs: (inputs[0] / 2,))


def normalising_forward(model: Any) -> None:
    def forward(self: Any, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features((images - 0.5) / 0.5))

    model.forward = types.MethodType(forward, model)


def scaled_features(model: Any) -> None:
    method = model.forward_features
    model.forward_features = lambda images, **options: method(images, **options) * 1.5


def every_second_block(model: Any) -> None:
    def forward_features(self: Any, images: Tensor, **_: Any) -> Tensor:
        x = self._pos_embed(self.patch_embed(images))
        for block in self.blocks[::2]:
            x = block(x)
        return self.norm(x)

    model.forward_features = types.MethodType(forward_features, model)


def tokens_between_blocks(model: Any) -> None:
    def forward_features(self: Any, images: Tensor, **_: Any) -> Tensor:
        x = self._pos_embed(self.patch_embed(images))
        for block in self.blocks:
            x = block(x) + 0.1
        return self.norm(x)

    model.forward_features = types.MethodType(forward_features, model)


def size_set_by_the_forward(model: Any) -> None:
    method = model.forward_features

    def forward_features(self: Any, images: Tensor, **_: Any) -> Tensor:
        self.blocks[0].rows = images.shape[-2] // 8
        return method(images)

    model.forward_features = types.MethodType(forward_features, model)
    block = model.blocks[0]
    run = block.forward
    block.forward = types.MethodType(lambda self, x: run(x) * self.rows, block)


def overlapping_patches(model: Any) -> None:
    model.patch_embed.proj.stride = (4, 4)


def more_registers(model: Any) -> None:
    model.embeddings.register_tokens = nn.Parameter(torch.zeros(1, 7, 32))


def merged_tokens(model: Any) -> None:
    model.blocks[2].register_forward_hook(lambda block, inputs, output: output[:, :-1])


def without_a_part(model: Any) -> None:
    model.pos_drop = None


def return_two_sequences(model: Any) -> None:
    model.flat[1].register_forward_hook(lambda block, inputs, output: [*output, *output])


def return_a_dict(model: Any) -> None:
    model.blocks[2].register_forward_hook(lambda block, inputs, output: {"tokens": output})
    model.forward_features = lambda images, **options: {}


class NormWithState(nn.LayerNorm):
    """A norm whose state is more than tensors."""

    def get_extra_state(self) -> Any:
        return {"scale": 3}


def give_a_state_of_its_own(model: Any) -> None:
    model.norm = NormWithState(model.embed_dim)


def features_in_a_dict(model: Any) -> None:
    method = model.forward_features
    model.forward_features = lambda images, **options: {"x": method(images, **options)}


def forward_without_fields(model: Any) -> None:
    model.forward = types.MethodType(lambda self, images: self.embeddings(images), model)


def overflow(model: Any) -> None:
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias.fill_(100.0)
        model.blocks[1].mlp.fc2.weight.fill_(1e4)
    model.half()


def nan_in_a_weight(model: Any) -> None:
    with torch.no_grad():
        model.blocks[2].norm1.weight[3] = torch.nan


def nan_in_the_forward(model: Any) -> None:
    method = model.forward_features
    model.forward_features = lambda images, **options: method(images, **options) * torch.nan


REFUSED: list[tuple[str, Callable[[], Any], Change, tuple[str, ...]]] = [
    ("a hook on the list of blocks", vit, hook_on_the_list, ("norm gets", "hook")),
    ("a hook before the model", vit, hook_before_the_model, ("block 0", "hook")),
    ("a forward that normalises", vit, normalising_forward, ("block 0", "forward")),
    ("features times 1.5", vit, scaled_features, ("returns", "0.33")),
    ("blocks left out", vit, every_second_block, ("[0, 2]", "[0, 1, 2, 3]")),
    ("tokens between blocks", vit, tokens_between_blocks, ("block 1", "forward")),
    (
        "a size set by the forward",
        vit,
        size_set_by_the_forward,
        ("block 0 fails", "'rows'", "one by one"),
    ),
    ("overlapping patches", vit, overlapping_patches, ("(1, 16, 24)", "(1, 7, 24)", "2x3")),
    ("more registers than stated", dinov3, more_registers, ("(1, 14, 32)", "3 prefix tokens")),
    ("merged tokens", vit, merged_tokens, ("block 2", "(1, 6, 24)")),
    ("a model that does not run", vit, without_a_part, ("16x24", "on cpu in float32", "by itself")),
    ("a block that returns two", Dinov3Like, return_two_sequences, ("block 1", "list of 2")),
    ("a block that returns a dict", vit, return_a_dict, ("block 2", "dict")),
    ("a state that is no tensor", vit, give_a_state_of_its_own, ("norm._extra_state", "buffers")),
    ("overflow", vit, overflow, ("block 1", "float16", "bfloat16", "of finite weights")),
    ("NaN in a weight", vit, nan_in_a_weight, ("block 2", "NaN", "blocks.2.norm1.weight", "load")),
    ("NaN in the forward", vit, nan_in_the_forward, ("its own forward gives NaN", "block 3")),
    ("features in a dict", vit, features_in_a_dict, ("forward_features", "dict")),
    ("an output without tokens", dinov2, forward_without_fields, ("Tensor", "last_hidden_state")),
    (
        "a size of no whole patches",
        lambda: vit(dynamic_img_size=False, dynamic_img_pad=True, img_size=30),
        id,
        ("30x30", "8x8"),
    ),
]


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [row[1:] for row in REFUSED],
    ids=[row[0] for row in REFUSED],
)
@pytest.mark.filterwarnings("ignore:calling")
def test_changes_that_the_parts_do_not_have_are_refused(
    make: Callable[[], Any], change: Change, named: tuple[str, ...]
) -> None:
    model = make()
    change(model)
    with pytest.raises(BackboneError) as caught:
        wrap_backbone(model)
    for word in named:
        assert word in str(caught.value)


def test_a_refused_model_is_left_as_it_was() -> None:
    model = vit().train()
    hook_on_the_list(model)
    with pytest.raises(BackboneError):
        wrap_backbone(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "forward_features" not in vars(model)


def test_a_difference_is_seen_in_a_model_of_one_size() -> None:
    model = vit(dynamic_img_size=False, img_size=64)
    hook_on_the_list(model)
    with pytest.raises(BackboneError, match="norm gets"):
        wrap_backbone(model)


def test_a_forward_that_takes_no_images_warns_and_gives_the_tokens_of_its_method() -> None:
    model = vit()
    model.forward = types.MethodType(lambda self, *, batch: batch["image"], model)
    with pytest.warns(UserWarning, match="forward_features"):
        backbone = wrap_backbone(model)
    images = images_for(backbone)
    assert torch.equal(backbone(images).sequence[0], own_sequence(model, images))


def test_the_random_numbers_go_on_as_without_wrapping() -> None:
    model = vit()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    wrap_backbone(model)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_on_the_meta_device_is_wrapped() -> None:
    with torch.device("meta"):
        model = vit()
    assert wrap_backbone(model).depth == 4


def test_quantised_layers_are_refused_by_name() -> None:
    model = vit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(BackboneError, match="before it is quantised"):
        wrap_backbone(quantised)


def test_hybrids_are_refused_by_name() -> None:
    model = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0)
    with pytest.raises(BackboneError, match="hybrid"):
        wrap_backbone(model)


def test_the_official_recipe_is_refused_for_positions_that_are_not_square() -> None:
    model = vit(img_size=(16, 64))  # 2 x 8: as many as 4 x 4
    with pytest.raises(BackboneError, match="2 rows x 8 cols"):
        wrap_backbone(model, pos_embed="official")


def test_the_official_recipe_is_refused_for_positions_of_the_models_own() -> None:
    model = vit()
    negate_positions(model)
    with pytest.raises(BackboneError, match="pos_embed='native'"):
        wrap_backbone(model, pos_embed="official")


def test_a_block_replaced_by_an_identity_keeps_its_number() -> None:
    model = Dinov2Like(depth=5)
    model.blocks[2] = nn.Identity()
    backbone = wrap_backbone(model, layers=[1, 2])
    tokens = backbone(torch.randn(1, 3, 8, 12))
    assert backbone.depth == 5
    assert torch.equal(tokens.sequence[0], tokens.sequence[1])


# --- transformers' Backbone forms

FORMS = [
    (dinov2, transformers.Dinov2Backbone),
    (dinov3, transformers.DINOv3ViTBackbone),
]


@pytest.mark.parametrize(("make", "kind"), FORMS, ids=["dinov2", "dinov3"])
@pytest.mark.parametrize("indices", [[2, 4], [1, -2], [3]])
def test_out_indices_are_used(make: Any, kind: Any, indices: list[int]) -> None:
    model = make(kind, out_indices=indices)
    backbone = wrap_backbone(model)
    images = images_for(backbone)
    maps = backbone(images).maps()
    model.eval()
    with torch.no_grad():
        own = model(images).feature_maps
    assert backbone.layers == tuple(index % 5 - 1 for index in indices)
    assert len(maps) == len(own)
    assert all(torch.equal(mine, other) for mine, other in zip(maps, own, strict=True))


def test_layers_that_are_asked_for_win_over_out_indices() -> None:
    model = dinov2(transformers.Dinov2Backbone, out_indices=[2, 4])
    assert wrap_backbone(model, layers=[0]).layers == (0,)


def test_stage_0_is_refused() -> None:
    model = dinov2(transformers.Dinov2Backbone, out_indices=[0, 4])
    with pytest.raises(BackboneError, match="pass layers="):
        wrap_backbone(model)


def test_maps_without_the_norm_need_norm_false() -> None:
    model = dinov2(transformers.Dinov2Backbone, out_indices=[2, 3], apply_layernorm=False)
    with pytest.raises(BackboneError, match="pass norm=False"):
        wrap_backbone(model)
    backbone = wrap_backbone(model, norm=False)
    images = images_for(backbone)
    with torch.no_grad():
        own = model(images).feature_maps
    assert torch.equal(backbone(images).maps()[1], own[1])


def test_maps_with_and_without_the_norm_need_layers() -> None:
    model = dinov3(transformers.DINOv3ViTBackbone, out_indices=[2, 4], apply_layernorm=False)
    for norm in (True, False):
        with pytest.raises(BackboneError) as caught:
            wrap_backbone(model, norm=norm)
        assert "[1] without the final norm and [3] with it" in str(caught.value)
        assert "pass layers=" in str(caught.value)
    assert wrap_backbone(model, layers=[1, 3], norm=False).layers == (1, 3)


# --- the repositories' conventions


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dinov3Like(registers=2),
        lambda: Dinov3Like(registers=3, untied=True),
        lambda: Dinov2Like(),
        lambda: Dinov2Like(registers=2, chunks=2),
    ],
    ids=["dinov3, lists", "dinov3, two norms", "dinov2", "dinov2, chunks"],
)
def test_tokens_of_the_repositories_objects_are_those_of_their_forward(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    images = torch.randn(2, 3, 8, 12)

    tokens = wrap_backbone(model)(images)

    features = model.forward_features(images)
    assert torch.equal(tokens.cls_token[0], features["x_norm_clstoken"])
    assert torch.equal(tokens.patches[0], features["x_norm_patchtokens"])


def test_a_change_around_blocks_that_are_called_with_lists_is_refused() -> None:
    class Changed(Dinov3Like):
        def forward_features(self, x: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
            return super().forward_features(x * 0.5)

    with pytest.raises(BackboneError, match="block 0"):
        wrap_backbone(Changed())


# --- models that do not run


class OnlyOnGpus(nn.Module):
    """Attention without a kernel for the CPU, as xformers' is."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        raise NotImplementedError("no CPU kernel")


def test_a_model_that_cannot_run_here_is_wrapped_with_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = vit(dtype=torch.bfloat16)
    for block in model.blocks:
        block.attn = OnlyOnGpus()

    with caplog.at_level("WARNING", logger="dinoneck"), pytest.warns(UserWarning, match="fails"):
        backbone = wrap_backbone(model)

    assert backbone.depth == 4
    assert "cannot run on cpu in bfloat16 (no CPU kernel)" in caplog.text
    assert "model.cuda(), and wrap it then" in caplog.text


def test_a_transformers_model_that_cannot_run_here_is_wrapped_with_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = dinov3()
    model.model.layer[0].attention = OnlyOnGpus()

    with caplog.at_level("WARNING", logger="dinoneck"):
        wrap_backbone(model)

    assert "DINOv3ViTModel cannot run on cpu in float32" in caplog.text


def test_positions_of_another_size_are_no_missing_kernel() -> None:
    model = vit()
    model.pos_embed = nn.Parameter(torch.zeros(1, 7, model.embed_dim))

    with pytest.raises(BackboneError, match="expected a model that runs by itself"):
        wrap_backbone(model)


def test_the_warning_of_a_call_that_fails_names_the_line_that_wraps() -> None:
    model = vit()
    model.forward = types.MethodType(lambda self, *, batch: batch["image"], model)
    with pytest.warns(UserWarning, match="calling VisionTransformer") as caught:
        wrap_backbone(model)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_forward_that_catches_every_exception_is_compared() -> None:
    model = vit()

    def forward(self: Any, images: Tensor) -> Tensor | None:
        try:
            return self.forward_features(images * 0.5)
        except Exception:
            return None

    model.forward = types.MethodType(forward, model)
    with pytest.raises(BackboneError, match="block 0"):
        wrap_backbone(model)


def test_what_a_forward_leaves_in_its_blocks_does_not_help_the_parts() -> None:
    model = vit(dynamic_img_size=False, img_size=32)
    size_set_by_the_forward(model)
    with pytest.raises(BackboneError, match="block 0 fails"):
        wrap_backbone(model)


# --- transformers' outputs


@pytest.mark.parametrize("make", [dinov2, dinov3])
def test_models_set_to_return_tuples_are_wrapped(make: Any) -> None:
    model = make()
    images = torch.randn(1, 3, 5 * model.config.patch_size, 2 * model.config.patch_size)
    expected = own_sequence(model, images)
    model.config.return_dict = False

    backbone = wrap_backbone(model)

    assert torch.equal(backbone(images).sequence[0], expected)
    assert model.config.return_dict is False


@pytest.mark.parametrize(("make", "kind"), FORMS, ids=["dinov2", "dinov3"])
def test_backbone_forms_set_to_return_tuples_are_wrapped(make: Any, kind: Any) -> None:
    model = make(kind, out_indices=[2, 4]).eval()
    images = torch.randn(1, 3, 5 * model.config.patch_size, 2 * model.config.patch_size)
    with torch.no_grad():
        expected = model(images).feature_maps
    model.config.return_dict = False

    backbone = wrap_backbone(model)

    assert torch.equal(backbone(images).maps()[0], expected[0])


def test_a_change_of_a_model_set_to_return_tuples_is_seen() -> None:
    model = dinov2()
    model.config.return_dict = False
    model.register_forward_pre_hook(lambda model, inputs: (inputs[0] * 2,))
    with pytest.raises(BackboneError, match="block 0"):
        wrap_backbone(model)


def test_a_forward_that_returns_a_tuple_is_compared() -> None:
    model = dinov2()
    run = model.forward

    def forward(self: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        output = run(images)
        return 2 * output.last_hidden_state, output.pooler_output

    model.forward = types.MethodType(forward, model)
    with pytest.raises(BackboneError, match="returns of block 3"):
        wrap_backbone(model)


# --- rounding


class RoundedLinear(nn.Linear):
    """A linear layer whose inputs are rounded to ten bits, as TF32 does it on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(ten_bits(x), ten_bits(self.weight), self.bias)


def ten_bits(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def round_as_tf32(model: Any) -> None:
    for module in list(model.modules()):
        if type(module) is nn.Linear:
            module.__class__ = RoundedLinear


def last_bit_between_blocks(model: Any) -> None:
    """Add what rounding may add before the first block."""

    def forward_features(self: Any, images: Tensor, **_: Any) -> Tensor:
        x = self._pos_embed(self.patch_embed(images)) * (1 + 3e-7)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    model.forward_features = types.MethodType(forward_features, model)


def test_rounding_before_a_block_does_not_grow_to_a_difference_behind_it() -> None:
    model = vit(depth=24, init_values=3.0)
    round_as_tf32(model)
    model.eval()
    images = torch.randn(1, 3, 16, 24)
    exact = model.forward_features(images)
    last_bit_between_blocks(model)
    changed = model.forward_features(images)
    assert (changed - exact).abs().mean() > 1e-5 * exact.abs().mean()  # more than rounding

    assert wrap_backbone(model).depth == 24
