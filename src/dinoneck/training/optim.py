"""What a recipe may add to AdamW: a schedule, a moving average, sharpness-aware minimisation, mixup and CutMix.

Mixup blends the tokens, CutMix the images of every sample with those of the sample before it in the
batch, by one share lambda ~ Beta(alpha, alpha) per batch; mixup can draw shares and partners per
sample. :func:`dinoneck.training.fit` blends their losses, for targets of any kind. The two functions
here blend targets instead, which is the same for a loss that is linear in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.grid import PatchSize, TokenGrid
from dinoneck.losses.masked import exact
from dinoneck.tokens import Tokens
from dinoneck.training.recipe import BelowOne, Positive, converted

TINY = 1e-12  # added to the norm of SAM's gradient, which may be 0
_Loss = TypeVar("_Loss")
# top, bottom, left and right, as shares of the image's sides
Box = tuple[float, float, float, float]


def cosine_with_warmup(optimizer: Optimizer, total_steps: int, warmup: float = 0.1) -> LambdaLR:
    """Return a schedule of the learning rate: a linear rise, then a half cosine to 0.

    The first ``warmup`` share of the steps, w of them, rises from lr / w to lr.

    Args:
        optimizer: its groups keep their own learning rates as the peak.
        total_steps: optimizer steps in the whole run; call ``step()`` after each.
        warmup: share of them, at least 0 and below 1.

    Raises:
        ConfigError: if ``total_steps`` or ``warmup`` is out of range.
    """
    converted("total_steps", total_steps, Annotated[int, Meta(ge=1)])
    converted("warmup", warmup, BelowOne)
    rising_steps = round(warmup * total_steps)
    falling_steps = max(1, total_steps - rising_steps)

    def factor(step: int) -> float:
        if step < rising_steps:
            return (step + 1) / rising_steps
        progress = min(1.0, (step - rising_steps) / falling_steps)
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


class EMA:
    """A moving average of the trained weights: ``average = d * average + (1 - d) * weights`` after every step.

    With ``warmup`` the decay of update t (counted from 0) is ``min(decay, (1 + t) / (10 + t))``.
    Without it the initial weights still make up half of the average after 231 steps at 0.997.
    Averages are kept in float32 (or wider), since bfloat16 cannot hold a change of 0.003. Buffers
    are copied, not averaged. Frozen parameters are not copied; what is unfrozen later joins with
    its weights at that time.

    Args:
        model: the module whose trainable parameters are averaged.
        decay: at least 0 and below 1.
        warmup: see above.

    Attributes:
        values: averaged parameters and copied buffers by their names in the model.
        updates: how many updates the average has seen.

    Raises:
        ConfigError: if the decay is out of range.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> average = EMA(model, decay=0.997)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> average.update(model)  # the first update has decay 0.1
        >>> torch.allclose(average.values["weight"], model.weight - 0.1)
        True
        >>> average.copy_to(model)  # for validation or the file

    Reference: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992);
    the decay's warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float = 0.997, warmup: bool = True) -> None:
        converted("decay", decay, BelowOne)
        self.decay = float(decay)
        self.warmup = bool(warmup)
        self.updates = 0
        self.values: dict[str, Tensor] = {}
        self._average_in(model, 1.0)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the model's present weights to the average; call it after every optimizer step."""
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self._average_in(model, 1.0 - decay)
        self.updates += 1

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin the average again with the model's present weights."""
        self._average_in(model, 1.0)
        self.updates = 0

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give a model of the same form the averaged weights, in its own dtype, and the buffers.

        Raises:
            ConfigError: if the model lacks one of the names, or a weight has another shape there;
                its weights are as before.
        """
        tensors = _named_tensors(model)
        _check_averaged(self.values, tensors, "the model")
        for name, value in self.values.items():
            tensors[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block ``model`` has the averaged weights; after it its own again, bit for bit."""
        averaged = [x for name, x in _named_tensors(model).items() if name in self.values]
        with restored(averaged):
            self.copy_to(model)
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, and averages and buffers by their names in the model."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of :meth:`state_dict` of the same model, on the device of the present averages.

        The state may have more names: those of parameters that were unfrozen before it was taken.

        Raises:
            ConfigError: if it is not such a state, or the average of another model.
        """
        if not {"updates", "values"} <= {*state}:
            raise ConfigError(
                f"the state of an average holds {', '.join(map(str, state)) or 'nothing'}; expected "
                "updates and values, as state_dict() returns them"
            )
        _check_averaged(self.values, state["values"], "the state")
        devices = [value.device for value in self.values.values()]
        device = devices[0] if devices else None
        self.values = {name: value.to(device, copy=True) for name, value in state["values"].items()}
        self.updates = state["updates"]

    def _average_in(self, model: nn.Module, share: float) -> None:
        """Give the weights of a model this share in the averages; copy its buffers."""
        for name, parameter in model.named_parameters():
            if name in self.values:
                average = self.values[name]
                average.lerp_(parameter.detach().to(average), share)
            elif parameter.requires_grad:
                self.values[name] = exact(parameter.detach()).clone()
        for name, buffer in model.named_buffers():
            self.values[name] = buffer.detach().clone()


def _check_averaged(
    averages: Mapping[str, Tensor], others: Mapping[str, Tensor], what: str
) -> None:
    """Check that another set of weights has the names and shapes of averages."""
    for name, value in averages.items():
        if name not in others:
            raise ConfigError(
                f"{what} has no {name!r}, which the average has; it belongs to another model"
            )
        if others[name].shape != value.shape:
            raise ConfigError(
                f"{what} has {name!r} of shape {tuple(others[name].shape)} and the average "
                f"{tuple(value.shape)}; it belongs to another model"
            )


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update(model.named_buffers())
    return tensors


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """After the block, also after an error, the tensors have their values from before it, bit for bit."""
    before = [(x, x.detach().clone()) for x in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for x, value in before:
                x.copy_(value)


def statistics_of_training(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass may change, such as the statistics of batch norm."""
    statistics: list[Tensor] = []
    for module in model.modules():
        if module.training:
            statistics += module.buffers(recurse=False)
    return statistics


