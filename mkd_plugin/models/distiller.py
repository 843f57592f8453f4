"""The one algorithm. Read this file first.

    loss = Σ weight · L( N( T(image) ), H( S(masked image) ) )        (MaskDistill, eq. 1)

Every method of this package is a config of :class:`MaskedDistiller`; every difference between methods is a component:
the masking, T (``teachers``), S (``backbone``), and N, H, L (``objectives``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from torch import Tensor, nn

from mkd_plugin.models.context import DistillContext, StudentContext, pixel_statistics
from mkd_plugin.models.lessons import Lessons
from mkd_plugin.models.masking.base import Masking
from mkd_plugin.models.objective import Objective
from mkd_plugin.models.teachers.base import Teacher
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS, build, check_options
from mkd_plugin.structures import Region, TokenMask


@MODELS.register_module()
class MaskedDistiller(BaseSelfSupervisor):
    """Masked knowledge distillation.

    Args:
        backbone: S, the student: config of a ViT, for example ``dict(type='VisibleViT', arch='b')``.
        masking: Config of a masking, for example ``dict(type='RandomMasking', ratio=0.75)``.
        teachers: T: name → config of a teacher.
        objectives: Name → options of an :class:`Objective` (teacher, tap, normalize, student, head, loss, region,
            weight). Each gives one loss, called ``loss_<name>``.
        data_preprocessor: mmpretrain's ``SelfSupDataPreprocessor`` by default; its mean and std are the student's.
        init_cfg: mmengine's.

    Raises:
        ValueError: The parts do not fit each other.
    """

    backbone: VisionTransformer

    def __init__(
        self,
        *,
        backbone: dict[str, Any],
        masking: dict[str, Any],
        teachers: Mapping[str, dict[str, Any]],
        objectives: Mapping[str, dict[str, Any]],
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        preprocessor = {'type': 'mmpretrain.SelfSupDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone=build(backbone), data_preprocessor=build(preprocessor), init_cfg=init_cfg)
        if not objectives:
            raise ValueError('objectives is empty: there is nothing to learn.')
        student = StudentContext(self.backbone, *pixel_statistics(self.data_preprocessor, self.backbone.in_channels))
        self._teachers: dict[str, Teacher] = {name: build(cfg, student=student) for name, cfg in teachers.items()}
        self.masking: Masking = build(masking, student=student)
        context = DistillContext(student, self._teachers, self.masking)
        self._objectives = {name: build_objective(name, cfg, context) for name, cfg in objectives.items()}
        self.teachers, self.objectives = nn.ModuleDict(self._teachers), nn.ModuleDict(self._objectives)
        self.student_taps = tuple({tap: None for term in self._objectives.values() for tap in term.student_taps})
        self.teacher_taps = self._collect_teacher_taps()
        self._teacher_regions = {
            name: Region.union(term.region for term in readers)
            for name in self._teachers
            if (readers := [term for term in self._objectives.values() if term.teacher == name])
        }

    def loss(self, inputs: Tensor | Sequence[Tensor], data_samples: Any = None, **_: Any) -> dict[str, Tensor]:
        """One step: mask → teacher → target → student → head → loss.

        Args:
            inputs: Normalised images (B, C, H, W), or the list with this one view that mmpretrain's preprocessor makes.
            data_samples: If they have ``mask`` (True = hidden), it is used instead of drawing one.

        Returns:
            ``loss_<objective>`` for each objective, and beside them the share of hidden patches and the spread of
            targets and student features, which are logged and not optimised.
        """
        images_BCHW = single_view(inputs)
        lessons = Lessons(self._teachers, self.teacher_taps, self._teacher_regions, images_BCHW)
        mask = self._given_mask(data_samples)
        if mask is None:
            mask = self.masking(images_BCHW, lessons)

        student = self.backbone(images_BCHW, mask, self.student_taps)

        results = {'hidden_share': mask.hidden_BL.float().mean()}
        for name, objective in self._objectives.items():
            teacher = lessons.features(objective.teacher, mask)
            results[f'loss_{name}'], watched = objective(teacher, student, mask)
            results.update({f'{name}_{what}': value for what, value in watched.items()})
        return results

    def extract_feat(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """The student's tokens of the intact images after its final norm, (B, 1 + L, D)."""
        return self.backbone(single_view(inputs)).tokens('output')

    def init_weights(self) -> None:
        """Load what the student's ``init_cfg`` names, then let the teachers that copy the student do so."""
        super().init_weights()
        for teacher in self._teachers.values():
            teacher.start_from(self.backbone)

    def reset_student(self) -> None:
        """Draw new weights for the student and its heads, as at the start of a stage."""
        self.backbone.reset_parameters()
        for objective in self._objectives.values():
            objective.reset_heads()

    def _collect_teacher_taps(self) -> dict[str, tuple[str, ...]]:
        """Teacher → every tap that masking and objectives read, so that it runs once and no further than needed."""
        taps: dict[str, list[str]] = {name: [] for name in self._teachers}
        for name, needed in self.masking.teacher_taps().items():
            if name not in taps:
                raise ValueError(f"The masking reads the teacher '{name}', but there are only {sorted(taps)}.")
            if not self._teachers[name].sees_all:
                raise ValueError(
                    f"The masking reads the teacher '{name}', which must then see the whole image: sees='all'."
                )
            for tap in needed:
                self._teachers[name].tap_spec(tap)  # raises if there is no such tap
            taps[name] += needed
        for objective in self._objectives.values():
            taps[objective.teacher] += objective.teacher_taps
        idle = [name for name, needed in taps.items() if not needed]
        if idle:
            raise ValueError(f'Nothing reads the teachers {idle}: name them in an objective, or leave them out.')
        return {name: tuple(dict.fromkeys(needed)) for name, needed in taps.items()}

    def _given_mask(self, data_samples: Any) -> TokenMask | None:
        """The mask that comes with the data, if it does.

        Raises:
            ValueError: It is not of the student's grid, or shows another number of patches than the masking does although
                the student or a teacher needs a fixed number.
        """
        if not data_samples or 'mask' not in data_samples[0]:
            return None
        device = next(self.backbone.parameters()).device
        hidden_BL = torch.stack([torch.as_tensor(sample.mask).flatten() for sample in data_samples]).bool().to(device)
        if hidden_BL.shape[1] != self.masking.num_patches:
            raise ValueError(
                f'The data give masks of {hidden_BL.shape[1]} patches, the student has {self.masking.num_patches}.'
            )
        if self.backbone.sees_all and all(teacher.sees_all for teacher in self._teachers.values()):
            return TokenMask(hidden_BL)  # nobody needs the same number in every image
        num_visible = self.masking.num_visible
        counts = (~hidden_BL).sum(1).tolist()  # reads back from the device: a given mask is for reproducing a step
        if set(counts) != {num_visible}:
            raise ValueError(
                f'The data give masks with {sorted(set(counts))} visible patches; student or a teacher needs the '
                f"masking's {num_visible} in every image."
            )
        return TokenMask.from_hidden(hidden_BL, num_visible)


def build_objective(name: str, cfg: Mapping[str, Any], context: DistillContext) -> Objective:
    """Build an objective; a message says which one it is about.

    Raises:
        ValueError: Its parts do not fit each other, or an option is misspelt.
    """
    if 'loss' in name:
        raise ValueError(
            f"Objective '{name}': mmengine sums every result with 'loss' in its name; choose another name."
        )
    try:
        check_options(Objective, cfg, ['context'])
        return Objective(context=context, **cfg)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Objective '{name}': {error}") from error


def single_view(inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The batch of images.

    Raises:
        ValueError: The pipeline makes more than one view.
    """
    if isinstance(inputs, Tensor):
        return inputs
    if len(inputs) != 1:
        raise ValueError(f'MaskedDistiller takes one view of each image, the pipeline makes {len(inputs)}.')
    return inputs[0]
