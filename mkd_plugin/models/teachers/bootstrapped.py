"""dBOT's teacher: stage by stage the student becomes the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.teachers.base import StudentCopy, Teacher
from mkd_plugin.models.vit import VisionTransformer, parse_tap
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask


@MODELS.register_module()
class BootstrappedTeacher(StudentCopy):
    """Teacher 0, then the student of the stage before (dBOT, Sec. 3).

    The network is saved in checkpoints, because from stage 2 on nothing else has it. ``StageHook`` calls
    :meth:`promote` at each breakpoint.

    Args:
        student: The student.
        start: Teacher 0: 'student' for a copy of the freshly initialised student (the reference code's "random"
            teacher), or the config of another teacher, for example ``dict(type='ViTTeacher', checkpoint=…)``.
        start_depth: With ``start='student'``, how many blocks teacher 0 has; the reference code uses 0 (patch embedding,
            position and cls only) for L and H. None for all.

    Raises:
        ValueError: An unknown ``start``; a ``start_depth`` the network does not have; teacher 0 of another width, which
            could not be followed by the student.
    """

    num_promotions: Tensor

    def __init__(
        self, *, student: StudentContext, start: str | dict[str, Any] = 'student', start_depth: int | None = None
    ) -> None:
        super().__init__(student=student)
        if isinstance(start, str) and start != 'student':
            raise ValueError(f"start='{start}': use 'student' or the config of a teacher.")
        if start_depth is not None and (start != 'student' or not 0 <= start_depth <= self.network.arch.depth):
            raise ValueError(
                f"start_depth={start_depth}: with start='student' it may be 0 … {self.network.arch.depth}; "
                'another teacher has its own depth.'
            )
        self.first: Teacher | None = None if isinstance(start, str) else build(start, student=student)
        if self.first is not None and not self.first.sees_all:
            raise ValueError("Teacher 0 of a bootstrapped teacher must see the whole image: use sees='all'.")
        self.start_depth = start_depth
        self.promotions = 0
        self.register_buffer('num_promotions', torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def promote(self, student: VisionTransformer) -> None:
        """The student becomes the teacher."""
        self._copy(student)
        self.num_promotions += 1
        self.promotions += 1

    def tap_spec(self, name: str) -> TapSpec:
        """The same for every stage.

        Raises:
            ValueError: Teacher 0 gives something else there than the student will.
        """
        later = super().tap_spec(name)
        if self.start_depth is not None:
            parse_tap(name, self.start_depth)  # raises if teacher 0 has no such tap
        if self.first is not None and self.first.tap_spec(name) != later:
            raise ValueError(
                f"Teacher 0 gives {self.first.tap_spec(name)} at '{name}', but the student that follows it {later}. Train "
                'one stage with a plain ViTTeacher of that size, then start new stages from its student.'
            )
        return later

    @property
    def complete(self) -> bool:
        """Whether ``network``, as it is saved, is the present teacher: not while teacher 0 is another or a cut one."""
        return self.promotions > 0 or (self.first is None and self.start_depth is None)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run teacher 0 until the first promotion, then the student's copy."""
        if self.promotions == 0 and self.first is not None:
            return self.first(images_BCHW, None, taps, region)
        depth = self.start_depth if self.promotions == 0 else None
        return self.network(images_BCHW, None, taps, depth=depth, region=region)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.promotions = int(self.num_promotions)  # read once here: reading the tensor in a step would synchronise
