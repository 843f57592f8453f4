"""Data structures of a training step: masks, regions of tokens, and features.

Shape legend, used as suffixes throughout the package:

    B images            L patches of the full grid, row-major     D channels of a token (width)
    V visible patches   M hidden patches                          H attention heads, K channels of a head
    N tokens of a sequence: P prefix tokens (cls first), then patches
    R tokens of a region: [cls], then patches
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor


def take(x_BND: Tensor, rows_BR: Tensor) -> Tensor:
    """Gather tokens: ``out[b, r] = x[b, rows[b, r]]``, (B, R, D)."""
    return x_BND.gather(1, rows_BR.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))


class Permute(torch.autograd.Function):
    """``take`` by a permutation, ``Permute.apply(x_BND, rows_BN, inverse_BN)``.

    Its backward pass takes by the inverse; that of ``take`` adds by atomic operations, because rows could repeat.
    """

    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, rows_BN: Tensor, inverse_BN: Tensor) -> Tensor:
        """Take by the permutation."""
        ctx.save_for_backward(rows_BN, inverse_BN)
        return take(x_BND, rows_BN)

    @staticmethod
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor, None, None]:
        """Take by the inverse."""
        rows_BN, inverse_BN = ctx.saved_tensors
        return Permute.apply(grad_BND, inverse_BN, rows_BN), None, None


@dataclass(frozen=True)
class TokenMask:
    """Patches of each image that are hidden from the student."""

    hidden_BL: Tensor  #: bool, True = hidden
    #: Ids of the visible patches, ascending; None if their number varies within the batch
    ids_keep_BV: Tensor | None = None
    ids_hide_BM: Tensor | None = None  #: Ids of the hidden patches, likewise
    ids_restore_BL: Tensor | None = None  #: Position of patch ``l`` in ``cat(visible, hidden)``, likewise
    most_hidden: int | None = None  #: Upper bound on the hidden patches per image, if their number varies
    #: The masking's additional regions, by name: patch ids (B, R), or the tokens with their weights
    regions: Mapping[str, Tensor | RegionTokens] = field(default_factory=dict)
    per_image: int = 1  #: Masks per image; rows ``i · per_image`` to ``(i + 1) · per_image − 1`` belong to image ``i``

    @classmethod
    def from_hidden(cls, hidden_BL: Tensor, num_visible: int) -> TokenMask:
        """Build a mask with ``num_visible`` visible patches in every image (not checked, which would synchronise)."""
        order_BL = hidden_BL.to(torch.uint8).argsort(dim=1, stable=True)
        return cls(
            hidden_BL=hidden_BL,
            ids_keep_BV=order_BL[:, :num_visible],
            ids_hide_BM=order_BL[:, num_visible:],
            ids_restore_BL=order_BL.argsort(dim=1),
        )

    @classmethod
    def from_kept(cls, ids_keep_BV: Tensor, num_patches: int) -> TokenMask:
        """Build a mask that hides all patches except ``ids_keep_BV``."""
        hidden_BL = torch.ones(ids_keep_BV.shape[0], num_patches, dtype=torch.bool, device=ids_keep_BV.device)
        return cls.from_hidden(hidden_BL.scatter(1, ids_keep_BV, False), ids_keep_BV.shape[1])

    def repeat(self, images_BCHW: Tensor) -> Tensor:
        """Repeat each image once per mask; returns the same tensor for one mask per image."""
        return images_BCHW if self.per_image == 1 else images_BCHW.repeat_interleave(self.per_image, dim=0)

    def fill(self, visible_BVD: Tensor, hidden_BMD: Tensor) -> Tensor:
        """Put the tokens of visible and hidden patches in row-major order, (B, L, D)."""
        assert self.ids_keep_BV is not None and self.ids_hide_BM is not None
        shuffled_BL = torch.cat([self.ids_keep_BV, self.ids_hide_BM], dim=1)
        both_BLD = torch.cat([visible_BVD, hidden_BMD], dim=1)
        return Permute.apply(both_BLD, self.ids_restore_BL, shuffled_BL)

    def patches(self, name: str) -> RegionTokens:
        """List the patches of a region."""
        if name == HIDDEN.name:
            return self._hidden_patches()
        if name == VISIBLE.name:
            if self.ids_keep_BV is None:
                return self._all_patches((~self.hidden_BL).float())
            return RegionTokens(name, False, self.ids_keep_BV)
        if name == ALL.name:
            return self._all_patches()
        found = self.regions[name]
        return found if isinstance(found, RegionTokens) else RegionTokens(name, False, found)

    def _hidden_patches(self) -> RegionTokens:
        if self.ids_hide_BM is not None:
            return RegionTokens(HIDDEN.name, False, self.ids_hide_BM)
        if self.most_hidden is None:
            return self._all_patches(self.hidden_BL.float())
        hidden_first_BL = self.hidden_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        ids_BR = hidden_first_BL[:, : self.most_hidden]
        return RegionTokens(HIDDEN.name, False, ids_BR, self.hidden_BL.gather(1, ids_BR).float())

    def _all_patches(self, weight_BL: Tensor | None = None) -> RegionTokens:
        ids_BL = torch.arange(self.hidden_BL.shape[1], device=self.hidden_BL.device).expand_as(self.hidden_BL)
        return RegionTokens(ALL.name, False, ids_BL, weight_BL)


@dataclass(frozen=True)
class RegionSpec:
    """Named set of patches declared by a masking."""

    name: str  #: Name in the config of objectives
    visible: bool = False  #: Whether all its patches are visible to the student
    empty: bool = False  #: Whether it never contains a patch


HIDDEN, VISIBLE, ALL = RegionSpec('hidden'), RegionSpec('visible', visible=True), RegionSpec('all')
CLS = 'cls'


@dataclass(frozen=True)
class Region:
    """Tokens that a loss is averaged over: a set of patches, the cls token, or both."""

    patches: str | None  #: Name of the set of patches; None for cls only
    cls: bool  #: Whether the cls token is included

    @classmethod
    def parse(cls, text: str, known: Iterable[str] = (HIDDEN.name, VISIBLE.name, ALL.name)) -> Region:
        """Parse 'hidden', 'hidden+cls', 'cls', …; raises ValueError unless the set of patches is ``known``."""
        patches, plus, extra = text.partition('+')
        if text == CLS:
            return cls(None, True)
        if patches not in set(known) or (plus and extra != CLS):
            names = ', '.join(f"'{name}'" for name in known)
            raise ValueError(f"region='{text}': use one of {names}, optionally with '+cls', or 'cls'.")
        return cls(patches, bool(plus))

    @classmethod
    def union(cls, regions: Iterable[Region]) -> Region:
        """Find the smallest region that contains all of these (at least one)."""
        regions = list(regions)
        patches = {region.patches for region in regions} - {None}
        whole = ALL.name if len(patches) > 1 else next(iter(patches), None)
        return cls(whole, any(region.cls for region in regions))

    def tokens(self, mask: TokenMask) -> RegionTokens:
        """List the region's tokens under a batch's mask."""
        if self.patches is None:
            return RegionTokens(None, True, mask.hidden_BL.new_empty(len(mask.hidden_BL), 0, dtype=torch.long))
        tokens = mask.patches(self.patches)
        if not self.cls or tokens.weight_BR is None:
            return replace(tokens, cls=self.cls or tokens.cls)
        cls_B1 = torch.ones_like(tokens.weight_BR[:, :1])
        return replace(tokens, cls=True, weight_BR=torch.cat([cls_B1, tokens.weight_BR], dim=1))


@dataclass(frozen=True)
class RegionTokens:
    """Tokens of a region in one batch."""

    patches: str | None  #: Name of the set of patches in ``ids_BR``; None for cls only
    cls: bool  #: Whether the cls token precedes them
    ids_BR: Tensor  #: Patch ids, one row per mask
    weight_BR: Tensor | None = None  #: 1 for a token of the region (cls included), 0 for padding; None without padding

    @property
    def complete(self) -> bool:
        """Whether all patches of the grid are listed, in row-major order."""
        return self.patches == ALL.name

    def rows(self, num_prefix: int) -> Tensor:
        """Compute the tokens' positions in a sequence of ``num_prefix`` prefix tokens and all patches, (B, R)."""
        rows_BR = self.ids_BR + num_prefix
        return torch.cat([rows_BR.new_zeros(len(rows_BR), 1), rows_BR], dim=1) if self.cls else rows_BR

    def mean(self, loss: Tensor) -> Tensor:
        """Average an elementwise loss (B, R, …) over the region; without padding, also return a scalar as is."""
        if self.weight_BR is None:
            return loss.mean()
        loss_BR = self._per_token(loss)
        return (loss_BR * self.weight_BR).sum() / self.weight_BR.sum().clamp(min=1)  # 0 if nothing is hidden

    def mean_per_image(self, loss: Tensor) -> Tensor:
        """Average an elementwise loss (B, R, …) over each image's tokens, (B,). Raises ValueError for a scalar."""
        if loss.dim() == 0:
            raise ValueError('A loss that returns a scalar has no value per image. Use an elementwise loss.')
        if self.weight_BR is None:
            return loss.flatten(1).mean(1)
        return (self._per_token(loss) * self.weight_BR).sum(1) / self.weight_BR.sum(1).clamp(min=1)

    def _per_token(self, loss: Tensor) -> Tensor:
        """Average a loss over channels. Raises ValueError unless it has one value or vector per token."""
        assert self.weight_BR is not None
        if loss.shape[:2] != self.weight_BR.shape or loss.dim() > 3:
            raise ValueError(
                f'The number of hidden patches differs between images, so the loss must have the shape (B, R, …) = '
                f'{tuple(self.weight_BR.shape)}, got {tuple(loss.shape)}. Use an elementwise loss on tokens, or a '
                f'masking with a fixed number of hidden patches.'
            )
        return loss.flatten(2).mean(2) if loss.dim() > 2 else loss


