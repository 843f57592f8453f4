"""Linear probes on frozen features: heads of all learning rates, layers and poolings trained in one pass over the data.

Unlike MAE's recipe, which draws a new crop and flip in each epoch, probes see one centre crop per image, computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.evaluation.features import Feature, Features, Report, ignore

LARS_TRUST = 0.001
NORM_EPS = 1e-6  # as MAE's BatchNorm
NORM_MOMENTUM = 0.1
ROWS = 4096  # evaluated at a time


@dataclass(frozen=True)
class ProbeSettings:
    """Training recipe of the heads: SGD with momentum 0.9, linear warm-up, then cosine decay to 0, updated every step."""

    rates: tuple[float, ...]  #: Learning rates for a batch of 256; scaled by the actual batch size / 256
    epochs: int = 90  #: Passes over the data
    warmup: int = 10  #: Epochs of linear warm-up
    batch_size: int = 256  #: Images per step, at most all; an incomplete last batch is dropped
    lars: bool = False  #: Use LARS (You et al. 2017) for the weights, as MAE does.
    weight_decay: float = 0.0  #: Applied to weights, not to biases
    seed: int = 0  #: Random seed of the initial weights (the same for all heads) and of the order of the images

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f'rates={self.rates}: give at least one, each above 0.')
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(
                f'warmup={self.warmup}: it must be at least 0 and less than the number of epochs, {self.epochs}.'
            )
        if self.batch_size < 2:
            raise ValueError(f'batch_size={self.batch_size}: BatchNorm needs at least 2 images.')

    def rate_at(self, progress: float) -> float:
        """Return the factor of the learning rate after ``progress`` epochs."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 + 0.5 * math.cos(math.pi * (progress - self.warmup) / (self.epochs - self.warmup))


SGD = ProbeSettings(rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0))
LARS = ProbeSettings(rates=(0.03, 0.1, 0.3, 1.0), batch_size=16384, lars=True)  # MAE uses 0.1


@dataclass(frozen=True)
class Head:
    """A trained head."""

    feature: Feature  #: Its input
    rate: float  #: Its learning rate for a batch of 256
    top1: float  #: Validation accuracy in per cent; NaN if the training diverged


class Probes:
    """F features × R rates heads for C classes: BatchNorm without affine parameters, then linear (MAE, appendix A.1).

    The heads are independent: each gets the same updates as if it were trained alone.
    """

    def __init__(self, features: int, width: int, classes: int, settings: ProbeSettings, like: Tensor) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        first_CD = torch.empty(classes, width, dtype=torch.float64)
        torch.nn.init.trunc_normal_(first_CD, std=0.01, generator=generator)
        rates = len(settings.rates)
        self.settings = settings
        self.weight_FRCD = first_CD.to(like).expand(features, rates, classes, width).clone()
        self.bias_FRC = self.weight_FRCD.new_zeros(features, rates, classes)
        self.velocity = [torch.zeros_like(self.weight_FRCD), torch.zeros_like(self.bias_FRC)]
        self.mean_FD = self.weight_FRCD.new_zeros(features, width)
        self.variance_FD = self.weight_FRCD.new_ones(features, width)
        self.rate_R = torch.tensor(settings.rates).to(self.weight_FRCD)

    def logits(self, inputs_FBD: Tensor) -> Tensor:
        """Return (F, R, B, C) for standardised inputs."""
        return torch.einsum('fbd,frcd->frbc', inputs_FBD, self.weight_FRCD) + self.bias_FRC[:, :, None]

    def step(self, inputs_FBD: Tensor, labels_B: Tensor, factor: float) -> None:
        """Train all heads for one step, with learning rates multiplied by ``factor``."""
        inputs_FBD = self.standardise(inputs_FBD, training=True)
        images = len(labels_B)
        error_FRBC = self.logits(inputs_FBD).softmax(dim=-1)
        error_FRBC[:, :, torch.arange(images, device=labels_B.device), labels_B] -= 1
        error_FRBC /= images  # gradient of the mean cross entropy with respect to the logits
        gradient_FRCD = torch.einsum('frbc,fbd->frcd', error_FRBC, inputs_FBD)
        gradient_FRCD += self.settings.weight_decay * self.weight_FRCD
        if self.settings.lars:
            gradient_FRCD *= trust(self.weight_FRCD, gradient_FRCD)
        scaled_R = self.rate_R * (factor * images / 256)
        for parameter, velocity, gradient in zip(
            (self.weight_FRCD, self.bias_FRC), self.velocity, (gradient_FRCD, error_FRBC.sum(dim=2)), strict=True
        ):
            velocity.mul_(0.9).add_(gradient)
            parameter -= velocity * scaled_R.view(-1, *[1] * (parameter.dim() - 2))

    def standardise(self, inputs_FBD: Tensor, *, training: bool) -> Tensor:
        """Standardise with the statistics of the batch, and update the running ones; or with the running statistics."""
        flat = inputs_FBD.transpose(0, 1).flatten(1)
        mean, variance = self.mean_FD.view(-1), self.variance_FD.view(-1)
        flat = F.batch_norm(flat, mean, variance, training=training, momentum=NORM_MOMENTUM, eps=NORM_EPS)
        return flat.view(len(flat), *self.mean_FD.shape).transpose(0, 1)

    def predict(self, inputs_FBD: Tensor) -> Tensor:
        """Return predicted ids, (F, R, B), standardising with the running statistics."""
        return self.logits(self.standardise(inputs_FBD, training=False)).argmax(dim=-1)


