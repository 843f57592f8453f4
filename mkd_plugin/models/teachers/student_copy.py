"""Teachers copied from the student: its earlier stages (dBOT), or its moving average."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mkd_plugin.models.protocols import Progress, Stages, Student, StudentContext, Teacher, freeze
from mkd_plugin.models.schedules import build_schedule
from mkd_plugin.models.vit import parse_tap
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask


@torch.no_grad()
def copy_weights(own: Any, other: Any) -> None:
    """Give a copy of a network the weights of another."""
    weights = other.state_dict()
    for name, value in own.state_dict().items():
        value.copy_(weights[name])


class StudentCopy(Teacher):
    """Base class of teachers whose network is a copy of the student, saved in checkpoints."""

    network: Any

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__(student=student)
        self.network = copy.deepcopy(student.network)
        self.network.init_cfg = None  # its weights are the student's, not a file's
        freeze(self.network, in_checkpoints=True)
        self.train()

    @property
    def complete(self) -> bool:
        """Whether the saved ``network`` is the current teacher."""
        return True

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap of the student."""
        return self.network.tap_spec(name)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run the copy on the intact images."""
        return self.network(images_BCHW, None, taps, region=region)

    def start_from(self, student: Student) -> None:
        """Copy the student's weights."""
        copy_weights(self.network, student)


@MODELS.register_module()
class BootstrappedTeacher(StudentCopy):
    """Bootstrapped teacher: the student of the previous stage (dBOT, Sec. 3).

    Stage s ≥ 1 trains student s from teacher s − 1; when it ends, student s becomes teacher s.

    Args:
        start: Teacher 0: 'student' for a copy of the initial student (the reference code's "random" teacher), or the
            config of another teacher, for example ``dict(type='ViTTeacher', checkpoint=…)``.
        start_depth: Number of blocks of teacher 0 with ``start='student'``; None for all. The reference code uses 0
            (patch embedding, positions and cls only) for L and H.
        stages: Number of equal stages of the run, or their relative lengths.
        reset_student: Draw new weights for student and heads at the start of a stage (84.5 instead of 84.2).
        reset_optimizer: Also reset the optimiser's moments; the reference code keeps them.

    Raises:
        ValueError: An option has an invalid value, or teacher 0 does not see the whole image.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        start: str | dict[str, Any] = 'student',
        start_depth: int | None = None,
        stages: int | Sequence[int] = 1,
        reset_student: bool = True,
        reset_optimizer: bool = False,
    ) -> None:
        super().__init__(student=student)
        if isinstance(start, str) and start != 'student':
            raise ValueError(f"start='{start}': use 'student' or the config of a teacher.")
        if start_depth is not None and (start != 'student' or not 0 <= start_depth <= depth_of(student.network)):
            raise ValueError(
                f"start_depth={start_depth}: it must lie in [0, {depth_of(student.network)}], and needs start='student'."
            )
        shares = (1,) * stages if isinstance(stages, int) else tuple(stages) if isinstance(stages, Sequence) else ()
        if not shares or not all(isinstance(share, int) and share >= 1 for share in shares):
            raise ValueError(
                f'stages={stages}: give the number of stages, or their relative lengths: whole numbers of at least 1.'
            )
        self.stages = Stages(shares, reset_student, reset_optimizer)
        self.changes = len(shares) > 1
        self.first: Teacher | None = None if isinstance(start, str) else build(start, student=student)
        if self.first is not None and not self.first.sees_all:
            raise ValueError("Teacher 0 of a bootstrapped teacher must see the whole image: use sees='all'.")
        self.start_depth = start_depth

    def promote(self, student: Student) -> None:
        """Copy the student, which becomes the teacher."""
        self.start_from(student)
        self.promotions += 1

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap. Raises ValueError if teacher 0 does not give the same there as the student."""
        later = super().tap_spec(name)
        if self.start_depth is not None:
            parse_tap(name, self.start_depth)  # raises if teacher 0 is too short
        if self.first is not None and self.first.tap_spec(name) != later:
            raise ValueError(
                f"Teacher 0 gives {self.first.tap_spec(name)} at '{name}', but the student, the next teacher, gives {later}. "
                'Train one stage with a plain ViTTeacher of that size, then start new stages from its student.'
            )
        return later

    @property
    def complete(self) -> bool:
        """Whether ``network`` is the current teacher; False while teacher 0 is another or a shortened network."""
        return self.promotions > 0 or (self.first is None and self.start_depth is None)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run teacher 0 until the first promotion, then the student's copy."""
        if self.promotions == 0 and self.first is not None:
            return self.first(images_BCHW, None, taps, region)
        depth = self.start_depth if self.promotions == 0 else None
        return self.network(images_BCHW, None, taps, depth=depth, region=region)

    # `promotions` is a Python number because reading a tensor would synchronise; checkpoints store it as a tensor.

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f'{prefix}num_promotions'] = torch.tensor(self.promotions)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.promotions = int(state_dict.pop(f'{prefix}num_promotions', self.promotions))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@MODELS.register_module()
class MomentumTeacher(StudentCopy):
    """teacher ← m · teacher + (1 − m) · student after every optimiser step (dBOT, Table 5; the step is inferred).

    Args:
        momentum: m, or the config of a ramp: ``dict(type='CosineRamp', start=0.996, end=1.0)``.

    Raises:
        ValueError: The momentum lies outside [0, 1].
    """

    changes = True

    def __init__(self, *, student: StudentContext, momentum: float | dict[str, Any]) -> None:
        super().__init__(student=student)
        self.momentum = build_schedule(momentum, low=0, high=1, name='momentum')

    @torch.no_grad()
    def after_step(self, student: Student, progress: Progress) -> None:
        """Move towards the student."""
        own = self.network.state_dict()  # parameters if they are sharded, buffers if not
        names, weights = zip(*student.named_parameters(), strict=True)
        torch._foreach_lerp_([own[name] for name in names], weights, 1 - self.momentum(progress))
        for name, value in student.named_buffers():
            if name.endswith(('running_mean', 'running_var')):  # of batch norms, which the teacher does not update
                own[name].copy_(value)


def depth_of(student: Student) -> int:
    """Return a ViT's number of blocks. Raises ValueError for other students."""
    depth: int | None = getattr(getattr(student, 'arch', None), 'depth', None)
    if depth is None:
        raise ValueError(
            f'This teacher counts the blocks of a ViT, but the student is a {type(student).__name__}. Use a MomentumTeacher.'
        )
    return depth