@dataclass(frozen=True)
class TapSpec:
    """Description of a tap, known before the network runs."""

    kind: str  #: 'tokens' or 'relation'
    channels: int  #: Width of a token; for relations, the number of heads
    cls: bool = True  #: Whether a cls token precedes the patches
    patches: bool = True  #: False for one vector per image, which the region 'cls' reads
    classes: bool = False  #: Whether the tap gives class indices; ``channels`` is then the number of classes


class TapValue(Protocol):
    """Value of a tap.

    ``at`` returns the features of the selected tokens, ``repeat`` repeats every image, and ``watched`` returns vectors
    (…, D) whose spread over tokens is logged to detect a collapse.
    """

    def at(self, rows: slice | Tensor) -> Tensor: ...
    def repeat(self, count: int) -> TapValue: ...
    def watched(self) -> Tensor: ...


@dataclass(frozen=True)
class Tokens:
    """Token features (B, N, D)."""

    x_BND: Tensor

    def at(self, rows: slice | Tensor) -> Tensor:
        return self.x_BND[:, rows] if isinstance(rows, slice) else take(self.x_BND, rows)

    def repeat(self, count: int) -> Tokens:
        return Tokens(self.x_BND.repeat_interleave(count, dim=0))

    def watched(self) -> Tensor:
        return self.x_BND


