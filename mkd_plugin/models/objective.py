"""One term of the loss: L( N( T(image) ), H( S(masked image) ) ) over a region of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.models.context import DistillContext
from mkd_plugin.models.heads import Head
from mkd_plugin.models.losses import TORCH_LOSSES
from mkd_plugin.registry import build, find
from mkd_plugin.structures import Region, TapSpec, TokenFeatures, TokenMask


def as_tuple(taps: str | Sequence[str]) -> tuple[str, ...]:
    """One tap or several, always as a tuple."""
    return (taps,) if isinstance(taps, str) else tuple(taps)


class Objective(nn.Module):
    """Compares what a teacher says at a tap with what a head makes of the student's features.

    With several taps the first of the teacher goes with the first of the student and so on, each pair with a head of its
    own, and the losses are averaged.

    Args:
        context: Student, teachers and masking, to check against.
        teacher: T, by its name in the algorithm's ``teachers``.
        tap: The teacher's tap or taps.
        student: The student's tap or taps, as many.
        loss: L: config of an elementwise loss, for example ``dict(type='SmoothL1Loss', beta=2.0)``; torch's own are
            given ``reduction='none'``.
        region: Tokens that count: 'hidden', 'visible' or 'all', with '+cls' or without.
        head: H: config of a head; None compares the student's features themselves.
        normalize: N: config of a normalisation of the target; None leaves it raw.
        normalize_prediction: Apply N to the prediction as well (DMAE's reference code).
        weight: Factor of this term in the sum.

    Raises:
        ValueError: The parts do not fit each other; the message says which.
    """

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
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if teacher not in context.teachers:
            raise ValueError(
                f"An objective names the teacher '{teacher}', but there are only {sorted(context.teachers)}."
            )
        if weight < 0:
            raise ValueError(f'weight={weight}: the weight of an objective must not be negative.')
        if normalize_prediction and normalize is None:
            raise ValueError('normalize_prediction=True needs a normalize=… to apply.')
        self.teacher, self.weight = teacher, weight
        self.teacher_taps, self.student_taps = as_tuple(tap), as_tuple(student)
        if len(self.teacher_taps) != len(self.student_taps):
            raise ValueError(f'tap={tap} and student={student}: give as many taps of the student as of the teacher.')
        self.region = Region.parse(region)
        self.normalize = nn.Identity() if normalize is None else build(normalize)
        self.normalize_prediction = normalize_prediction
        self.loss = build_loss(loss)
        pairs = zip(self.teacher_taps, self.student_taps, strict=True)
        self._heads = [self._build_head(head, context, *pair) for pair in pairs]
        self.heads = nn.ModuleList(self._heads)
        self._check_region(region, context)

    def _build_head(self, cfg: dict[str, Any] | None, context: DistillContext, tap: str, student_tap: str) -> Head:
        target = context.teachers[self.teacher].tap_spec(tap)
        source = context.student.network.tap_spec(student_tap)
        self._check_taps(tap, target, student_tap, source)
        cfg = {'type': 'NoHead'} if cfg is None else dict(cfg)
        stated = cfg.pop('out_width', target.channels)
        if stated != target.channels:
            raise ValueError(
                f"The head predicts out_width={stated}, but '{tap}' of the teacher '{self.teacher}' has "
                f'{target.channels} channels. Leave out_width out: it is filled in.'
            )
        sizes = {'in_width': source.channels, 'out_width': target.channels, 'grid': context.student.grid}
        head: Head = build(cfg, **sizes)
        if target.kind not in head.kinds:
            raise ValueError(
                f"{type(head).__name__} takes {' or '.join(head.kinds)}, but '{student_tap}' gives {source.kind}."
            )
        if self.region.cls and not (head.predicts_cls and target.cls):
            lacking = f"The teacher '{self.teacher}' has" if head.predicts_cls else f'{type(head).__name__} predicts'
            raise ValueError(f"{lacking} no cls token: use region='{self.region.patches}' without '+cls'.")
        return head

    def _check_taps(self, tap: str, target: TapSpec, student_tap: str, source: TapSpec) -> None:
        if target.kind != source.kind:
            raise ValueError(
                f"'{tap}' of the teacher gives {target.kind}, '{student_tap}' of the student {source.kind}: "
                'relations are compared with relations, tokens with tokens.'
            )
        if target.classes != getattr(self.loss, 'wants_classes', False):
            raise ValueError(
                f"'{tap}' of the teacher '{self.teacher}' gives {'class numbers' if target.classes else 'features'}, which "
                f'{type(self.loss).__name__} does not compare: TokenCrossEntropy goes with class numbers, and only with them.'
            )

    def _check_region(self, region: str, context: DistillContext) -> None:
        masking, patches = context.masking, self.region.patches
        if patches == 'hidden' and masking.num_visible == masking.num_patches:
            raise ValueError(f"region='{region}' holds no token: {type(masking).__name__} hides nothing. Use 'all'.")
        hides = masking.num_visible < masking.num_patches
        if patches == 'visible' or not hides:
            return
        if not context.teachers[self.teacher].sees_all:
            raise ValueError(
                f"region='{region}': the teacher '{self.teacher}' sees visible patches only. Use 'visible'."
            )
        if not context.student.network.sees_all and not all(head.reaches_hidden for head in self._heads):
            raise ValueError(
                f"region='{region}': {type(context.student.network).__name__} shows visible patches only and "
                f'{type(self._heads[0]).__name__} cannot predict the others. Use a TransformerDecoder, a MaskTokenViT, or '
                "region='visible'."
            )

    def reset_heads(self) -> None:
        """Draw new weights for the heads, as at the start of a stage."""
        for head in self._heads:
            head.reset_parameters()

    def forward(
        self, teacher: TokenFeatures, student: TokenFeatures, mask: TokenMask
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the loss, and what to watch beside it.

        Args:
            teacher: The teacher's features.
            student: The student's features.
            mask: The student's mask.

        Returns:
            weight · mean over pairs and region of L(N(T), H(S)), and the spread of targets and student features: the
            standard deviation over tokens, averaged over channels, for the last pair. If one of them falls to 0, the run
            has collapsed.
        """
        region = self.region.tokens(mask)
        terms, watched = [], {}
        for tap, student_tap, head in zip(self.teacher_taps, self.student_taps, self._heads, strict=True):
            target = self.normalize(at_least_float32(teacher.select(tap, region)))
            prediction = at_least_float32(head(student, student_tap, region))
            if self.normalize_prediction:
                prediction = self.normalize(prediction)
            terms.append(region.mean(self.loss(prediction, target)))
            watched = {'target_std': spread(target), 'student_std': spread(student.taps[student_tap].watched())}
        return self.weight * torch.stack(terms).mean(), watched


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
    """Normalisation and loss are computed in float32 even under autocast (in float64 if that is what comes); class numbers
    stay whole."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Standard deviation over all tokens of the batch, averaged over channels."""
    return x.flatten(0, -2).float().std(dim=0, correction=0).mean()
