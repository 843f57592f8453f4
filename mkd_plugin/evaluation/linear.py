"""Linear probes on frozen features: all learning rates, layers and poolings in one pass over the data.

A deviation from MAE's recipe: features are those of each image's centre crop, computed once; MAE draws a new crop and flip
for each epoch, so that its probes see more images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mkd_plugin.evaluation.features import Feature, Features
from mkd_plugin.evaluation.progress import Report

LARS_TRUST = 0.001
NORM_EPS = 1e-6  # MAE's BatchNorm
NORM_MOMENTUM = 0.1
ROWS = 4096  # judged at once


@dataclass(frozen=True)
class ProbeSettings:
    """How heads are trained: momentum 0.9, cosine to 0 after a linear warm-up, by step.

    Attributes:
        rates: Learning rates for a batch of 256; what is used is rate · batch / 256 of the batch in fact.
        epochs: Passes over the data.
        warmup: Of these, with a growing rate.
        batch_size: Images in a step; all, if there are fewer. What is left over at an epoch's end is left out.
        lars: Layer-wise rates (You et al. 2017) for the weights, as MAE; plain SGD otherwise.
        weight_decay: Of weights, not of biases.
        seed: Of the first weights, one draw for all heads, and of the order of the images.
    """

    rates: tuple[float, ...]
    epochs: int = 90
    warmup: int = 10
    batch_size: int = 256
    lars: bool = False
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f'rates={self.rates}: give at least one, each above 0.')
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f'warmup={self.warmup}: it must be less than the {self.epochs} epochs, and not negative.')
        if self.batch_size < 2:
            raise ValueError(f'batch_size={self.batch_size}: BatchNorm needs at least 2 images.')

    def rate_at(self, progress: float) -> float:
        """Share of the rate after ``progress`` epochs."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 + 0.5 * math.cos(math.pi * (progress - self.warmup) / (self.epochs - self.warmup))


SGD = ProbeSettings(rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0))
LARS = ProbeSettings(rates=(0.03, 0.1, 0.3, 1.0), batch_size=16384, lars=True)  # MAE's is 0.1


@dataclass(frozen=True)
class Head:
    """One trained head.

    Attributes:
        feature: What it reads.
        rate: What it was trained with, for a batch of 256.
        top1: Per cent of the validation images; NaN if the training diverged.
    """

    feature: Feature
    rate: float
    top1: float


class Probes:
    """F features × R rates heads for C classes: BatchNorm without affine, then linear (MAE, appendix A.1).

    Heads do not see one another: their gradients, decay and trust ratios are those of heads trained alone.
    """

    def __init__(self, features: int, width: int, classes: int, settings: ProbeSettings, like: Tensor) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        first_CD = torch.empty(classes, width, dtype=torch.float64)
        torch.nn.init.trunc_normal_(first_CD, std=0.01, generator=generator)
        rates = len(settings.rates)
        self.settings = settings
        self.weight_FRCD = first_CD.to(like).expand(features, rates, classes, width).clone()
        self.bias_FRC = self.weight_FRCD.new_zeros(features, rates, classes)
        self.speed = [torch.zeros_like(self.weight_FRCD), torch.zeros_like(self.bias_FRC)]
        self.mean_FD = self.weight_FRCD.new_zeros(features, width)
        self.variance_FD = self.weight_FRCD.new_ones(features, width)
        self.rate_R = torch.tensor(settings.rates).to(self.weight_FRCD)

    def logits(self, inputs_FBD: Tensor) -> Tensor:
        """(F, R, B, C) of standardised inputs."""
        return torch.einsum('fbd,frcd->frbc', inputs_FBD, self.weight_FRCD) + self.bias_FRC[:, :, None]

    def step(self, inputs_FBD: Tensor, labels_B: Tensor, share: float) -> None:
        """One step of all heads at ``share`` of their rates."""
        inputs_FBD = self._standardise(inputs_FBD)
        images = len(labels_B)
        error_FRBC = self.logits(inputs_FBD).softmax(dim=-1)
        error_FRBC[:, :, torch.arange(images, device=labels_B.device), labels_B] -= 1
        error_FRBC /= images  # the gradient of the mean cross entropy by the logits
        slope_FRCD = torch.einsum('frbc,fbd->frcd', error_FRBC, inputs_FBD)
        slope_FRCD += self.settings.weight_decay * self.weight_FRCD
        if self.settings.lars:
            slope_FRCD *= trust(self.weight_FRCD, slope_FRCD)
        scaled_R = self.rate_R * (share * images / 256)
        for parameter, speed, slope in zip(
            (self.weight_FRCD, self.bias_FRC), self.speed, (slope_FRCD, error_FRBC.sum(dim=2)), strict=True
        ):
            speed.mul_(0.9).add_(slope)
            parameter -= speed * scaled_R.view(-1, *[1] * (parameter.dim() - 2))

    def _standardise(self, inputs_FBD: Tensor) -> Tensor:
        """By the batch's statistics, which the running ones follow."""
        variance_FD, mean_FD = torch.var_mean(inputs_FBD, dim=1, correction=0)
        images = inputs_FBD.shape[1]
        self.mean_FD.lerp_(mean_FD, NORM_MOMENTUM)
        self.variance_FD.lerp_(variance_FD * (images / (images - 1)), NORM_MOMENTUM)
        return (inputs_FBD - mean_FD[:, None]) * (variance_FD[:, None] + NORM_EPS).rsqrt()

    def predict(self, inputs_FBD: Tensor) -> Tensor:
        """Ids, (F, R, B), by the running statistics."""
        scale_F1D = (self.variance_FD + NORM_EPS).rsqrt()[:, None]
        return self.logits((inputs_FBD - self.mean_FD[:, None]) * scale_F1D).argmax(dim=-1)