@dataclass(frozen=True)
class QueryKey:
    """Queries and keys of an attention layer; their product is computed for the selected tokens only."""

    q_BHNK: Tensor  #: Queries (values, for value relations)
    k_BHNK: Tensor  #: Keys (values, for value relations)
    scale: float = 1.0  #: Factor of the product: 1, or K^(−1/2) for attention logits

    def at(self, rows: slice | Tensor) -> Tensor:
        """Compute token relations scale · Q·Kᵀ per head, (B, H, R, R) (Hybrid Distill, Sec. 3)."""
        q, k = (self._pick(x, rows) for x in (self.q_BHNK, self.k_BHNK))
        return q @ k.transpose(-2, -1) if self.scale == 1 else (q * self.scale) @ k.transpose(-2, -1)

    def repeat(self, count: int) -> QueryKey:
        q, k = (x.repeat_interleave(count, dim=0) for x in (self.q_BHNK, self.k_BHNK))
        return QueryKey(q, k, self.scale)

    def regroup(self, num_heads: int) -> QueryKey:
        """Split the same channels into ``num_heads`` heads. Raises ValueError if they are not a multiple of it."""
        batch, heads, length, channels = self.q_BHNK.shape
        if heads * channels % num_heads:
            raise ValueError(f'{heads * channels} channels of queries cannot be split into {num_heads} heads.')
        shape = (batch, length, num_heads, -1)
        q, k = (x.transpose(1, 2).reshape(shape).transpose(1, 2) for x in (self.q_BHNK, self.k_BHNK))
        return QueryKey(q, k, self.scale if self.scale == 1 else q.shape[-1] ** -0.5)

    def watched(self) -> Tensor:
        return self.q_BHNK  # the relations would cost another product

    @staticmethod
    def _pick(x_BHNK: Tensor, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, slice):
            return x_BHNK[:, :, rows]
        _, heads, _, channels = x_BHNK.shape
        return x_BHNK.gather(2, rows[:, None, :, None].expand(-1, heads, -1, channels))


