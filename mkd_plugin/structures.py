"""What flows between the components of a step: masks, regions of tokens, and features.

Shape legend, used as suffixes in the whole package:

    B images            L patches of the full grid, row-major     D width (channels of a token)
    V visible patches   M hidden patches                          H attention heads, K channels of a head
    N tokens of a sequence: P prefix tokens (cls first), then patches
    R tokens of a region: [cls], then patches
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


def take(x_BND: Tensor, rows_BR: Tensor) -> Tensor:
    """Pick tokens: ``out[b, r] = x[b, rows[b, r]]``, shape (B, R, D)."""
    return x_BND.gather(1, rows_BR.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))


@dataclass(frozen=True)
class TokenMask:
    """Which patches of each image are hidden from the student.

    Attributes:
        hidden_BL: bool, True = hidden.
        ids_keep_BV: Ids of the visible patches, ascending.
        ids_hide_BM: Ids of the hidden patches, ascending.
        ids_restore_BL: Where patch ``l`` stands in ``cat(visible, hidden)``.
        most_hidden: The most patches that are hidden in any image, if that is known where the number differs.

    The three kinds of ids are None when the number of hidden patches differs between the images of a batch; such a
    mask serves students that see the full length.
    """

    hidden_BL: Tensor
    ids_keep_BV: Tensor | None = None
    ids_hide_BM: Tensor | None = None
    ids_restore_BL: Tensor | None = None
    most_hidden: int | None = None

    @classmethod
    def from_hidden(cls, hidden_BL: Tensor, num_visible: int) -> TokenMask:
        """A mask with the same, known number of visible patches in every image (not checked: it would synchronise)."""
        order_BL = hidden_BL.to(torch.uint8).argsort(dim=1, stable=True)
        return cls(
            hidden_BL=hidden_BL,
            ids_keep_BV=order_BL[:, :num_visible],
            ids_hide_BM=order_BL[:, num_visible:],
            ids_restore_BL=order_BL.argsort(dim=1),
        )

    @classmethod
    def from_kept(cls, ids_keep_BV: Tensor, num_patches: int) -> TokenMask:
        """A mask that shows exactly the patches ``ids_keep_BV``."""
        hidden_BL = torch.ones(ids_keep_BV.shape[0], num_patches, dtype=torch.bool, device=ids_keep_BV.device)
        return cls.from_hidden(hidden_BL.scatter(1, ids_keep_BV, False), ids_keep_BV.shape[1])


@dataclass(frozen=True)
class RegionTokens:
    """The tokens of one batch that a loss is taken over.

    Attributes:
        patches: 'hidden', 'visible' or 'all'.
        cls: Whether the cls token stands before them.
        ids_BR: Patch ids, one row an image.
        weight_BR: 1 for a token of the region (cls included), 0 for one that only fills the rectangle; None when all
            count.
    """

    patches: str
    cls: bool
    ids_BR: Tensor
    weight_BR: Tensor | None = None

    def rows(self, num_prefix: int) -> Tensor:
        """Where the tokens stand in a sequence of ``num_prefix`` prefix tokens and the full grid, (B, R)."""
        rows_BR = self.ids_BR + num_prefix
        return torch.cat([torch.zeros_like(rows_BR[:, :1]), rows_BR], dim=1) if self.cls else rows_BR

    def mean(self, loss: Tensor) -> Tensor:
        """Average an elementwise loss (B, R, …) over the region; a scalar, which a host's loss returns, stays.

        Raises:
            ValueError: The loss is not one value (or vector) per token although the tokens have weights.
        """
        if self.weight_BR is None:
            return loss.mean()
        if loss.shape[:2] != self.weight_BR.shape or loss.dim() > 3:
            raise ValueError(
                f'The number of hidden patches differs between images, so the loss must have the shape (B, R, …) = '
                f'{tuple(self.weight_BR.shape)}, got {tuple(loss.shape)}. Use an elementwise loss on tokens, or a '
                f'masking with a fixed number of hidden patches.'
            )
        loss_BR = loss.flatten(2).mean(2) if loss.dim() > 2 else loss
        return (loss_BR * self.weight_BR).sum() / self.weight_BR.sum().clamp(min=1)  # 0 if nothing is hidden


@dataclass(frozen=True)
class Region:
    """Where a loss is taken: 'hidden', 'visible' or 'all' patches, with '+cls' or without."""

    patches: str
    cls: bool

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read ``'hidden+cls'`` and its like.

        Raises:
            ValueError: The text names no region.
        """
        patches, _, extra = text.partition('+')
        if patches not in ('hidden', 'visible', 'all') or extra not in ('', 'cls'):
            raise ValueError(f"region='{text}': use 'hidden', 'visible' or 'all', with '+cls' or without.")
        return cls(patches, extra == 'cls')

    @classmethod
    def union(cls, regions: Iterable[Region]) -> Region:
        """The smallest region that holds all of these, of which there is at least one."""
        regions = list(regions)
        patches = {region.patches for region in regions}
        return cls(patches.pop() if len(patches) == 1 else 'all', any(region.cls for region in regions))

    def tokens(self, mask: TokenMask) -> RegionTokens:
        """The region's tokens under this batch's mask."""
        ids_BR = {'hidden': mask.ids_hide_BM, 'visible': mask.ids_keep_BV, 'all': None}[self.patches]
        if ids_BR is not None:
            return RegionTokens(self.patches, self.cls, ids_BR)
        if self.patches == 'hidden' and mask.most_hidden is not None:
            first_BR = mask.hidden_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[
                :, : mask.most_hidden
            ]
            return RegionTokens('hidden', self.cls, first_BR, self._weight(mask.hidden_BL.gather(1, first_BR)))
        batch, length = mask.hidden_BL.shape
        every_BL = torch.arange(length, device=mask.hidden_BL.device).expand(batch, length)
        if self.patches == 'all':
            return RegionTokens('all', self.cls, every_BL)
        counts_BL = mask.hidden_BL if self.patches == 'hidden' else ~mask.hidden_BL
        return RegionTokens('all', self.cls, every_BL, self._weight(counts_BL))

    def _weight(self, counts_BR: Tensor) -> Tensor:
        """1 for the patches that count, and for cls if it belongs to the region."""
        return torch.cat([torch.ones_like(counts_BR[:, : int(self.cls)]), counts_BR], dim=1).float()


