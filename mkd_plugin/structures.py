"""What the parts of a training step exchange: masks, regions of tokens, and features.

Shape legend, used as suffixes throughout the package:

    B images            L patches of the full grid, row-major     D channels of a token (width)
    V visible patches   M hidden patches                          H attention heads, K channels of a head
    N tokens of a sequence: P prefix tokens (cls first), then patches
    R tokens of a region: [cls], then patches
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
        ids_restore_BL: Position of patch ``l`` in ``cat(visible, hidden)``.
        most_hidden: Upper bound on the hidden patches of an image, if it is known although the number varies.
        regions: Patch ids (B, R) of the further regions that the masking declares, by name.
        per_image: Masks per image; rows ``i · per_image`` to ``(i + 1) · per_image − 1`` belong to image ``i``.

    The three kinds of ids are None if the number of hidden patches varies within the batch; such a mask serves students
    that see the full length.
    """

    hidden_BL: Tensor
    ids_keep_BV: Tensor | None = None
    ids_hide_BM: Tensor | None = None
    ids_restore_BL: Tensor | None = None
    most_hidden: int | None = None
    regions: Mapping[str, Tensor] = field(default_factory=dict)
    per_image: int = 1

    @classmethod
    def from_hidden(cls, hidden_BL: Tensor, num_visible: int) -> TokenMask:
        """Build a mask with the same, known number of visible patches per image (not checked: it would synchronise)."""
        order_BL = hidden_BL.to(torch.uint8).argsort(dim=1, stable=True)
        return cls(
            hidden_BL=hidden_BL,
            ids_keep_BV=order_BL[:, :num_visible],
            ids_hide_BM=order_BL[:, num_visible:],
            ids_restore_BL=order_BL.argsort(dim=1),
        )

    @classmethod
    def from_kept(cls, ids_keep_BV: Tensor, num_patches: int) -> TokenMask:
        """Build a mask that shows exactly the patches ``ids_keep_BV``."""
        hidden_BL = torch.ones(ids_keep_BV.shape[0], num_patches, dtype=torch.bool, device=ids_keep_BV.device)
        return cls.from_hidden(hidden_BL.scatter(1, ids_keep_BV, False), ids_keep_BV.shape[1])

    def repeat(self, images_BCHW: Tensor) -> Tensor:
        """Repeat each image once per mask; the very same tensor if there is one mask per image."""
        return images_BCHW if self.per_image == 1 else images_BCHW.repeat_interleave(self.per_image, dim=0)

    def patches(self, name: str) -> PatchIds:
        """Look up the patches of a declared region under this batch's mask."""
        if name == HIDDEN.name:
            return self._hidden_patches()
        if name == VISIBLE.name:
            return self._every_patch(~self.hidden_BL) if self.ids_keep_BV is None else PatchIds(name, self.ids_keep_BV)
        if name == ALL.name:
            return self._every_patch()
        return PatchIds(name, self.regions[name])

    def _hidden_patches(self) -> PatchIds:
        if self.ids_hide_BM is not None:
            return PatchIds(HIDDEN.name, self.ids_hide_BM)
        if self.most_hidden is None:
            return self._every_patch(self.hidden_BL)
        hidden_first_BL = self.hidden_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        ids_BR = hidden_first_BL[:, : self.most_hidden]
        return PatchIds(HIDDEN.name, ids_BR, self.hidden_BL.gather(1, ids_BR))

    def _every_patch(self, counts_BL: Tensor | None = None) -> PatchIds:
        batch, length = self.hidden_BL.shape
        ids_BL = torch.arange(length, device=self.hidden_BL.device).expand(batch, length)
        return PatchIds(ALL.name, ids_BL, counts_BL)


@dataclass(frozen=True)
class PatchIds:
    """The patches of a region in one batch.

    Attributes:
        name: The set of patches that ``ids_BR`` lists: the region's, or 'all' where the region's size varies.
        ids_BR: Patch ids.
        counts_BR: bool, False for patches that only fill the rectangle; None if all count.
    """

    name: str
    ids_BR: Tensor
    counts_BR: Tensor | None = None


@dataclass(frozen=True)
class RegionSpec:
    """A named set of patches that a masking declares when it is built.

    Attributes:
        name: The name that objectives use.
        visible: Whether the student sees every patch of it.
        empty: Whether it never holds a patch.
    """

    name: str
    visible: bool = False
    empty: bool = False