@dataclass(frozen=True)
class TokenFeatures:
    """Features of one network for one batch."""

    taps: Mapping[str, TapValue]  #: Tap name → value over N tokens
    num_prefix: int  #: P, the number of prefix tokens before the patches (the first is cls; 0 without cls)
    #: Mask whose visible patches were computed, in the order of ``mask.ids_keep_BV``; None for the full grid
    mask: TokenMask | None = None
    region: RegionTokens | None = None  #: Region whose tokens were computed, in its order; None for all tokens

    def select(self, tap: str, region: RegionTokens) -> Tensor:
        """Read the tokens of a region, (B, R, D), or (B, H, R, R) for relations."""
        return self.taps[tap].at(self._rows(region))

    def tokens(self, tap: str) -> Tensor:
        """Read all tokens of a tap, (B, N, D)."""
        assert self.region is None, 'only the features of a region were computed'
        return self.taps[tap].at(slice(None))

    def pool(self, tap: str, how: str) -> Tensor:
        """Read one vector per image, the 'cls' token or the 'mean' of the patches, or all tokens with 'none'.

        Raises:
            ValueError: ``how`` is unknown, there is no cls token, or the tap gives relations.
        """
        if how not in ('cls', 'mean', 'none'):
            raise ValueError(f"pool='{how}': use 'cls', 'mean' or 'none'.")
        if how == 'cls' and self.num_prefix == 0:
            raise ValueError("pool='cls': the network has no cls token. Use 'mean'.")
        tokens_BND = self.tokens(tap)
        if tokens_BND.dim() != 3:
            raise ValueError(f"tap='{tap}': relations cannot be pooled. Use 'block:i', 'output' or 'qkv:i'.")
        if how == 'none':
            return tokens_BND
        return tokens_BND[:, 0] if how == 'cls' else tokens_BND[:, self.num_prefix :].mean(dim=1)

    def repeat(self, count: int) -> TokenFeatures:
        """Repeat every image ``count`` times, for several masks per image."""
        assert self.mask is None and self.region is None, 'features under a mask belong to that mask'
        return replace(self, taps={name: value.repeat(count) for name, value in self.taps.items()})

    def _rows(self, region: RegionTokens) -> slice | Tensor:
        if region.patches is None:
            assert self.region is None or self.region.cls, 'the cls token was not computed'
            return slice(0, 1)
        if self.region is not None:
            computed = region.patches == self.region.patches and region.cls <= self.region.cls
            assert computed, 'the requested region was not computed'
            return slice(int(self.region.cls and not region.cls), None)
        in_order = region.complete if self.mask is None else self._lists_visible(region, self.mask)
        if in_order and (not region.cls or self.num_prefix == 1):
            return slice(0 if region.cls else self.num_prefix, None)
        if self.mask is not None:  # positions among the visible patches, not in the grid
            assert self.mask.ids_restore_BL is not None
            region = replace(region, ids_BR=self.mask.ids_restore_BL.gather(1, region.ids_BR))
        return region.rows(self.num_prefix)

    @staticmethod
    def _lists_visible(region: RegionTokens, mask: TokenMask) -> bool:
        """Whether the region lists exactly the computed patches, in their order."""
        assert mask.ids_keep_BV is not None
        if mask.ids_keep_BV.shape[1] == mask.hidden_BL.shape[1]:
            return region.complete or region.patches == VISIBLE.name
        assert not region.complete and region.patches != HIDDEN.name, 'hidden patches have no features'
        return region.patches == VISIBLE.name