@dataclass(frozen=True)
class TapSpec:
    """What a tap gives, known before anything runs.

    Attributes:
        kind: 'tokens' or 'relation'.
        channels: Width of a token; for relations the number of heads.
        cls: Whether a cls token stands before the patches.
        classes: Whether it gives the number of a class, for a cross entropy; ``channels`` is then how many there are.
    """

    kind: str
    channels: int
    cls: bool = True
    classes: bool = False


class TapValue(Protocol):
    """What a network gives at a tap; rows are picked before anything expensive is made of it."""

    def at(self, rows: slice | Tensor) -> Tensor: ...

    def watched(self) -> Tensor:
        """Vectors (…, D) whose spread over tokens shows a collapse."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Token features (B, N, D)."""

    x_BND: Tensor

    def at(self, rows: slice | Tensor) -> Tensor:
        """The chosen tokens, (B, R, D)."""
        return self.x_BND[:, rows] if isinstance(rows, slice) else take(self.x_BND, rows)

    def watched(self) -> Tensor:
        """The tokens."""
        return self.x_BND


@dataclass(frozen=True)
class QueryKey:
    """Queries and keys of one attention layer; their product is formed for the chosen tokens only.

    Attributes:
        q_BHNK: Queries.
        k_BHNK: Keys.
        scale: Factor on their product: 1, or K^(−1/2) for the attention's logits.
    """

    q_BHNK: Tensor
    k_BHNK: Tensor
    scale: float = 1.0

    def at(self, rows: slice | Tensor) -> Tensor:
        """Token relations R = scale · Q·Kᵀ per head, (B, H, R, R) (Hybrid Distill, Sec. 3)."""
        q, k = (self._pick(x, rows) for x in (self.q_BHNK, self.k_BHNK))
        return q @ k.transpose(-2, -1) if self.scale == 1 else (q * self.scale) @ k.transpose(-2, -1)

    def regroup(self, num_heads: int) -> QueryKey:
        """The same channels cut into another number of heads; a scale follows the new width of a head.

        Raises:
            ValueError: The channels cannot be cut into so many heads.
        """
        batch, heads, length, channels = self.q_BHNK.shape
        if heads * channels % num_heads:
            raise ValueError(f'{heads * channels} channels of queries cannot be cut into {num_heads} heads.')
        q, k = (
            x.transpose(1, 2).reshape(batch, length, num_heads, -1).transpose(1, 2) for x in (self.q_BHNK, self.k_BHNK)
        )
        return QueryKey(q, k, self.scale if self.scale == 1 else q.shape[-1] ** -0.5)

    def watched(self) -> Tensor:
        """The queries: relations themselves would have to be formed once more."""
        return self.q_BHNK

    @staticmethod
    def _pick(x_BHNK: Tensor, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, slice):
            return x_BHNK[:, :, rows]
        _, heads, _, channels = x_BHNK.shape
        return x_BHNK.gather(2, rows[:, None, :, None].expand(-1, heads, -1, channels))


@dataclass(frozen=True)
class TokenFeatures:
    """Features of one network for one batch.

    Attributes:
        taps: Tap name → value over N tokens.
        num_prefix: P, the prefix tokens before the patches (0 or more; the first is cls).
        mask: The mask under which only the visible patches were computed, in the order of ``mask.ids_keep_BV``; None if
            the patches are the full grid.
        region: The only tokens the taps hold, in its order; None if there is nothing left out.
    """

    taps: Mapping[str, TapValue]
    num_prefix: int
    mask: TokenMask | None = None
    region: RegionTokens | None = None

    def select(self, tap: str, region: RegionTokens) -> Tensor:
        """A tap's value at the tokens of a region: (B, R, D), or (B, H, R, R) for relations."""
        return self.taps[tap].at(self._rows(region))

    def tokens(self, tap: str) -> Tensor:
        """All token features of a tap, (B, N, D)."""
        assert self.region is None, 'there are features of a region only'
        return self.taps[tap].at(slice(None))

    def _shows(self, region: RegionTokens) -> bool:
        assert self.mask is not None and self.mask.ids_keep_BV is not None
        return region.patches == 'visible' or self.mask.ids_keep_BV.shape[1] == self.mask.hidden_BL.shape[1]

    def _rows(self, region: RegionTokens) -> slice | Tensor:
        assert self.mask is None or self._shows(region), 'there are no features of hidden patches'
        if self.region is not None:
            assert region.patches == self.region.patches and region.cls <= self.region.cls, 'a region nobody asked for'
            return slice(int(self.region.cls and not region.cls), None)
        every_patch_in_order = self.mask is not None or region.patches == 'all'
        if every_patch_in_order and self.num_prefix == int(region.cls):
            return slice(None)
        if every_patch_in_order and not region.cls:
            return slice(self.num_prefix, None)
        if self.mask is not None:  # the tokens stand for the visible patches: count them, not the grid
            counted_R = torch.arange(region.ids_BR.shape[1], device=region.ids_BR.device)
            region = replace(region, ids_BR=counted_R.expand_as(region.ids_BR))
        return region.rows(self.num_prefix)