def trust(weight_FRCD: Tensor, slope_FRCD: Tensor) -> Tensor:
    """LARS' factor of each head's weights, (F, R, 1, 1): 0.001 ‖w‖ / ‖slope‖, and 1 where one of them is 0."""
    weight, slope = (value.flatten(2).norm(dim=2)[..., None, None] for value in (weight_FRCD, slope_FRCD))
    return torch.where((weight > 0) & (slope > 0), LARS_TRUST * weight / slope, torch.ones_like(weight))


@torch.no_grad()
def train_probes(
    train: Features,
    val: Features,
    settings: ProbeSettings,
    *,
    device: str | torch.device = 'cpu',
    report: Report | None = None,
) -> list[Head]:
    """Train a head for each feature and rate, all in the same steps, and judge each.

    Args:
        train: To learn from. Features that are all of one width; their dtype computes.
        val: To judge by, of the same features.
        settings: How.
        device: Where.
        report: Told the number of finished epochs.

    Raises:
        ValueError: Features of several widths, fewer than two images, or all heads diverged.
    """
    which = list(train.values)
    widths = {str(feature): values.shape[1] for feature, values in train.values.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f'Heads trained together need features of one width, got {widths}. Probe them one by one.')
    if len(train.labels_N) < 2:
        raise ValueError(f'A probe needs at least 2 training images, got {len(train.labels_N)}.')
    classes = int(max(train.labels_N.max(), val.labels_N.max())) + 1
    like = torch.empty(0, dtype=train.values[which[0]].dtype, device=device)
    probes = Probes(len(which), widths[str(which[0])], classes, settings, like)
    run_epochs(probes, train, settings, report)
    heads = judge(probes, val, which)
    if all(math.isnan(head.top1) for head in heads):
        raise ValueError(f'All heads diverged. Give smaller rates than {settings.rates}.')
    return heads


def run_epochs(probes: Probes, train: Features, settings: ProbeSettings, report: Report | None) -> None:
    """All steps. The order of the images depends on the seed only."""
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
        if report is not None:
            report(epoch + 1)


def judge(probes: Probes, val: Features, which: Sequence[Feature]) -> list[Head]:
    """Accuracy of every head."""
    right_FR = torch.zeros(probes.bias_FRC.shape[:2], dtype=torch.int64)
    device = probes.bias_FRC.device
    for start in range(0, len(val.labels_N), ROWS):
        inputs_FBD = torch.stack([val.values[feature][start : start + ROWS] for feature in which]).to(device)
        right_FR += (probes.predict(inputs_FBD).cpu() == val.labels_N[start : start + ROWS]).sum(dim=-1)
    top1_FR = 100 * right_FR.double() / len(val.labels_N)
    finite_FR = probes.weight_FRCD.isfinite().flatten(2).all(dim=2).cpu()
    top1_FR[~finite_FR] = math.nan
    return [
        Head(feature, rate, top1)
        for feature, row in zip(which, top1_FR.tolist(), strict=True)
        for rate, top1 in zip(probes.settings.rates, row, strict=True)
    ]


def shortened(settings: ProbeSettings, *, epochs: int | None = None, batch_size: int | None = None) -> ProbeSettings:
    """The same with another length or batch; the warm-up keeps its share."""
    epochs = epochs or settings.epochs
    warmup = settings.warmup * epochs // settings.epochs
    return replace(settings, epochs=epochs, warmup=warmup, batch_size=batch_size or settings.batch_size)
