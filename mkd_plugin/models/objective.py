"""One term of the loss: L( N( T(image) ), H( S(masked image) ) ) over a region of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.models.losses import TORCH_LOSSES
from mkd_plugin.models.protocols import DistillContext, Head, Progress, Term
from mkd_plugin.models.schedules import build_schedule
from mkd_plugin.registry import build, find
from mkd_plugin.structures import Region, RegionTokens, TapSpec, TokenFeatures, TokenMask


class Objective(nn.Module):
    """Compares what a teacher gives at a tap with what a head makes of the student's features.

    With several taps the first of the teacher goes with the first of the student and so on, each pair with a head of its
    own, and the losses are averaged. A head with ``many_taps`` reads all of the student's for the teacher's one.

    Args:
        context: Student, teachers and masking, to check against.
        teacher: T, by its name in the algorithm's ``teachers``.
        tap: The teacher's tap or taps.
        student: The student's tap or taps, as many.
        loss: L: config of an elementwise loss, for example ``dict(type='SmoothL1Loss', beta=2.0)``; torch's own are
            given ``reduction='none'``.
        region: Tokens that count: a region that the masking declares ('hidden', 'visible', 'all', …), with '+cls' or
            without, or 'cls' alone.
        head: H: config of a head; None compares the student's features themselves.
        normalize: N: config of a normalisation of the target; None leaves it raw.
        normalize_prediction: Apply N to the prediction as well (DMAE's reference code).
        weight: Factor of this term in the sum: a number, or the config of a ramp.

    Raises:
        ValueError: The parts do not fit each other; the message says which.
    """

    heads: Sequence[Head]

    def __init__(
        self,
        *,
        context: DistillContext,
        teacher: str,
        tap: str | Sequence[str],
        student: str | Sequence[str],
        loss: dict[str, Any],
        region: str,
        head: dict[str, Any] | None = None,
        normalize: dict[str, Any] | None = None,
        normalize_prediction: bool = False,
        weight: float | dict[str, Any] = 1.0,
    ) -> None:
        super().__init__()
        if teacher not in context.teachers:
            raise ValueError(
                f"An objective names the teacher '{teacher}', but there are only {sorted(context.teachers)}."
            )
        if normalize_prediction and normalize is None:
            raise ValueError('normalize_prediction=True needs a normalize=… to apply.')
        self.schedule = build_schedule(weight, low=0, high=float('inf'), name='weight')
        self.scheduled = isinstance(weight, dict)
        self.teacher, self.weight = teacher, self.schedule(Progress(0, 1))
        self.teacher_taps, self.student_taps = as_tuple(tap), as_tuple(student)
        self.region = Region.parse(region, context.masking.regions())
        self.normalize_prediction = normalize_prediction
        self.loss = build_loss(loss)
        self.pairs = self._pair_taps(head)
        heads, normalizations = zip(
            *(self._build_pair(head, normalize, context, *pair) for pair in self.pairs), strict=True
        )
        self.heads = nn.ModuleList(heads)  # type: ignore[assignment]
        self.normalizations = nn.ModuleList(normalizations)
        self._check_region(region, context)

    def _pair_taps(self, head: dict[str, Any] | None) -> list[tuple[str, tuple[str, ...]]]:
        """Pair each tap of the teacher with the student's taps that one head reads for it."""
        head_class = find(head['type']) if head is not None and 'type' in head else None
        if head_class is not None and getattr(head_class, 'many_taps', False):
            if len(self.teacher_taps) != 1:
                raise ValueError(
                    f"tap={list(self.teacher_taps)}: {head_class.__name__} reads all of the student's taps for one tap of "
                    'the teacher. Write an objective for each.'
                )
            return [(self.teacher_taps[0], self.student_taps)]
        if len(self.teacher_taps) != len(self.student_taps):
            raise ValueError(
                f'tap={list(self.teacher_taps)} and student={list(self.student_taps)}: give as many taps of the student as '
                'of the teacher.'
            )
        return [(tap, (student,)) for tap, student in zip(self.teacher_taps, self.student_taps, strict=True)]

    def _build_pair(
        self,
        head_cfg: dict[str, Any] | None,
        normalize: dict[str, Any] | None,
        context: DistillContext,
        tap: str,
        student_taps: tuple[str, ...],
    ) -> tuple[Head, nn.Module]:
        """Build H and N for a pair of taps, and check that they fit."""
        target = context.teachers[self.teacher].tap_spec(tap)
        sources = [context.student.network.tap_spec(student_tap) for student_tap in student_taps]
        for student_tap, source in zip(student_taps, sources, strict=True):
            self._check_taps(tap, target, student_tap, source)
        cfg = {'type': 'NoHead'} if head_cfg is None else dict(head_cfg)
        stated = cfg.pop('out_width', target.channels)
        if stated != target.channels:
            raise ValueError(
                f"The head predicts out_width={stated}, but '{tap}' of the teacher '{self.teacher}' has "
                f'{target.channels} channels. Leave out_width out: it is filled in.'
            )
        head: Head = build(cfg, in_width=sources[0].channels, out_width=target.channels, grid=context.student.grid)
        if target.kind not in head.kinds:
            raise ValueError(
                f"{type(head).__name__} takes {' or '.join(head.kinds)}, but '{student_taps[0]}' gives {target.kind}."
            )
        if self.region.cls and not (head.predicts_cls and target.cls):
            lacking = f"The teacher '{self.teacher}' has" if head.predicts_cls else f'{type(head).__name__} predicts'
            mend = (
                f"use region='{self.region.patches}' without '+cls'" if self.region.patches else 'choose another region'
            )
            raise ValueError(f'{lacking} no cls token: {mend}.')
        return head, build_normalization(normalize, target.channels)

    def _check_taps(self, tap: str, target: TapSpec, student_tap: str, source: TapSpec) -> None:
        if target.kind != source.kind:
            raise ValueError(
                f"'{tap}' of the teacher gives {target.kind}, '{student_tap}' of the student {source.kind}: "
                'relations are compared with relations, tokens with tokens.'
            )
        if target.classes != getattr(self.loss, 'wants_classes', False):
            raise ValueError(
                f"'{tap}' of the teacher '{self.teacher}' gives {'class indices' if target.classes else 'features'}, which "
                f'{type(self.loss).__name__} does not compare: TokenCrossEntropy goes with class indices, and only with them.'
            )

    def _check_region(self, text: str, context: DistillContext) -> None:
        if self.region.patches is None:
            return
        masking, spec = context.masking, context.masking.regions()[self.region.patches]
        if spec.empty:
            raise ValueError(f"region='{text}' holds no token: {type(masking).__name__} hides nothing. Use 'all'.")
        if spec.visible or not masking.hides:
            return
        if not context.teachers[self.teacher].sees_all:
            raise ValueError(f"region='{text}': the teacher '{self.teacher}' sees visible patches only. Use 'visible'.")
        if not context.student.network.sees_all and not all(head.reaches_hidden for head in self.heads):
            raise ValueError(
                f"region='{text}': {type(context.student.network).__name__} shows visible patches only and "
                f'{type(self.heads[0]).__name__} cannot predict the others. Use a TransformerDecoder, a MaskTokenViT, or '
                "region='visible'."
            )

    def reset_heads(self) -> None:
        """Draw new weights for the heads, as at the start of a stage."""
        for head in self.heads:
            head.reset_parameters()

    def set_progress(self, progress: Progress) -> None:
        """Follow the weight's schedule."""
        self.weight = self.schedule(progress)

    def forward(
        self, teacher: TokenFeatures, student: TokenFeatures, mask: TokenMask
    ) -> tuple[Term, dict[str, Tensor]]:
        """Compute the term of the loss, and what to watch beside it.

        Args:
            teacher: The teacher's features.
            student: The student's features.
            mask: The student's mask.

        Returns:
            L(N(T), H(S)) of each pair, elementwise, and the spread of targets and student features: the standard
            deviation over tokens, averaged over channels, for the last pair. If one of them falls to 0, the run has
            collapsed.
        """
        region = self.region.tokens(mask)
        losses, watched = [], {}
        for (tap, student_taps), head, normalize in zip(self.pairs, self.heads, self.normalizations, strict=True):
            target = apply(normalize, region, at_least_float32(teacher.select(tap, region)))
            prediction = at_least_float32(head(student, student_taps, region))
            if self.normalize_prediction:
                prediction = apply(normalize, region, prediction)
            losses.append(apply(self.loss, region, prediction, target))
            watched = {'target_std': spread(target), 'student_std': spread(student.taps[student_taps[-1]].watched())}
        return Term(tuple(losses), region, self.weight), watched


def as_tuple(taps: str | Sequence[str]) -> tuple[str, ...]:
    """One tap or several, always as a tuple."""
    return (taps,) if isinstance(taps, str) else tuple(taps)


def apply(component: nn.Module, region: RegionTokens, *tensors: Tensor) -> Tensor:
    """Call N or L, with the region if it asks for it."""
    return component(*tensors, region=region) if getattr(component, 'wants_region', False) else component(*tensors)


def build_normalization(cfg: dict[str, Any] | None, width: int) -> nn.Module:
    """Build N; one that keeps statistics per channel is told their number."""
    if cfg is None:
        return nn.Identity()
    component = find(cfg['type']) if 'type' in cfg else None
    wants_width = component is not None and 'width' in inspect.signature(component).parameters
    return build(cfg, **({'width': width} if wants_width else {}))


def build_loss(cfg: dict[str, Any]) -> nn.Module:
    """Build a loss; torch's own are made elementwise, because the objective owns the mean.

    Raises:
        ValueError: The config states a reduction.
    """
    if 'reduction' in cfg:
        raise ValueError(f'loss={cfg}: leave reduction out, the objective averages over its region.')
    pointwise = 'type' in cfg and find(cfg['type']) in TORCH_LOSSES
    return build(cfg, **({'reduction': 'none'} if pointwise else {}))


def at_least_float32(x: Tensor) -> Tensor:
    """Raise half precision to float32 for normalisation and loss, even under autocast; class indices stay integers."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Standard deviation over all tokens of the batch, averaged over channels."""
    return x.flatten(0, -2).float().std(dim=0, correction=0).mean()
