"""How the terms of several objectives are combined, beside their plain means (:class:`~.protocols.Balance`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mkd_plugin.models.protocols import Balance, Term
from mkd_plugin.registry import MODELS
from mkd_plugin.utils.draws import draw_uniform


@MODELS.register_module()
class RunningBalance(Balance):
    """Divide each objective's term by a running size of its losses, so that all have the same; then weigh it.

    The size is of the losses per image of all processes, averaged over steps with the present one included. It is logged as
    ``<objective>_size``.

    Args:
        objectives: Names of the objectives; the model sets them.
        by: 'spread', the standard deviation over images and steps (at least a hundredth of the mean), or 'mean'.
        momentum: Factor by which the weight of earlier steps decays.

    Raises:
        ValueError: ``by`` is unknown, or ``momentum`` not in [0, 1).
    """

    moments: Tensor
    steps: Tensor

    def __init__(self, *, objectives: Sequence[str], by: str = 'spread', momentum: float = 0.99) -> None:
        super().__init__()
        if by not in ('spread', 'mean'):
            raise ValueError(f"by='{by}': use 'spread' or 'mean'.")
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum={momentum}: it must lie in [0, 1).')
        self.by, self.momentum = by, momentum
        self.register_buffer('moments', torch.zeros(2, len(objectives), dtype=torch.float64))
        self.register_buffer('steps', torch.zeros((), dtype=torch.float64))  # 1 − momentum^t

    def forward(self, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        """Map objective → term to objective → loss."""
        if self.training:
            self._add(torch.stack([replace(term, weight=1.0).per_image() for term in terms.values()]).detach())
        mean_O, square_O = self.moments / self.steps
        spread_O = (square_O - mean_O.square()).clamp(min=0).sqrt().maximum(0.01 * mean_O)
        known_O = torch.where(self.steps > 0, spread_O if self.by == 'spread' else mean_O, 1.0)
        sizes = dict(zip(terms, known_O, strict=True))
        self.watched = {f'{name}_size': size for name, size in sizes.items()}
        means = {name: term.mean() for name, term in terms.items()}
        return {name: mean / sizes[name].to(mean.dtype) for name, mean in means.items()}

    def _add(self, losses_OB: Tensor) -> None:
        moments_2O = torch.stack([losses_OB, losses_OB.square()]).double().mean(2)
        all_reduce(moments_2O, 'mean')
        self.moments.lerp_(moments_2O, 1 - self.momentum)
        self.steps.lerp_(torch.ones_like(self.steps), 1 - self.momentum)


@MODELS.register_module()
class TeacherDropping(Balance):
    """Keep, for each image, the teacher of the largest loss, and drop every other one at random (UNIC, Sec. 3.3).

    A teacher's loss is the sum of its objectives. As in the reference code, the sum of what is kept is divided by the number
    of kept pairs of image and teacher in the batch (here of all processes): without dropping it is the mean over teachers. The
    share of images that keep a teacher is logged as ``<teacher>_kept``, each objective's mean over all images as
    ``<objective>_mean``.

    Args:
        drop: Probability of dropping a teacher.

    Raises:
        ValueError: ``drop`` is no probability.
    """

    def __init__(self, *, drop: float = 0.5) -> None:
        super().__init__()
        if not 0 <= drop <= 1:
            raise ValueError(f'drop={drop}: it must lie in [0, 1].')
        self.drop = drop

    def forward(self, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        """Map objective → term to objective → loss."""
        losses = {name: term.per_image() for name, term in terms.items()}
        teachers = list(dict.fromkeys(term.teacher for term in terms.values()))
        of_teachers = [[losses[name] for name, term in terms.items() if term.teacher == one] for one in teachers]
        total_TB = torch.stack([torch.stack(parts).sum(0) for parts in of_teachers]).detach()
        drawn_TB = draw_uniform('teacher dropping', list(total_TB.shape), 1, total_TB.device)
        kept_TB = ((total_TB == total_TB.amax(0)) | (drawn_TB >= (self.drop if self.training else 0))).to(total_TB)
        all_reduce(count := kept_TB.sum(), 'mean')
        self.watched = {f'{one}_kept': kept_B.mean() for one, kept_B in zip(teachers, kept_TB, strict=True)}
        self.watched |= {f'{name}_mean': loss_B.detach().mean() for name, loss_B in losses.items()}
        rows = dict(zip(teachers, kept_TB, strict=True))
        return {name: (losses[name] * rows[term.teacher]).sum() / count for name, term in terms.items()}