HIDDEN, VISIBLE, ALL = RegionSpec('hidden'), RegionSpec('visible', visible=True), RegionSpec('all')
CLS = 'cls'


@dataclass(frozen=True)
class Region:
    """The tokens that a loss is taken over: a declared set of patches, the cls token, or both.

    Attributes:
        patches: Name of the set of patches; None for cls alone.
        cls: Whether the cls token belongs to it.
    """

    patches: str | None
    cls: bool

    @classmethod
    def parse(cls, text: str, known: Iterable[str] = (HIDDEN.name, VISIBLE.name, ALL.name)) -> Region:
        """Read ``'hidden'``, ``'hidden+cls'``, ``'cls'``.

        Args:
            text: The region as a config states it.
            known: Names of the sets of patches that the masking declares.

        Raises:
            ValueError: The text names no known region.
        """
        patches, plus, extra = text.partition('+')
        if text == CLS:
            return cls(None, True)
        if patches not in set(known) or (plus and extra != CLS):
            names = ', '.join(f"'{name}'" for name in known)
            raise ValueError(f"region='{text}': use one of {names}, each with '+cls' or without, or 'cls'.")
        return cls(patches, bool(plus))

    @classmethod
    def union(cls, regions: Iterable[Region]) -> Region:
        """Find the smallest region that holds all of these, of which there is at least one."""
        regions = list(regions)
        patches = {region.patches for region in regions} - {None}
        whole = ALL.name if len(patches) > 1 else next(iter(patches), None)
        return cls(whole, any(region.cls for region in regions))

    def tokens(self, mask: TokenMask) -> RegionTokens:
        """List the region's tokens under this batch's mask."""
        if self.patches is None:
            return RegionTokens(None, True, mask.hidden_BL.new_empty(len(mask.hidden_BL), 0, dtype=torch.long))
        patches = mask.patches(self.patches)
        if patches.counts_BR is None:
            return RegionTokens(patches.name, self.cls, patches.ids_BR)
        cls_B1 = torch.ones_like(patches.counts_BR[:, : int(self.cls)])
        weight_BR = torch.cat([cls_B1, patches.counts_BR], dim=1).float()
        return RegionTokens(patches.name, self.cls, patches.ids_BR, weight_BR)


@dataclass(frozen=True)
class RegionTokens:
    """The tokens of one batch that a loss is taken over.

    Attributes:
        patches: Name of the set of patches that ``ids_BR`` lists; None for cls alone.
        cls: Whether the cls token stands before them.
        ids_BR: Patch ids, one row an image.
        weight_BR: 1 for a token of the region (cls included), 0 for one that only fills the rectangle; None if all
            count.
    """

    patches: str | None
    cls: bool
    ids_BR: Tensor
    weight_BR: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether every patch of the grid is listed, in row-major order."""
        return self.patches == ALL.name

    def rows(self, num_prefix: int) -> Tensor:
        """Find the tokens in a sequence of ``num_prefix`` prefix tokens and the full grid, (B, R)."""
        rows_BR = self.ids_BR + num_prefix
        return torch.cat([rows_BR.new_zeros(len(rows_BR), 1), rows_BR], dim=1) if self.cls else rows_BR

    def mean(self, loss: Tensor) -> Tensor:
        """Average an elementwise loss (B, R, …) over the region; a scalar, which a host's loss returns, stays.

        Raises:
            ValueError: The loss is not one value (or vector) per token although the tokens have weights.
        """
        if self.weight_BR is None:
            return loss.mean()
        loss_BR = self._per_token(loss)
        return (loss_BR * self.weight_BR).sum() / self.weight_BR.sum().clamp(min=1)  # 0 if nothing is hidden

    def mean_per_image(self, loss: Tensor) -> Tensor:
        """Average an elementwise loss (B, R, …) over each image's tokens, (B,).

        Raises:
            ValueError: As :meth:`mean`; also for a scalar.
        """
        if loss.dim() == 0:
            raise ValueError('A loss that returns a scalar has no value per image. Use an elementwise loss.')
        if self.weight_BR is None:
            return loss.flatten(1).mean(1)
        return (self._per_token(loss) * self.weight_BR).sum(1) / self.weight_BR.sum(1).clamp(min=1)

    def _per_token(self, loss: Tensor) -> Tensor:
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
    """What a tap gives, known before anything runs.

    Attributes:
        kind: 'tokens' or 'relation'.
        channels: Width of a token; for relations the number of heads.
        cls: Whether a cls token stands before the patches.
        classes: Whether it gives class indices, for a cross entropy; ``channels`` is then the number of classes.
    """

    kind: str
    channels: int
    cls: bool = True
    classes: bool = False


class TapValue(Protocol):
    """What a network gives at a tap; tokens are picked before anything expensive is computed from it."""

    def at(self, rows: slice | Tensor) -> Tensor:
        """The value at the chosen tokens."""
        ...

    def repeat(self, count: int) -> TapValue:
        """The value with every image repeated ``count`` times."""
        ...

    def watched(self) -> Tensor:
        """Vectors (…, D) whose spread over tokens reveals a collapse."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Token features (B, N, D)."""

    x_BND: Tensor

    def at(self, rows: slice | Tensor) -> Tensor:
        """The chosen tokens, (B, R, D)."""
        return self.x_BND[:, rows] if isinstance(rows, slice) else take(self.x_BND, rows)

    def repeat(self, count: int) -> Tokens:
        """Repeat every image ``count`` times."""
        return Tokens(self.x_BND.repeat_interleave(count, dim=0))

    def watched(self) -> Tensor:
        """The tokens."""
        return self.x_BND