def trust(weight_FRCD: Tensor, gradient_FRCD: Tensor) -> Tensor:
    """Return LARS' factor for each head, (F, R, 1, 1): 0.001 ‖w‖ / ‖gradient‖, or 1 where either norm is 0."""
    weight, gradient = (value.flatten(2).norm(dim=2)[..., None, None] for value in (weight_FRCD, gradient_FRCD))
    return torch.where((weight > 0) & (gradient > 0), LARS_TRUST * weight / gradient, torch.ones_like(weight))


@torch.no_grad()
def train_probes(
    train: Features,
    val: Features,
    settings: ProbeSettings,
    *,
    device: str | torch.device = 'cpu',
    report: Report = ignore,
) -> list[Head]:
    """Train one head for each feature and learning rate, and evaluate all heads. Computations use the features' dtype.

    Raises ValueError if features differ in width, there are fewer than two images, or all heads diverged.
    """
    which = list(train.values)
    widths = {str(feature): values.shape[1] for feature, values in train.values.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f'Heads trained together need features of equal width, got {widths}. Probe them one by one.')
    if len(train.labels_N) < 2:
        raise ValueError(f'A probe needs at least 2 training images, got {len(train.labels_N)}.')
    classes = int(max(train.labels_N.max(), val.labels_N.max())) + 1
    like = torch.empty(0, dtype=train.values[which[0]].dtype, device=device)
    probes = Probes(len(which), widths[str(which[0])], classes, settings, like)
    run_epochs(probes, train, settings, report)
    heads = evaluate_heads(probes, val, which)
    if all(math.isnan(head.top1) for head in heads):
        raise ValueError(f'All heads diverged. Give smaller rates than {settings.rates}.')
    return heads


def run_epochs(probes: Probes, train: Features, settings: ProbeSettings, report: Report = ignore) -> None:
    """Train for all epochs. The order of the images depends only on the seed."""
    device, images = probes.bias_FRC.device, len(train.labels_N)
    batch = min(settings.batch_size, images)
    steps = images // batch
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.epochs):
        order = torch.randperm(images, generator=generator)
        for step in range(steps):
            rows_B = order[step * batch : (step + 1) * batch]
            inputs_FBD = torch.stack([values[rows_B] for values in train.values.values()]).to(device)
            probes.step(inputs_FBD, train.labels_N[rows_B].to(device), settings.rate_at(epoch + step / steps))
        report((epoch + 1) / settings.epochs)


def evaluate_heads(probes: Probes, val: Features, which: Sequence[Feature]) -> list[Head]:
    correct_FR = torch.zeros(probes.bias_FRC.shape[:2], dtype=torch.int64)
    device = probes.bias_FRC.device
    for start in range(0, len(val.labels_N), ROWS):
        inputs_FBD = torch.stack([val.values[feature][start : start + ROWS] for feature in which]).to(device)
        correct_FR += (probes.predict(inputs_FBD).cpu() == val.labels_N[start : start + ROWS]).sum(dim=-1)
    top1_FR = 100 * correct_FR.double() / len(val.labels_N)
    finite_FR = probes.weight_FRCD.isfinite().flatten(2).all(dim=2).cpu()
    top1_FR[~finite_FR] = math.nan
    return [
        Head(feature, rate, top1)
        for feature, row in zip(which, top1_FR.tolist(), strict=True)
        for rate, top1 in zip(probes.settings.rates, row, strict=True)
    ]


def shortened(settings: ProbeSettings, *, epochs: int | None = None, batch_size: int | None = None) -> ProbeSettings:
    """Return the recipe with another number of epochs or batch size; warm-up takes the same fraction of the epochs."""
    epochs = epochs or settings.epochs
    warmup = settings.warmup * epochs // settings.epochs
    return replace(settings, epochs=epochs, warmup=warmup, batch_size=batch_size or settings.batch_size)
