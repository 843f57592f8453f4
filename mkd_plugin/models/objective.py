"""One term of the loss: L( N( T(image) ), H( S(masked image) ) ) over a region of tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.models.losses import TORCH_LOSSES
from mkd_plugin.models.protocols import DistillContext, Head, Progress, Stages, Term, reset
from mkd_plugin.models.schedules import build_schedule
from mkd_plugin.models.standardize import FixedStandardize, TargetStatistics
from mkd_plugin.registry import build, find, parameters_of
from mkd_plugin.structures import ALL, VISIBLE, Region, RegionTokens, TapSpec, TokenFeatures, TokenMask

GUIDE = 'docs/tutorials/own_parts.md'  # the contract of each part that a user may write, with an example


class Objective(nn.Module):
    """Compares a teacher's features with a head's predictions from the student's features.

    Several taps are paired in order; each pair has its own head, and the losses are averaged. A head with ``many_taps``
    reads all of the student's taps for one tap of the teacher.

    Args:
        context: Student, teachers and masking, for checks.
        teacher: T: name of a teacher in the algorithm's ``teachers``.
        tap: The teacher's tap or taps.
        student: The student's tap or taps, equally many.
        loss: L: config of an elementwise loss, for example ``dict(type='SmoothL1Loss', beta=2.0)``; torch's losses are
            built with ``reduction='none'``.
        region: Tokens to average over: a region of the masking ('hidden', 'visible', 'all', …), optionally with '+cls',
            or 'cls'.
        head: H: config of a head; None compares the student's features directly.
        normalize: N: config of a normalisation of the target; None for no normalisation.
        normalize_prediction: Apply N to the prediction as well (DMAE's reference code).
        weight: Factor of this term in the sum: a number, or the config of a ramp.

    Raises:
        ValueError: The components are incompatible.
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
            raise ValueError(f"teacher='{teacher}': there is no such teacher. Use one of {sorted(context.teachers)}.")
        if normalize_prediction and normalize is None:
            raise ValueError('normalize_prediction=True needs normalize=….')
        self.schedule = build_schedule(weight, low=0, high=float('inf'), name='weight')
        self.teacher, self.weight = teacher, self.schedule(Progress(0, 1))
        self.teacher_taps, self.student_taps = as_tuple(tap), as_tuple(student)
        if not (self.teacher_taps and self.student_taps):
            raise ValueError('tap and student: name at least one tap of each.')
        targets = {tap: context.teachers[teacher].tap_spec(tap) for tap in self.teacher_taps}  # may run the teacher
        self.region = Region.parse(region, context.masking.regions())
        self.normalize_prediction = normalize_prediction
        self.loss = build_loss(loss, targets[self.teacher_taps[0]].channels)
        masks = getattr(self.loss, 'per_image', context.masking.per_image)
        if masks != context.masking.per_image:
            raise ValueError(
                f'{type(self.loss).__name__} compares {masks} masks of each image, but {type(context.masking).__name__} draws '
                f'{context.masking.per_image}. Use DisjointMasks(parts={masks}).'
            )
        self.pairs = self._pair_taps(head)
        heads, normalizations = zip(
            *(self._build_pair(head, normalize, context, targets[tap], tap, taps) for tap, taps in self.pairs),
            strict=True,
        )
        self.heads = nn.ModuleList(heads)  # type: ignore[assignment]
        self.normalizations = nn.ModuleList(normalizations)
        self.scheduled = isinstance(weight, dict) or any(getattr(one, 'scheduled', False) for one in normalizations)
        self._check_region(region, context)

    def _pair_taps(self, head: dict[str, Any] | None) -> list[tuple[str, tuple[str, ...]]]:
        """Pair each tap of the teacher with the student's taps that its head reads."""
        head_class = find(head['type']) if head is not None and 'type' in head else None
        if head_class is not None and getattr(head_class, 'many_taps', False):
            if len(self.teacher_taps) != 1:
                raise ValueError(
                    f"tap={list(self.teacher_taps)}: {head_class.__name__} reads all of the student's taps for one tap of "
                    'the teacher. Use one objective for each tap of the teacher.'
                )
            return [(self.teacher_taps[0], self.student_taps)]
        if len(self.teacher_taps) != len(self.student_taps):
            raise ValueError(
                f'tap={list(self.teacher_taps)} and student={list(self.student_taps)}: use the same number of taps for both.'
            )
        return [(tap, (student,)) for tap, student in zip(self.teacher_taps, self.student_taps, strict=True)]

    def _build_pair(
        self,
        head_cfg: dict[str, Any] | None,
        normalize: dict[str, Any] | None,
        context: DistillContext,
        target: TapSpec,
        tap: str,
        student_taps: tuple[str, ...],
    ) -> tuple[Head, nn.Module]:
        """Build and check H and N for a pair of taps."""
        sources = [context.student.network.tap_spec(student_tap) for student_tap in student_taps]
        for student_tap, source in zip(student_taps, sources, strict=True):
            self._check_taps(tap, target, student_tap, source)
        check_loss(self.loss, target)
        cfg = {'type': 'NoHead'} if head_cfg is None else dict(head_cfg)
        stated = cfg.pop('out_width', target.channels)
        if stated != target.channels:
            raise ValueError(
                f"The head predicts out_width={stated}, but '{tap}' of the teacher '{self.teacher}' has "
                f'{target.channels} channels. Remove out_width: it is set automatically.'
            )
        network = context.student.network
        check_head(find(cfg['type']) if 'type' in cfg else None)
        known = {'initialization': network.initialization, 'num_taps': len(student_taps)}
        asked = {keyword: value for keyword, value in known.items() if accepts(cfg, keyword)}
        head: Head = build(cfg, in_width=sources[0].channels, out_width=target.channels, grid=network.grid, **asked)
        if target.kind not in head.kinds:
            raise ValueError(
                f"{type(head).__name__} accepts {' or '.join(head.kinds)}, but '{student_taps[0]}' is {target.kind}."
            )
        if head.reads_visible and network.sees_all:
            raise ValueError(f'{type(head).__name__} needs a student of visible patches only. Use a VisibleViT.')
        if head.reads_cls and not sources[0].cls:
            raise ValueError(f'{type(head).__name__} needs a student with a cls token. Use a TransformerDecoder.')
        if self.region.cls and not (head.predicts_cls and target.cls and sources[0].cls):
            who = 'The student' if target.cls else f"The teacher '{self.teacher}'"
            lacking = f'{who} has' if head.predicts_cls else f'{type(head).__name__} predicts'
            others = self.region.patches or VISIBLE.name
            raise ValueError(f"{lacking} no cls token: use region='{others}' without '+cls'.")
        if self.region.patches and not target.patches:
            raise ValueError(f"'{tap}' of the teacher '{self.teacher}' is one vector per image: use region='cls'.")
        width = {'width': target.channels} if normalize is not None and accepts(normalize, 'width') else {}
        normalization = nn.Identity() if normalize is None else build(normalize, **width)
        self._check_statistics(normalization, target, context.teachers[self.teacher].stages)
        return head, normalization

    def _check_statistics(self, normalization: nn.Module, target: TapSpec, stages: Stages | None) -> None:
        name = type(normalization).__name__
        if isinstance(normalization, TargetStatistics) and (self.normalize_prediction or target.kind != 'tokens'):
            raise ValueError(
                f"{name} has statistics of the teacher's channels: use it for tokens, and with normalize_prediction=False."
            )
        if isinstance(normalization, FixedStandardize) and stages is not None and len(stages.shares) > 1:
            raise ValueError(
                f"{name} keeps the statistics of the first stage's teacher, but each stage of '{self.teacher}' has another. "
                'Use RunningStandardize or TokenStandardize.'
            )

    def _check_taps(self, tap: str, target: TapSpec, student_tap: str, source: TapSpec) -> None:
        if target.kind != source.kind:
            raise ValueError(
                f"'{tap}' of the teacher is {target.kind}, but '{student_tap}' of the student is {source.kind}: "
                'compare relations with relations, and tokens with tokens.'
            )
        if target.classes != getattr(self.loss, 'wants_classes', False):
            raise ValueError(
                f"'{tap}' of the teacher '{self.teacher}' gives {'class indices' if target.classes else 'features'}, which "
                f'{type(self.loss).__name__} does not support. Use TokenCrossEntropy for class indices only.'
            )

    def _check_region(self, text: str, context: DistillContext) -> None:
        if self.region.patches is None:
            return
        masking, spec = context.masking, context.masking.regions()[self.region.patches]
        if spec.empty:
            raise ValueError(f"region='{text}' is empty: {type(masking).__name__} hides nothing. Use 'all'.")
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
        """Draw new weights for the heads, and for a loss that has some, as at the start of a stage."""
        for head in self.heads:
            head.reset_parameters()
        reset(self.loss)

    def set_progress(self, progress: Progress) -> None:
        """Update the weight, and the normalisations that have a schedule."""
        self.weight = self.schedule(progress)
        for normalize in self.normalizations:
            if getattr(normalize, 'scheduled', False):
                normalize.set_progress(progress)  # type: ignore[operator]

    def forward(
        self, teacher: TokenFeatures, student: TokenFeatures, mask: TokenMask
    ) -> tuple[Term, dict[str, Tensor]]:
        """Compute the term of the loss, and values to log.

        Args:
            teacher: The teacher's features.
            student: The student's features.
            mask: The student's mask.

        Returns:
            L(N(T), H(S)) of each pair, elementwise, and the spread of targets and student features: the standard
            deviation over tokens, averaged over channels, for the last pair. A fall to 0 indicates a collapse.
        """
        region = self.region.tokens(mask)
        losses, watched = [], {}
        for (tap, student_taps), head, normalize in zip(self.pairs, self.heads, self.normalizations, strict=True):
            target = apply(normalize, region, at_least_float32(teacher.select(tap, region)))
            prediction = at_least_float32(head(student, student_taps, region))
            if self.normalize_prediction:
                prediction = apply(normalize, region, prediction)
            loss = apply(self.loss, region, prediction, target)
            if head.penalty_BR is not None:
                loss = loss + head.penalty_BR[(..., *[None] * (loss.dim() - 2))]
                head.penalty_BR = None  # a model that holds a graph cannot be copied
            losses.append(loss)
            watched = {'target_std': spread(target), 'student_std': spread(student.taps[student_taps[-1]].watched())}
        return Term(tuple(losses), region, self.weight, self.teacher), watched


def as_tuple(taps: str | Sequence[str]) -> tuple[str, ...]:
    """Convert one or several taps to a tuple."""
    return (taps,) if isinstance(taps, str) else tuple(taps)


def apply(component: nn.Module, region: RegionTokens, *tensors: Tensor) -> Tensor:
    """Call N or L, with the region if it asks for it."""
    return component(*tensors, region=region) if getattr(component, 'wants_region', False) else component(*tensors)


def accepts(cfg: dict[str, Any], keyword: str) -> bool:
    """Whether the constructor of a config's component has a keyword."""
    component = find(cfg['type']) if 'type' in cfg else None
    return component is not None and keyword in parameters_of(component)[0]


def build_loss(cfg: dict[str, Any], width: int) -> nn.Module:
    """Build an elementwise loss, with the target's width if its constructor has a keyword ``width``.

    Raises ValueError if the config has a reduction: the objective averages it.
    """
    if 'reduction' in cfg:
        raise ValueError(f'loss={cfg}: remove reduction; the objective averages over its region.')
    pointwise = 'type' in cfg and find(cfg['type']) in TORCH_LOSSES
    return build(cfg, **({'reduction': 'none'} if pointwise else {'width': width} if accepts(cfg, 'width') else {}))


def check_head(component: type | None) -> None:
    """Raise ValueError for a class that is no head, or whose constructor refuses what the objective passes."""
    if component is None:  # `build` says what exists
        return
    parameters, closed = parameters_of(component)
    lacking = [name for name in ('in_width', 'out_width', 'grid') if closed and name not in parameters]
    reason = f'its constructor has no keyword {", ".join(lacking)}' if lacking else 'it does not inherit Head'
    if lacking or not issubclass(component, Head):
        raise ValueError(f'{component.__name__} is no head: {reason}. See {GUIDE}#head.')


def check_loss(loss: nn.Module, target: TapSpec) -> None:
    """Raise ValueError unless L gives a value or a vector for each token of two images, here of zeros.

    mmpretrain's own losses are not called: they average over all tokens, which is right if no token is padding.
    """
    if type(loss).__module__.startswith('mmpretrain.'):
        return
    tokens = (2, 3, target.channels)
    prediction = torch.zeros(tokens if target.kind == 'tokens' else (2, target.channels, 3, 3))
    wanted = torch.zeros(2, 3, 1, dtype=torch.long) if target.classes else prediction
    region = RegionTokens(ALL.name, False, torch.arange(3).expand(2, 3))
    try:
        with torch.no_grad():
            measured = copy.deepcopy(loss)  # it may count its calls
            found = tuple(apply(measured, region, prediction, wanted).shape)
    except RuntimeError:  # it needs as many tokens as a step has, or values, which the meta device lacks
        return
    per_token = tokens[:2] if target.kind == 'tokens' else tokens[:1]
    if found[: len(per_token)] != per_token:
        raise ValueError(
            f'{type(loss).__name__} gives {f"the shape {found}" if found else "a scalar"} for 2 images of 3 tokens. It must '
            f'give one value or vector for each token, which the objective averages over its region. See {GUIDE}#loss.'
        )


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32 for normalisation and loss, even under autocast; keep class indices as integers."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Compute the standard deviation over all tokens of the batch, averaged over channels."""
    return x.flatten(0, -2).float().std(dim=0, correction=0).mean()
