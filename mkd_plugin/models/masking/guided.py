"""Maskings guided by a teacher: by its attention (MILAN) or by the redundancy of its tokens (Hybrid Distill)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.models.masking.random import count_visible
from mkd_plugin.models.protocols import Masking, StudentContext, TeacherFeatures
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import QueryKey, TokenMask, take
from mkd_plugin.utils.draws import draw_uniform


def attention_of_cls(logits: QueryKey, num_prefix: int) -> Tensor:
    """Compute the attention of cls to each patch, averaged over heads, (B, L); rows do not sum to 1."""
    logits_BHN = torch.einsum('bhk,bhnk->bhn', logits.q_BHNK[:, :, 0] * logits.scale, logits.k_BHNK)
    return logits_BHN.softmax(dim=-1).mean(dim=1)[:, num_prefix:]


@MODELS.register_module()
class AttentionMasking(Masking):
    """Samples visible patches by a teacher's attention.

    Visible patches are drawn without replacement, with probabilities proportional to the attention of the teacher's cls
    token in its last block (MILAN, Sec. 3.3).

    Args:
        teacher: Name of the teacher whose attention is used; it must see the whole image.
        ratio: Share of hidden patches; floor(L · (1 − ratio)) stay visible.
        num_visible: Number of visible patches, instead of ``ratio``.

    Raises:
        ValueError: Not exactly one of ``ratio`` and ``num_visible`` is given, or it is out of range.
    """

    tap = 'logit:-1'
    reads_cls = True

    def __init__(
        self, *, student: StudentContext, teacher: str, ratio: float | None = None, num_visible: int | None = None
    ) -> None:
        super().__init__(student=student)
        self.num_visible = count_visible(self.num_patches, ratio, num_visible)
        self.teacher = teacher

    def teacher_taps(self) -> Mapping[str, tuple[str, ...]]:
        """Request the attention logits of the last block."""
        return {self.teacher: (self.tap,)}

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw one mask per image."""
        features = teacher_features(self.teacher)
        logits = features.taps[self.tap]
        assert isinstance(logits, QueryKey)
        attention_BL = attention_of_cls(logits, features.num_prefix)
        # the first arrivals at rates p are a sample without replacement; arrival times are exponential: −log(uniform) / p
        uniform_BL = draw_uniform('mask', attention_BL.shape, 0, images_BCHW.device)
        ids_BV = (attention_BL / -uniform_BL.log()).topk(self.num_visible, dim=1).indices
        return TokenMask.from_kept(ids_BV, self.num_patches)


@MODELS.register_module()
class RedundancyMasking(Masking):
    """Hides redundant patches: drops, at several layers of a teacher, the tokens most similar to their mean.

    The teacher always runs on the full image; only the student is masked. After i of n layers round(L · (1 − drop)^i)
    patches remain, so the student sees round(L · (1 − drop)^n). The paper does not define the similarity; cosine
    similarity to the mean of the remaining patch tokens, without cls, is inferred.

    Args:
        teacher: Name of the teacher that ranks the tokens (T_m).
        drop: K, the share dropped at each layer.
        at: Layers at which tokens are ranked: a number for the *input* of that block, ``'last'`` for the output of the
            last block (``at=('last',)`` is the paper's direct, single-shot masking).

    Raises:
        ValueError: ``drop`` is outside (0, 1), ``at`` is empty or holds an invalid entry, or no patch would remain.
    """

    def __init__(
        self, *, student: StudentContext, teacher: str, drop: float = 0.3, at: Sequence[int | str] = (0, 4, 8)
    ) -> None:
        super().__init__(student=student)
        if not 0 < drop < 1:
            raise ValueError(
                f'drop={drop}: the share dropped at each layer must lie in (0, 1). To hide nothing, use NoMasking.'
            )
        if not at or isinstance(at, str):
            raise ValueError(f'at={at!r}: give a list of at least one block of the teacher.')
        self.counts = [round(self.num_patches * (1 - drop) ** (i + 1)) for i in range(len(at))]
        self.num_visible = self.counts[-1]
        if self.num_visible < 1:
            raise ValueError(f'drop={drop} at {len(at)} layers leaves none of {self.num_patches} patches. Lower drop.')
        self.teacher = teacher
        self.taps = tuple(tap_of(place) for place in at)

    def teacher_taps(self) -> Mapping[str, tuple[str, ...]]:
        """Request the tokens to rank."""
        return {self.teacher: self.taps}

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Rank and drop tokens, layer by layer."""
        features = teacher_features(self.teacher)
        ids_BV = torch.arange(self.num_patches, device=images_BCHW.device).expand(len(images_BCHW), -1)
        for tap, count in zip(self.taps, self.counts, strict=True):
            kept_BVD = take(features.tokens(tap)[:, features.num_prefix :], ids_BV)
            similarity_BV = F.cosine_similarity(kept_BVD, kept_BVD.mean(dim=1, keepdim=True), dim=-1)
            ids_BV = ids_BV.gather(1, similarity_BV.topk(count, dim=1, largest=False).indices)
        return TokenMask.from_kept(ids_BV, self.num_patches)


def tap_of(place: int | str) -> str:
    """Convert an entry of ``at`` to a tap. Raises ValueError if it is neither an integer nor 'last'."""
    if place == 'last':
        return 'block:-1'
    if not isinstance(place, int) or isinstance(place, bool):
        raise ValueError(f"at contains {place!r}: use the index of a block, or 'last'.")
    return f'input:{place}'