def gpus_of(model: nn.Module) -> list[int]:
    """Return the numbers of the GPUs that hold the parameters of a model."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return [device.index for device in devices]


class SAM(Optimizer):
    """Sharpness-aware minimisation: step by the gradient at the worst point within a distance of ``rho``.

    The worst point is estimated as ``w + rho * g / (||g|| + 1e-12)`` with one norm over all
    trainable parameters of ``model``, taken in float32. Parameters that only the optimizer has
    (those of a loss) are not moved and step by the second gradient too. Weights are restored bit
    for bit; running statistics of norms count the first pass only; dropout draws the same masks in
    both passes.

    The groups are those of the base optimizer, the same lists: learning-rate schedules may hold
    either. In several processes DistributedDataParallel averages the gradients of both passes.

    Args:
        model: whose trainable parameters are moved.
        base_optimizer: takes the step; built for (at least) these parameters.
        rho: the distance.

    Raises:
        ConfigError: if rho is not above 0, or ``base_optimizer`` is no optimizer, or SAM itself.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = SAM(model, torch.optim.AdamW(model.parameters(), lr=1e-3), rho=0.05)
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (model(x) - y).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)

    Reference: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization"
    (ICLR 2021). Deviation: weights are restored from copies, not by subtraction.
    """

    def __init__(self, model: nn.Module, base_optimizer: Optimizer, rho: float = 0.05) -> None:
        converted("rho", rho, Positive)
        if not isinstance(base_optimizer, Optimizer) or isinstance(base_optimizer, SAM):
            raise ConfigError(
                f"base_optimizer is {type(base_optimizer).__name__}; expected another optimizer of "
                "torch, such as torch.optim.AdamW(model.parameters())"
            )
        super().__init__(base_optimizer.param_groups, base_optimizer.defaults)
        self.model = model
        self.base_optimizer = base_optimizer
        self.rho = rho
        self._share_state()

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss at the weights before it.

        Args:
            closure: zeroes the gradients, computes the loss, backpropagates and returns it. It is
                called twice.

        Raises:
            ConfigError: without a closure.
            DataError: if the first gradient is not finite; weights are as before.
        """
        if closure is None:
            raise ConfigError(
                "SAM.step() has no closure; pass a function that zeroes the gradients, computes the "
                "loss, backpropagates and returns it"
            )
        loss = self.gradient(closure)
        self.base_optimizer.step()
        return loss

    def gradient(self, closure: Callable[[], _Loss]) -> _Loss:
        """Leave the second gradient at the unchanged weights and return what the first pass returned; do not step.

        For loops that clip the gradient in between.

        Raises:
            DataError: if the first gradient is not finite.
        """
        # both passes draw the same random numbers
        with torch.random.fork_rng(devices=gpus_of(self.model)), torch.enable_grad():
            loss = closure()

        gradients: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                gradients.append((parameter, exact(parameter.grad)))
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in gradients])
        if not bool(norm.isfinite()):
            raise DataError(
                f"SAM's first gradient has norm {norm.item()}; weights are left as they are. Lower "
                "lr, check the targets, or compute the loss in float32"
            )

        moved_parameters = [parameter for parameter, _ in gradients]
        with restored([*moved_parameters, *statistics_of_training(self.model)]):
            with torch.no_grad():
                for parameter, gradient in gradients:
                    distance = (self.rho / (norm + TINY)).to(gradient)
                    parameter.copy_(parameter.to(gradient.dtype) + gradient * distance)
            with torch.enable_grad():
                closure()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`, which is the base optimizer's."""
        self.base_optimizer.load_state_dict(state_dict)
        self._share_state()

    def _share_state(self) -> None:
        """Take over the groups and the state of the base optimizer, the same objects."""
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state


def manifold_mixup(
    tokens: Tokens,
    targets: Mapping[str, Tensor],
    alpha: float,
    *,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tokens, dict[str, Tensor]]:
    """Blend the tokens (CLS and registers too) and the targets of every sample with those of the sample before it.

    Args:
        tokens: of floating point, batch first. They are not changed.
        targets: name -> floating-point values or one-hot classes, batch first; NaN = missing and
            stays so.
        alpha: lambda ~ Beta(alpha, alpha). 1 is uniform; below it most batches stay nearly
            themselves.
        per_sample: draw a lambda per sample, and its partner by a random permutation.
        generator: source of the random numbers; None = torch's own.

    Returns:
        The blended tokens and targets.

    Raises:
        ConfigError: if alpha is not positive and finite.
        ShapeError: if tokens or a target are not of floating point, or a target is of another
            number of samples.

    Examples:
        >>> tokens = Tokens.from_patches(torch.randn(2, 6, 8), grid=(2, 3), patch_size=16)
        >>> targets = {"mass": torch.tensor([[20.0], [100.0]]), "state": torch.eye(2)}
        >>> tokens, mixed = manifold_mixup(tokens, targets, 1.0)
        >>> torch.allclose(mixed["mass"][:, 0], mixed["state"] @ torch.tensor([20.0, 100.0]))
        True

    Reference: Verma et al. 2019, "Manifold Mixup". Deviation: without ``per_sample`` the partner of
    a sample is the one before it in the batch, not one of a random permutation; only the tokens are
    blended, no hidden layer of the head. As in their code, lambda is one for the batch, without
    ``per_sample``.
    """
    if not isinstance(tokens, Tokens):
        raise ShapeError(
            f"tokens are {type(tokens).__name__}; expected Tokens, such as Tokens.from_sequence "
            "makes"
        )
    for layer in tokens.sequence:
        if not layer.is_floating_point():
            raise ShapeError(
                f"the tokens are {layer.dtype}; expected floating point: tokens.to(dtype="
                "torch.float32)"
            )
    mixup = draw_mixup(len(tokens), alpha, per_sample=per_sample, generator=generator)
    return mixup.blend(tokens), _blend_targets(targets, mixup, len(tokens))


def cutmix(
    images: Tensor,
    targets: Mapping[str, Tensor],
    alpha: float,
    *,
    patch_size: PatchSize | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Paste a rectangle of the image before it into every image; targets of whole images follow by its area.

    The rectangle's sides are sqrt(1 - lambda) of the image's, its centre is uniform and it is
    clipped at the border. It is the same for all images of the batch.

    Args:
        images: (B, C, H, W) of floating point. They are not changed.
        targets: as for :func:`manifold_mixup`, of whole images: (B,) or (B, K).
        alpha: lambda ~ Beta(alpha, alpha), as for :func:`manifold_mixup`.
        patch_size: pixels per patch; the rectangle then holds whole patches.
        generator: source of the random numbers; None = torch's own.

    Returns:
        The images and the blended targets.

    Raises:
        ConfigError: if alpha is not positive and finite.
        GridError: if the patch does not divide the image.
        ShapeError: if images have another form, a target is a map, or as for ``manifold_mixup``.

    Examples:
        >>> images = torch.stack((torch.zeros(3, 32, 64), torch.ones(3, 32, 64)))
        >>> mixed, targets = cutmix(images, {"white": torch.tensor([[0.0], [1.0]])}, 1.0, patch_size=16)
        >>> torch.allclose(mixed.mean(dim=(1, 2, 3)), targets["white"][:, 0])
        True

    Reference: Yun et al. 2019, "CutMix". Deviations: the partner of an image is the one before it in
    the batch, not one of a random permutation; the rectangle may hold whole patches.
    """
    if not isinstance(images, Tensor):
        raise ShapeError(
            f"images are {type(images).__name__}; expected a tensor (batch, 3, height, width)"
        )
    if images.ndim != 4:
        raise ShapeError(f"images are {tuple(images.shape)}; expected (batch, 3, height, width)")
    if not images.is_floating_point():
        raise ShapeError(f"images are {images.dtype}; expected floating point: images / 255")
    for name, x in targets.items():
        if isinstance(x, Tensor) and x.ndim > 2:
            raise ShapeError(
                f"targets of {name!r} are maps {tuple(x.shape)}, which have to be pasted as the "
                "images are, not blended by the area; expected (batch,) or (batch, K), or train "
                "with fit(cutmix_alpha=...), which pastes maps"
            )
    if patch_size is None:
        patch_size = 1
    box, share = random_box(images.shape[-2:], alpha, patch_size, generator)
    return paste_box(images, box), _blend_targets(targets, Mixup(share), len(images))


@dataclass(frozen=True)
class Mixup:
    """With which other one every sample is blended, and by which share.

    Attributes:
        share: that every sample keeps of itself, one for all, or (n,) on the device.
        partners: the row of every sample's partner, n; None = the sample before it.
    """

    share: float | Tensor
    partners: Sequence[int] | None = None

    def of_partners(self, x: Tensor) -> Tensor:
        """Return for every sample the row of its partner, of x (n, ...) or, with further rows, (m, ...)."""
        if self.partners is None:
            return x.roll(1, 0)
        return x[[*self.partners]]

    def blend_rows(self, x: Tensor) -> Tensor:
        """Return every sample's row of x (n, ...) blended with that of its partner.

        Further rows of x are those of partners that are no samples.
        """
        partners = self.of_partners(x)
        samples = x[: len(partners)]
        if isinstance(self.share, Tensor):
            shares = self.share.to(x)
            while shares.ndim < x.ndim:
                shares = shares.unsqueeze(-1)
            return torch.lerp(partners, samples, shares)
        return torch.lerp(partners, samples, self.share)

    def blend(self, tokens: Tokens) -> Tokens:
        """Return the blended tokens of the samples."""
        blended = [self.blend_rows(layer_tokens) for layer_tokens in tokens.sequence]
        return replace(tokens, sequence=tuple(blended))


def draw_mixup(
    num_samples: int,
    alpha: float,
    *,
    per_sample: bool,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Mixup:
    """Draw a share for all samples, or with ``per_sample`` shares and partners of their own."""
    random = _seeded_generator(alpha, generator)
    if not per_sample:
        return Mixup(float(random.beta(alpha, alpha)))
    shares = random.beta(alpha, alpha, num_samples)
    return Mixup(
        share=torch.as_tensor(shares, dtype=torch.float32).to(device),
        partners=random.permutation(num_samples).tolist(),
    )


def random_box(
    image_size: Sequence[int],
    alpha: float,
    patch_size: PatchSize,
    generator: torch.Generator | None = None,
) -> tuple[Box, float]:
    """Return a rectangle of whole patches, and the share of the image that it leaves."""
    random = _seeded_generator(alpha, generator)
    side = (1.0 - random.beta(alpha, alpha)) ** 0.5
    rows, cols = TokenGrid(patch_size).size(image_size)
    top, bottom = _random_range(random, rows, side)
    left, right = _random_range(random, cols, side)
    share = 1.0 - (bottom - top) * (right - left)
    return (top, bottom, left, right), share


def _random_range(random: np.random.Generator, cells: int, side: float) -> tuple[float, float]:
    """Return begin and end of about ``side * cells`` cells around a random one, as shares of all."""
    count = round(side * cells)
    first = int(random.integers(0, cells)) - count // 2
    end = first + count
    return max(0, first) / cells, min(cells, end) / cells


def paste_box(x: Tensor, box: Box) -> Tensor:
    """Return images or maps (B, ..., H, W) with the rectangle of the sample before each pasted into it."""
    height, width = x.shape[-2:]
    top, bottom, left, right = box
    rows = slice(round(top * height), round(bottom * height))
    cols = slice(round(left * width), round(right * width))
    partners = x.roll(1, 0)
    mixed = x.clone()
    mixed[..., rows, cols] = partners[..., rows, cols]
    return mixed


def _seeded_generator(alpha: float, generator: torch.Generator | None) -> np.random.Generator:
    """Return a generator that one draw of torch's seeds, so that a seed gives the same blend on every device."""
    converted("alpha", alpha, Positive)
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    return np.random.default_rng(seed)


def _blend_targets(
    targets: Mapping[str, Tensor], mixup: Mixup, num_samples: int
) -> dict[str, Tensor]:
    """Return each target blended with its partner's.

    Raises:
        ShapeError: if a target is no tensor of floating point, or of another number of samples.
    """
    for name, x in targets.items():
        if not isinstance(x, Tensor):
            raise ShapeError(
                f"targets of {name!r} are {type(x).__name__}; expected a tensor of {num_samples} samples"
            )
        if x.ndim == 0 or len(x) != num_samples:
            raise ShapeError(
                f"targets of {name!r} have shape {tuple(x.shape)}; expected {num_samples} samples, the "
                "first axis"
            )
        if not x.is_floating_point():
            raise ShapeError(
                f"targets of {name!r} are {x.dtype}; expected floating point, classes as one-hot "
                "rows: torch.nn.functional.one_hot(x, classes).float()"
            )
    return {name: mixup.blend_rows(x) for name, x in targets.items()}
