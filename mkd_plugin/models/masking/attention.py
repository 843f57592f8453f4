"""Attention-guided masking (MILAN)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.lessons import Lessons
from mkd_plugin.models.masking.base import Masking
from mkd_plugin.models.masking.random import count_visible
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import QueryKey, TokenMask


def attention_of_cls(logits: QueryKey, num_prefix: int) -> Tensor:
    """How much cls attends to each patch, averaged over heads, (B, L); the rows do not sum to 1."""
    logits_BHN = torch.einsum('bhk,bhnk->bhn', logits.q_BHNK[:, :, 0] * logits.scale, logits.k_BHNK)
    return logits_BHN.softmax(dim=-1).mean(dim=1)[:, num_prefix:]


@MODELS.register_module()
class AttentionMasking(Masking):
    """Shows the student patches that a teacher's cls token attends to.

    The visible patches are drawn without replacement with probabilities proportional to the attention of the teacher's
    cls token in its last block (MILAN, Sec. 3.3).

    Args:
        student: The student, for its grid.
        teacher: Name of the teacher whose attention guides the draw; it must see the whole image.
        ratio: Share of hidden patches; floor(L · (1 − ratio)) stay visible.
        num_visible: The number of visible patches itself, instead of ``ratio``.

    Raises:
        ValueError: As :class:`RandomMasking`; the teacher has no attention.
    """

    tap = 'logit:-1'

    def __init__(
        self, *, student: StudentContext, teacher: str, ratio: float | None = None, num_visible: int | None = None
    ) -> None:
        super().__init__(student=student)
        self.num_visible = count_visible(self.num_patches, ratio, num_visible)
        self.teacher = teacher

    def teacher_taps(self) -> Mapping[str, tuple[str, ...]]:
        """The attention's logits of the last block."""
        return {self.teacher: (self.tap,)}

    def forward(self, images_BCHW: Tensor, lessons: Lessons) -> TokenMask:
        """Draw one mask an image."""
        features = lessons.features(self.teacher, mask=None)
        logits = features.taps[self.tap]
        assert isinstance(logits, QueryKey)
        attention_BL = attention_of_cls(logits, features.num_prefix)
        # the largest of log p + Gumbel noise are a draw without replacement
        noise_BL = -torch.empty_like(attention_BL, dtype=torch.float32).exponential_().log()
        ids_BV = (attention_BL.float().log() + noise_BL).topk(self.num_visible, dim=1).indices
        return TokenMask.from_kept(ids_BV, self.num_patches)