@dataclass(frozen=True)
class QueryKey:
    """Queries and keys of one attention layer; their product is formed for the chosen tokens only.

    Attributes:
        q_BHNK: Queries (or whatever is compared with ``k_BHNK``: values with values, for instance).
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

    def repeat(self, count: int) -> QueryKey:
        """Repeat every image ``count`` times."""
        q, k = (x.repeat_interleave(count, dim=0) for x in (self.q_BHNK, self.k_BHNK))
        return QueryKey(q, k, self.scale)

    def regroup(self, num_heads: int) -> QueryKey:
        """Split the same channels into another number of heads; a scale follows the new width of a head.

        Raises:
            ValueError: The channels cannot be split into so many heads.
        """
        batch, heads, length, channels = self.q_BHNK.shape
        if heads * channels % num_heads:
            raise ValueError(f'{heads * channels} channels of queries cannot be split into {num_heads} heads.')
        q, k = (
            x.transpose(1, 2).reshape(batch, length, num_heads, -1).transpose(1, 2) for x in (self.q_BHNK, self.k_BHNK)
        )
        return QueryKey(q, k, self.scale if self.scale == 1 else q.shape[-1] ** -0.5)

    def watched(self) -> Tensor:
        """The queries: forming the relations again would cost a product."""
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
        region: The only tokens the taps hold, in its order; None if nothing was left out.
    """

    taps: Mapping[str, TapValue]
    num_prefix: int
    mask: TokenMask | None = None
    region: RegionTokens | None = None

    def select(self, tap: str, region: RegionTokens) -> Tensor:
        """Read a tap at the tokens of a region: (B, R, D), or (B, H, R, R) for relations."""
        return self.taps[tap].at(self._rows(region))

    def tokens(self, tap: str) -> Tensor:
        """Read all token features of a tap, (B, N, D)."""
        assert self.region is None, 'only the features of a region were computed'
        return self.taps[tap].at(slice(None))

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
        if in_order and self.num_prefix == int(region.cls):
            return slice(None)
        if in_order and not region.cls:
            return slice(self.num_prefix, None)
        if self.mask is not None:  # the tokens are the visible patches: count those, not the grid
            assert self.mask.ids_restore_BL is not None
            region = replace(region, ids_BR=self.mask.ids_restore_BL.gather(1, region.ids_BR))
        return region.rows(self.num_prefix)

    @staticmethod
    def _lists_visible(region: RegionTokens, mask: TokenMask) -> bool:
        """Whether the region lists exactly the patches that were computed, in their order."""
        assert mask.ids_keep_BV is not None
        if mask.ids_keep_BV.shape[1] == mask.hidden_BL.shape[1]:
            return region.complete or region.patches == VISIBLE.name
        assert not region.complete and region.patches != HIDDEN.name, 'hidden patches have no features'
        return region.patches == VISIBLE.name
