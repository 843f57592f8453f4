"""Interfaces of the algorithm's components: teachers (T), maskings, heads (H), normalizations (N) and losses (L).

The model passes keyword arguments such as ``student`` and ``in_width`` to a component's constructor; the config sets the
others. N and L are plain modules; see :class:`Normalization` and :class:`Loss` for their optional attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mkd_plugin.models.vit.block import Initialization
from mkd_plugin.structures import ALL, HIDDEN, VISIBLE, RegionSpec, RegionTokens, TapSpec, TokenFeatures, TokenMask
from mkd_plugin.utils.draws import STEP

TeacherFeatures = Callable[[str], TokenFeatures]


class Student(Protocol):
    """S: a ``torch.nn.Module`` that maps images and a mask to tokens, such as our ViTs and :class:`BackboneStudent`."""

    image_hw: tuple[int, int]  #: Height and width of the images, pixels
    patch_size: int  #: Side of the square that a patch token describes, pixels
    grid: tuple[int, int]  #: Patches per column and row
    in_channels: int  #: Image channels
    num_prefix: int  #: P, the number of tokens before the patches; the first is cls
    can_hide: bool  #: Whether a mask may hide patches
    sees_all: bool  #: Whether hidden patches have tokens too; otherwise only visible patches are returned
    initialization: Initialization  #: Distribution of the initial weights, which heads share

    def tap_spec(self, name: str) -> TapSpec: ...
    def reset_parameters(self) -> None: ...
    def __call__(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], *, region: RegionTokens | None = None
    ) -> TokenFeatures: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def state_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class StudentContext:
    """The student as teachers and maskings see it."""

    network: Student  #: The student itself, for teachers that copy it
    pixel_mean: tuple[float, ...]  #: Mean per channel of the student's images, in units of the stored image (0 … 255)
    pixel_std: tuple[float, ...]  #: Standard deviation likewise

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row."""
        return self.network.grid

    @property
    def num_patches(self) -> int:
        """L."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Progress:
    """Progress of a run."""

    step: int  #: Optimiser steps taken
    total: int  #: Optimiser steps of the whole run

    @property
    def share(self) -> float:
        """Completed share of the run, 0 … 1."""
        return self.step / self.total if self.total else 0.0


@dataclass(frozen=True)
class Stages:
    """Training stages requested by a teacher; ``Teacher.promote`` is called at the start of each but the first."""

    shares: tuple[int, ...]  #: Relative length of each stage
    reset_student: bool = True  #: Draw new weights for student and heads at the start of a stage
    reset_optimizer: bool = False  #: Also reset the optimiser's moments

    def lengths(self, total: int) -> list[int]:
        """Divide a run of ``total`` epochs or iterations; a remainder lengthens the last stages.

        Raises:
            ValueError: The run is too short for so many stages.
        """
        ends = [0] + [total * sum(self.shares[: i + 1]) // sum(self.shares) for i in range(len(self.shares))]
        lengths = [end - begin for begin, end in zip(ends, ends[1:], strict=False)]
        if min(lengths) < 1:
            raise ValueError(
                f'A run of {total} epochs or iterations cannot be divided into stages of relative lengths '
                f'{list(self.shares)}: every stage needs at least one. Train longer, or use fewer stages.'
            )
        return lengths


class Teacher(nn.Module):
    """Source of the targets: a network, or a fixed map such as pixels.

    A teacher is never optimised: it stays in eval mode and has no parameters. To write one, implement ``tap_spec`` and
    ``forward``. If it changes during training, implement ``after_step`` or set ``stages``, and set ``changes``.

    Args:
        student: The student, for its grid, pixel statistics and weights.
    """

    sees_all: bool = True  #: Whether it sees the intact image; False if it sees the student's visible patches only
    changes: bool = False  #: Whether ``after_step`` or ``promote`` must be called during training
    stages: Stages | None = None  #: Requested training stages, if any
    promotions: int = 0  #: Number of calls of ``promote``

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__()

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap. Raises ValueError if the teacher has no such tap."""
        raise NotImplementedError

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Compute features of the student's normalised images.

        Args:
            images_BCHW: The images.
            mask: The student's mask if it is known, for a teacher that sees visible patches only.
            taps: Names of the features to compute.
            region: Tokens that will be read, None for all; a teacher may skip the others.
        """
        raise NotImplementedError

    def start_from(self, student: Student) -> None:
        """Copy the student's initial weights, if needed; called once they are loaded."""

    def after_step(self, student: Student, progress: Progress) -> None:
        """Update the teacher; called after every optimiser step. Under FSDP2 the student is sharded if the teacher is."""

    def promote(self, student: Student) -> None:
        """Replace the teacher by the student at the start of a new stage."""

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, even after ``runner.model.train()``."""
        return super().train(False)


def freeze(network: nn.Module, *, in_checkpoints: bool) -> None:
    """Turn every parameter of a teacher's network into a buffer.

    A buffer moves with the model and is broadcast when DDP wraps it, but it is never optimised, and never waited for
    by DDP's reducer. Each module lists the names of its weights as ``frozen_names``: FSDP shards those of ViTs.

    Args:
        network: The network, changed in place.
        in_checkpoints: Whether to save the weights in checkpoints: True for a copy of the student, False for weights
            from a file.
    """
    for module in network.modules():
        module.frozen_names = [name for name, _ in module.named_parameters(recurse=False)]  # type: ignore[assignment]
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=in_checkpoints)
        if not in_checkpoints:
            module._non_persistent_buffers_set.update(module._buffers)


class Masking(nn.Module):
    """Draws the masks of a batch.

    Args:
        student: The student, for its grid.
    """

    num_visible: int  #: V, the number of visible patches of every image (the minimum, if it varies)
    per_image: int = 1  #: Masks per image; the teachers run once for all of them
    per_process = False  #: Whether an image's masks depend on the other images of its process
    reads_cls = False  #: Whether it needs teachers with a cls token

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__()
        self.num_patches = student.num_patches

    @property
    def hides(self) -> bool:
        """Whether any patch is ever hidden."""
        return self.num_visible < self.num_patches

    def regions(self) -> Mapping[str, RegionSpec]:
        """Declare the sets of patches that objectives can use.

        A subclass that adds a region ``x`` also sets its patch ids in ``TokenMask.regions['x']``.
        """
        hidden = HIDDEN if self.hides else RegionSpec(HIDDEN.name, empty=True)
        return {region.name: region for region in (hidden, VISIBLE, ALL)}

    def teacher_taps(self) -> Mapping[str, tuple[str, ...]]:
        """List the taps of teachers that the masking reads; none by default."""
        return {}

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw the masks of these images.

        What :func:`~mkd_plugin.utils.draws.draw_uniform` draws is the same for any number of processes.

        Args:
            images_BCHW: The student's normalised images.
            teacher_features: Returns all tokens of a teacher listed in ``teacher_taps``.
        """
        raise NotImplementedError


