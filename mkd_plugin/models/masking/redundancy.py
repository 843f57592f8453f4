"""Progressive redundant-token masking (Hybrid Distill, Sec. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.lessons import Lessons
from mkd_plugin.models.masking.base import Masking
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask, take


def drop_most_average(tokens_BLD: Tensor, ids_kept_BV: Tensor, num_keep: int) -> Tensor:
    """Of the tokens still kept, keep the ``num_keep`` that are least like their average (cosine).

    Args:
        tokens_BLD: Patch tokens of the full grid.
        ids_kept_BV: Patches still kept.

    Returns:
        The ids that stay, (B, num_keep).
    """
    kept_BVD = take(tokens_BLD, ids_kept_BV)
    similarity_BV = F.cosine_similarity(kept_BVD, kept_BVD.mean(dim=1, keepdim=True), dim=-1)
    return ids_kept_BV.gather(1, similarity_BV.topk(num_keep, dim=1, largest=False).indices)


@MODELS.register_module()
class RedundancyMasking(Masking):
    """Drops, at several layers of a teacher, the kept tokens that are most similar to their average.

    The teacher always runs on the full image; only the student is masked. After i of n layers
    round(L · (1 − drop)^i) patches are kept, so the student sees round(L · (1 − drop)^n). That similarity is the cosine
    to the mean of the kept patch tokens, without cls, is inferred: the paper does not say.

    Args:
        student: The student, for its grid.
        teacher: Name of the teacher that ranks the tokens (T_m).
        drop: K, the share dropped at each layer.
        at: Where tokens are ranked: a number is the *input* of that block, ``'last'`` the output of the last one (with
            ``at=('last',)`` the paper's direct, single-shot masking).

    Raises:
        ValueError: ``drop`` is outside (0, 1), ``at`` is empty or holds something else, or no patch would be left.
    """

    def __init__(
        self, *, student: StudentContext, teacher: str, drop: float = 0.3, at: Sequence[int | str] = (0, 4, 8)
    ) -> None:
        super().__init__(student=student)
        if not 0 < drop < 1:
            raise ValueError(
                f'drop={drop}: the share dropped at a layer must lie in (0, 1). To drop nothing, use NoMasking.'
            )
        if not at or isinstance(at, str):
            raise ValueError(f'at={at!r}: name at least one block of the teacher whose input is ranked, as a list.')
        self.counts = [round(self.num_patches * (1 - drop) ** (i + 1)) for i in range(len(at))]
        self.num_visible = self.counts[-1]
        if self.num_visible < 1:
            raise ValueError(f'drop={drop} at {len(at)} layers leaves none of {self.num_patches} patches. Lower it.')
        self.teacher = teacher
        self.taps = tuple(tap_of(place) for place in at)

    def teacher_taps(self) -> Mapping[str, tuple[str, ...]]:
        """The tokens that are ranked."""
        return {self.teacher: self.taps}

    def forward(self, images_BCHW: Tensor, lessons: Lessons) -> TokenMask:
        """Rank and drop, layer by layer."""
        features = lessons.features(self.teacher, mask=None)
        ids_BV = torch.arange(self.num_patches, device=images_BCHW.device).expand(len(images_BCHW), -1)
        for tap, count in zip(self.taps, self.counts, strict=True):
            ids_BV = drop_most_average(features.tokens(tap)[:, features.num_prefix :], ids_BV, count)
        return TokenMask.from_kept(ids_BV, self.num_patches)


def tap_of(place: int | str) -> str:
    """The tap of a place where tokens are ranked.

    Raises:
        ValueError: It is neither a whole number nor 'last'.
    """
    if place == 'last':
        return 'block:-1'
    if not isinstance(place, int) or isinstance(place, bool):
        raise ValueError(f"at holds {place!r}: use the number of a block, whose input is ranked, or 'last'.")
    return f'input:{place}'
