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

from mkd_plugin.models.feature_cache import FeatureCache, TeacherRequest
from mkd_plugin.models.objective import Objective, accepts
from mkd_plugin.models.precision import set_precision
from mkd_plugin.models.protocols import (
    Balance,
    DistillContext,
    Masking,
    Progress,
    Stages,
    StudentContext,
    Teacher,
    pixel_statistics,
)
from mkd_plugin.models.vit.block import DropPath
from mkd_plugin.registry import MODELS, build, check_options, check_values, parameters_of
from mkd_plugin.structures import Region, TokenMask


@MODELS.register_module()
class MaskedDistiller(BaseSelfSupervisor):
    """Masked knowledge distillation.

    Args:
        backbone: S, the student: config of a ViT, for example ``dict(type='VisibleViT', arch='b')``, or of a
            :class:`BackboneStudent`.
        masking: Config of a masking, for example ``dict(type='RandomMasking', ratio=0.75)``.
        teachers: T: name → config of a teacher.
        objectives: Name → options of an :class:`Objective` (teacher, tap, normalize, student, head, loss, region,
            weight). Each gives one loss, called ``loss_<name>``.
        balance: Config of a :class:`Balance` that combines the objectives' terms; None adds their means.
        precision: Options of :func:`set_precision`, ``residual`` and ``teacher``: number formats under bfloat16 autocast.
        two_views: Whether the pipeline gives two views of each image, cut alike: the student sees the first, the teachers the
            second.
        data_preprocessor: mmpretrain's ``SelfSupDataPreprocessor`` by default; its mean and std are the student's.
        init_cfg: mmengine's.

    Raises:
        ValueError: The components are incompatible.
    """

    backbone: Any  #: A :class:`Student`
    teachers: Mapping[str, Teacher]
    objectives: Mapping[str, Objective]

    def __init__(
        self,
        *,
        backbone: dict[str, Any],
        masking: dict[str, Any],
        teachers: Mapping[str, dict[str, Any]],
        objectives: Mapping[str, dict[str, Any]],
        balance: dict[str, Any] | None = None,
        precision: dict[str, Any] | None = None,
        two_views: bool = False,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        preprocessor = {'type': 'mmpretrain.SelfSupDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone=build(backbone), data_preprocessor=build(preprocessor), init_cfg=init_cfg)
        if not objectives:
            raise ValueError('objectives is empty: add at least one.')
        if not hasattr(self.backbone, 'tap_spec'):
            kind = f'{type(self.backbone).__module__.partition(".")[0]}.{type(self.backbone).__name__}'
            raise ValueError(
                f"backbone: {kind} has no taps. Use dict(type='BackboneStudent', network=dict(type='{kind}', …))."
            )
        student = StudentContext(self.backbone, *pixel_statistics(self.data_preprocessor, self.backbone.in_channels))
        if wrong := [name for name in (*teachers, *objectives) if 'loss' in name]:
            raise ValueError(f"{wrong}: mmengine sums every result with 'loss' in its name; choose other names.")
        self.teachers = nn.ModuleDict({name: build(cfg, student=student) for name, cfg in teachers.items()})  # type: ignore[assignment]
        self.masking: Masking = build(masking, student=student)
        if self.masking.hides and not self.backbone.can_hide:
            raise ValueError(
                f'{type(self.backbone).__name__} sees every patch, but {type(self.masking).__name__} hides some. Use '
                'NoMasking, a MaskTokenViT or VisibleViT, or the option mask_at of a BackboneStudent.'
            )
        context = DistillContext(student, self.teachers, self.masking)
        terms = {name: build_objective(name, cfg, context) for name, cfg in objectives.items()}
        self.objectives = nn.ModuleDict(terms)  # type: ignore[assignment]
        asked = {'objectives': tuple(terms)} if balance is not None and accepts(balance, 'objectives') else {}
        self.balance: Balance = Balance() if balance is None else build(balance, **asked)
        for name, module in self.named_modules():
            if isinstance(module, DropPath):
                module.name = name  # what two networks skip is independent
        self.num_views = 2 if two_views else 1
        self.student_taps = tuple({tap: None for term in terms.values() for tap in term.student_taps})
        self.requests = self._collect_requests()
        if precision is not None:
            check_options(set_precision, precision, ['model'])  # type: ignore[arg-type]
            set_precision(self, **precision)
        self._steps_not_followed: int | None = 0  # None once something promised to call after_step

    def forward(self, inputs: Tensor | Sequence[Tensor], data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Call ``loss`` or ``extract_feat``, by ``mode``. Raises ValueError if a training batch lacks the teachers' view."""
        if mode == 'loss' and isinstance(inputs, Tensor) and self.num_views > 1:
            raise ValueError('two_views=True, but the pipeline gives one view of each image: use MultiView with two.')
        return super().forward(inputs, data_samples, mode)

    def loss(self, inputs: Tensor | Sequence[Tensor], data_samples: Any = None, **_: Any) -> dict[str, Tensor]:
        """One step: mask → teacher → target → student → head → loss.

        Args:
            inputs: Normalised images (B, C, H, W), or a list of the views, as mmpretrain's preprocessor returns.
            data_samples: If they contain ``mask`` (True = hidden), it is used instead of drawing one.

        Returns:
            ``loss_<objective>`` for each objective, and values that are only logged: the share of hidden patches, and the
            spread of targets and student features.
        """
        self._check_followed()
        images_BCHW, *others = views(inputs, self.num_views)
        cache = FeatureCache(self.teachers, self.requests, others[0] if others else images_BCHW)
        mask = self._given_mask(data_samples)
        if mask is None:
            mask = self.masking(images_BCHW, cache.before_mask)

        student = self.backbone(mask.repeat(images_BCHW), mask, self.student_taps)

        terms, results = {}, {'hidden_share': mask.hidden_BL.float().mean()}
        for name, objective in self.objectives.items():
            teacher = cache.features(objective.teacher, mask)
            terms[name], watched = objective(teacher, student, mask)
            results.update({f'{name}_{what}': value for what, value in watched.items()})
        results.update({f'loss_{name}': loss for name, loss in self.balance(terms).items()})
        results.update(self.balance.watched)
        return results

    def extract_feat(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute the student's tokens of the intact images after its final norm, (B, 1 + L, D)."""
        return self.backbone(views(inputs, self.num_views)[0]).tokens('output')

    def init_weights(self) -> None:
        """Load the checkpoint of the student's ``init_cfg``, then let teachers copy the student."""
        super().init_weights()
        for teacher in self.teachers.values():
            teacher.start_from(self.backbone)

    def begin_training(self, progress: Progress) -> None:
        """Set all schedules, at the start or when resuming; call ``after_step`` after every step from here on."""
        self._steps_not_followed = None
        for objective in self.objectives.values():
            objective.set_progress(progress)

    def after_step(self, progress: Progress) -> None:
        """Update teachers and schedules; call it after every optimiser step, as ``TeacherUpdateHook`` does."""
        for teacher in self.teachers.values():
            teacher.after_step(self.backbone, progress)
        self.begin_training(progress)

    @property
    def stages(self) -> Stages | None:
        """Stages requested by the teachers, if any. Raises ValueError if two teachers request different stages."""
        asked = {teacher.stages for teacher in self.teachers.values() if teacher.stages is not None}
        if len(asked) > 1:
            raise ValueError(
                f'The teachers request different stages, {sorted(map(str, asked))}. Use the same stages for all.'
            )
        return next(iter(asked), None)

    def promote_teachers(self) -> None:
        """Replace every teacher that requests stages by the student."""
        for teacher in self.teachers.values():
            if teacher.stages is not None:
                teacher.promote(self.backbone)

    def reset_student(self) -> None:
        """Draw new weights for the student and its heads, as at the start of a stage."""
        self.backbone.reset_parameters()
        for objective in self.objectives.values():
            objective.reset_heads()

    def _check_followed(self) -> None:
        """Raise at the second training step if teachers or weights should change and nothing updates them."""
        if self._steps_not_followed is None or not self.training or not torch.is_grad_enabled():
            return
        self._steps_not_followed += 1
        changing = [f"teacher '{name}'" for name, teacher in self.teachers.items() if teacher.changes]
        changing += [f"schedule of objective '{name}'" for name, term in self.objectives.items() if term.scheduled]
        if changing and self._steps_not_followed > 1:
            raise ValueError(
                f'The {" and the ".join(changing)} should change during training, but nothing changes it: add '
                "dict(type='mkd_plugin.TeacherUpdateHook') to custom_hooks, or, in your own training loop, call "
                'model.begin_training(progress) first and model.after_step(progress) after every optimiser step.'
            )

    def _collect_requests(self) -> dict[str, TeacherRequest]:
        """Collect what masking and objectives read of each teacher, so that it runs once and no further than needed."""
        taps: dict[str, list[str]] = {name: [] for name in self.teachers}
        before_mask = self.masking.teacher_taps()
        for name, needed in before_mask.items():
            if name not in taps:
                raise ValueError(f"The masking reads the teacher '{name}', but there are only {sorted(taps)}.")
            if not self.teachers[name].sees_all:
                raise ValueError(
                    f"The masking reads the teacher '{name}', which must then see the whole image: sees='all'."
                )
            specs = [self.teachers[name].tap_spec(tap) for tap in needed]  # raises if there is no such tap
            if self.masking.reads_cls and not all(spec.cls for spec in specs):
                raise ValueError(
                    f"{type(self.masking).__name__} reads the attention of cls, which '{name}' does not have."
                )
            taps[name] += needed
        regions: dict[str, list[Region]] = {name: [] for name in self.teachers}
        for objective in self.objectives.values():
            taps[objective.teacher] += objective.teacher_taps
            regions[objective.teacher].append(objective.region)
        idle = [name for name, needed in taps.items() if not needed]
        if idle:
            raise ValueError(f'Nothing reads the teachers {idle}: name them in an objective, or leave them out.')
        return {
            name: TeacherRequest(
                taps=tuple(dict.fromkeys(needed)),
                region=None if name in before_mask else Region.union(regions[name]),
            )
            for name, needed in taps.items()
        }

    def _given_mask(self, data_samples: Any) -> TokenMask | None:
        """Read the mask in the data samples, if any. Raises ValueError if student or teachers cannot use it."""
        if not data_samples or 'mask' not in data_samples[0]:
            return None
        masking = self.masking
        if masking.per_image > 1 or set(masking.regions()) != set(Masking.regions(masking)):
            raise ValueError(
                f'The data contain one mask per image, but {type(masking).__name__} draws several or declares further regions.'
            )
        device = next(self.backbone.parameters()).device
        hidden_BL = torch.stack([torch.as_tensor(sample.mask).flatten() for sample in data_samples]).bool().to(device)
        if hidden_BL.shape[1] != masking.num_patches:
            raise ValueError(
                f'The data contain masks of {hidden_BL.shape[1]} patches, but the student has {masking.num_patches}.'
            )
        networks = (self.backbone, *self.teachers.values())
        if self.backbone.can_hide and all(network.sees_all for network in networks):
            return TokenMask(hidden_BL)  # no network needs the same number in every image
        counts = (~hidden_BL).sum(1).tolist()  # synchronises: a given mask serves to reproduce a step
        if set(counts) != {masking.num_visible}:
            raise ValueError(
                f'The data contain masks with {sorted(set(counts))} visible patches, but the student or a teacher needs '
                f"the masking's {masking.num_visible} in every image."
            )
        return TokenMask.from_hidden(hidden_BL, masking.num_visible)


def build_objective(name: str, cfg: Mapping[str, Any], context: DistillContext) -> Objective:
    """Build an objective; errors (ValueError) start with its name."""
    try:
        check_options(Objective, cfg, ['context'])
        check_values('Objective', cfg, parameters_of(Objective)[0])
        return Objective(context=context, **cfg)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Objective '{name}': {error}") from error


def views(inputs: Tensor | Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """List the views of a batch. Raises ValueError if the pipeline returns another number of them."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    if len(inputs) != count:
        raise ValueError(
            f'MaskedDistiller takes {("one view", "two views")[count - 1]} of each image, but the pipeline returns '
            f'{len(inputs)}. For one view for the student and one for the teachers, set two_views=True.'
        )
    return inputs