def reset(module: Any) -> None:
    """Let a module draw new weights of its own, if it can."""
    if hasattr(module, 'reset_parameters'):
        module.reset_parameters()


class Head(nn.Module):
    """Predicts the target at the tokens of a region.

    The objective sets the three arguments; a config may state ``out_width`` to have it checked. If a constructor has a
    keyword ``initialization``, the objective sets the student's; if it has ``num_taps``, the number of taps that it reads.

    Args:
        in_width: Width of the student's tokens (of each tap, for a head that reads several).
        out_width: Width of the target.
        grid: The student's grid.
    """

    reaches_hidden = False  #: Whether it can predict patches that are hidden from the student
    predicts_cls = True  #: Whether it can predict the cls token
    reads_cls = False  #: Whether it needs a student with a cls token
    reads_visible = False  #: Whether it needs a student that computes visible patches only
    per_process = False  #: Whether an image's prediction depends on the process that computes it
    many_taps = False  #: Whether one head reads all of the student's taps, instead of one head per tap
    kinds: tuple[str, ...] = ('tokens',)  #: Kinds of taps it accepts: 'tokens', 'relation' or both
    penalty_BR: Tensor | None = None  #: What the last prediction adds to the loss of each token

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.in_width, self.out_width, self.grid = in_width, out_width, grid

    def reset_parameters(self) -> None:
        """Draw new weights, as at the start of a stage; by default, each part draws its own."""
        for part in self.children():  # apply() takes a part after its own parts, which it may draw otherwise
            part.apply(reset)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width).

        Args:
            features: The student's features.
            taps: Tap to read, or all of the objective's taps with ``many_taps``.
            region: Tokens to predict.
        """
        raise NotImplementedError


class Normalization(Protocol):
    """N: a module that maps targets (…, R, D) to the same shape.

    Keep statistics in buffers, which are saved in checkpoints, and synchronise them across ranks (``TargetStatistics`` in
    :mod:`.standardize` does). If the constructor has a keyword ``width``, the objective sets it to D. With
    ``wants_region = True``, the module is called with the keyword ``region``, which marks padding tokens. With
    ``scheduled = True``, its ``set_progress`` is called at the start and after every optimiser step.
    """

    def __call__(self, target: Tensor) -> Tensor: ...


class Loss(Protocol):
    """L: a module that maps (prediction, target) to a tensor (B, R, …): a value or a vector for each token.

    Set ``wants_classes = True`` for class indices as targets, ``wants_region = True`` for the keyword ``region``, and
    ``per_image`` to the number of masks that an image must have. If the constructor has a keyword ``width``, the objective sets
    it to D of the target.
    """

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Term:
    """One objective's elementwise loss in one batch."""

    losses: tuple[Tensor, ...]  #: Loss of each pair of taps, (B, R, …)
    region: RegionTokens  #: Tokens to average over
    weight: float | Tensor  #: Factor of the term in the sum
    teacher: str = ''  #: Name of the objective's teacher

    def mean(self) -> Tensor:
        """Average over pairs of taps and the region, times the weight.

        If the number of tokens varies, processes count as theirs, so that their mean is that of the global batch.
        """
        mean = self.weight * torch.stack([self.region.mean(loss) for loss in self.losses]).mean()
        if self.region.weight_BR is None or STEP.ranks == 1:
            return mean
        all_reduce(average := self.region.weight_BR.sum(), 'mean')
        return mean * self.region.weight_BR.sum() / average.clamp(min=1 / STEP.ranks)

    def per_image(self) -> Tensor:
        """Average over pairs of taps and each image's tokens, times the weight, (B,)."""
        return self.weight * torch.stack([self.region.mean_per_image(loss) for loss in self.losses]).mean(0)


class Balance(nn.Module):
    """Combines the objectives' terms into losses; the default takes each term's mean.

    A subclass may compare the terms, per image as well, and drop or rescale some (UNIC's teacher dropping). If its
    constructor has a keyword ``objectives``, the model sets it to their names.
    """

    watched: Mapping[str, Tensor] = {}  #: Values of the last batch to log; no name contains 'loss'

    def forward(self, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        """Map objective → term to objective → loss."""
        return {name: term.mean() for name, term in terms.items()}


@dataclass(frozen=True)
class DistillContext:
    """Components that an objective is checked against at construction."""

    student: StudentContext
    teachers: Mapping[str, Teacher]
    masking: Masking


def pixel_statistics(preprocessor: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read a preprocessor's mean and std per channel, in units of the stored image; 0 and 1 if it does not normalise."""
    statistics = []
    for name, default in (('mean', 0.0), ('std', 1.0)):
        value = getattr(preprocessor, name, None)
        values = [default] if value is None else value.flatten().tolist()
        statistics.append(tuple(values * channels if len(values) == 1 else values))
    return statistics[0], statistics[1]
