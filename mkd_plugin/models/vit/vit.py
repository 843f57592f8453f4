"""Vision Transformer for students, teachers and backbones (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mkd_plugin.checkpoint.load import load_backbone
from mkd_plugin.checkpoint.resize import resize_positions
from mkd_plugin.models.vit.block import (
    ACTIVATIONS,
    MAE_INIT,
    Arch,
    Block,
    DropPath,
    Initialization,
    drop_path_rates,
    resolve_arch,
)
from mkd_plugin.models.vit.embeddings import PatchEmbed, check_size, grid_of, hw_of, sincos_positions
from mkd_plugin.models.vit.relative import RelativePositionBias
from mkd_plugin.models.vit.rotary import FORMS, RotaryPositions
from mkd_plugin.models.vit.taps import end_at_one_block, parse_tap, run_blocks
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, take

CHOICES: dict[str, tuple[str | None, ...]] = {
    'position': ('sincos', 'learned', 'none'),
    'relative_position': (None, 'shared', 'per_block'),
    'rope': (None, *FORMS),
    'activation': tuple(ACTIVATIONS),
    'inner_norm': (None, 'mlp', 'both'),
}
# parameters before the first block: layer 0 of layer-wise learning rate decay
EMBEDDINGS = ('cls_token', 'dist_token', 'register_tokens', 'pos_embed', 'patch_embed', 'pre_norm', 'mask_token')


class VisionTransformer(BaseModule):
    """Plain pre-norm ViT, parameter names as in mmpretrain's ``VisionTransformer``.

    With a mask, only visible patches are computed. The defaults are MAE's encoder; further options cover BEiT, CLIP, DeiT,
    DINOv2, DINOv3, SigLIP and EVA-02.

    Args:
        arch: Size: 'ti', 's', 'b', 'l', 'h' or ``dict(width=, depth=, num_heads=)``.
        img_size: Side of the square input, or (height, width), pixels.
        patch_size: Side of a patch, pixels.
        in_channels: Image channels.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0 at the first, or a rate for each block.
        position: Absolute positions: 'sincos' (fixed), 'learned' or 'none'. Learned positions start from
            the same table, unless the class's ``initialization`` draws them.
        relative_position: BEiT's relative position bias: 'shared' by all blocks (pre-training), 'per_block'
            (fine-tuning), or None.
        rope: Rotary positions of the patches: 'dinov3', 'eva02', or None. They add to ``position``, and keys have no bias then.
        layer_scale: Initial value of layer scale on every branch; None for no layer scale.
        activation: Activation of the MLPs: 'gelu', 'quick_gelu' (CLIP), 'gelu_tanh' (SigLIP 2), or 'swiglu', whose first layer
            has twice the hidden width (EVA-02; DINOv3's S+, H+ and 7B).
        inner_norm: LayerNorm before the last linear layer of the 'mlp' (EVA-02), of 'both' branches (its CLIP), or None.
        norm_eps: Epsilon of every LayerNorm; CLIP and DINOv3 use 1e-5.
        pre_norm: Add a LayerNorm before the first block (CLIP's ``ln_pre``).
        final_norm: Whether the last block's tokens have a norm, read at the tap 'output'.
        projection: Width of a linear layer after the final norm, read at the tap 'projected' (CLIP); None for no layer.
        cls_token: Whether there is a cls token; SigLIP has none.
        distillation_token: Add a second prefix token, with a position (DeiT).
        num_registers: Number of register tokens, without a position (DINOv2, DINOv3).
        activation_checkpointing: Recompute activations in the backward pass to save memory: True, or 'selective'.
        init_cfg: mmengine's ``init_cfg``. ``dict(type='Pretrained', checkpoint=…, prefix=…)`` is loaded strictly;
            ``allow_missing=[…]`` lists patterns of keys that may be missing, such as '*.rel_pos_bias.*'.

    Attributes:
        num_prefix: P, the number of tokens before the patches; the first is cls. 0 without cls.
        options: Options to build the same network again.

    Raises:
        ValueError: The image size is not a multiple of the patch size; an option has an unknown value; a relative
            position bias is combined with prefix tokens other than cls, or these with no cls.
    """

    pos_embed: Tensor | None
    block_class: ClassVar[type[Block]] = Block
    initialization: ClassVar[Initialization] = MAE_INIT
    can_hide = True  # whether a mask may hide patches
    sees_all = False  # with a mask, only visible patches are computed

    def __init__(
        self,
        *,
        arch: str | dict[str, Any] | Arch = 'b',
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path_rate: float | Sequence[float] = 0.0,
        position: str = 'sincos',
        relative_position: str | None = None,
        rope: str | None = None,
        layer_scale: float | None = None,
        activation: str = 'gelu',
        inner_norm: str | None = None,
        norm_eps: float = 1e-6,
        pre_norm: bool = False,
        final_norm: bool = True,
        projection: int | None = None,
        cls_token: bool = True,
        distillation_token: bool = False,
        num_registers: int = 0,
        activation_checkpointing: bool | str = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.image_hw = hw_of(img_size)
        self.grid = grid_of(self.image_hw, patch_size)
        self.arch = resolve_arch(arch)
        self.img_size, self.patch_size, self.in_channels = img_size, patch_size, in_channels
        self.relative_position = relative_position
        self.options: dict[str, Any] = dict(
            arch=asdict(self.arch),
            img_size=img_size if isinstance(img_size, int) else list(img_size),
            patch_size=patch_size,
            in_channels=in_channels,
            position=position,
            relative_position=relative_position,
            rope=rope,
            layer_scale=layer_scale,
            activation=activation,
            inner_norm=inner_norm,
            norm_eps=norm_eps,
            pre_norm=pre_norm,
            final_norm=final_norm,
            projection=projection,
            cls_token=cls_token,
            distillation_token=distillation_token,
            num_registers=num_registers,
        )
        for option, allowed in CHOICES.items():
            if self.options[option] not in allowed:
                raise ValueError(f'{option}={self.options[option]!r}: use one of {list(allowed)}.')
        width = self.arch.width
        self.patch_embed = PatchEmbed(patch_size=patch_size, in_channels=in_channels, width=width)
        self._build_prefix(cls_token, distillation_token, num_registers)
        self._build_positions(position)
        self.pre_norm: nn.Module = nn.LayerNorm(width, eps=norm_eps) if pre_norm else nn.Identity()
        self.stream: nn.Module = nn.Identity()  # may set the type of the residual stream
        self.layers = self._build_blocks(activation_checkpointing)
        self.drop_path = DropPath(drop_path_rates(drop_path_rate, self.arch.depth))
        self.ln1: nn.Module = nn.LayerNorm(width, eps=norm_eps) if final_norm else nn.Identity()
        self.proj = None if projection is None else nn.Linear(width, projection, bias=False)
        self.reset_parameters()

    def _build_blocks(self, recompute: bool | str) -> nn.ModuleList:
        return nn.ModuleList(
            self.block_class(
                width=self.arch.width,
                num_heads=self.arch.num_heads,
                mlp_ratio=self.arch.mlp_ratio,
                norm_eps=self.options['norm_eps'],
                activation=self.options['activation'],
                layer_scale=self.options['layer_scale'],
                relative_grid=self.grid if self.relative_position == 'per_block' else None,
                rope=self.options['rope'],
                inner_norm=self.options['inner_norm'],
                recompute=recompute,
            )
            for _ in range(self.arch.depth)
        )

    def _build_prefix(self, cls_token: bool, distillation_token: bool, num_registers: int) -> None:
        if not cls_token and (distillation_token or num_registers):
            raise ValueError('cls_token=False: remove distillation_token and num_registers, which follow a cls token.')
        width = self.arch.width
        self.num_placed = cls_token + distillation_token  # prefix tokens with a position
        self.num_prefix = self.num_placed + num_registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if cls_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distillation_token else None
        self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, width)) if num_registers else None

    def _build_positions(self, position: str) -> None:
        if position == 'learned':
            self.pos_embed = nn.Parameter(sincos_positions(self.grid, self.arch.width, self.num_placed))
        else:
            fixed = position == 'sincos'
            table = sincos_positions(self.grid, self.arch.width, self.num_placed) if fixed else None
            self.register_buffer('pos_embed', table)
        if self.relative_position is not None and self.num_prefix != 1:
            raise ValueError(
                f'relative_position={self.relative_position!r} supports cls and patches only: remove distillation_token '
                'and num_registers, and keep cls_token.'
            )
        self.rel_pos_bias: RelativePositionBias | None = None
        if self.relative_position == 'shared':
            self.rel_pos_bias = RelativePositionBias(grid=self.grid, num_heads=self.arch.num_heads)
        self.rotary: RotaryPositions | None = None
        if (form := self.options['rope']) is not None:
            channels = self.arch.width // self.arch.num_heads
            self.rotary = RotaryPositions(form=form, grid=self.grid, channels=channels, num_prefix=self.num_prefix)

    def reset_parameters(self) -> None:
        """Draw new weights by the class's ``initialization``."""
        self.initialization.init_linears(self)
        self.initialization.init_blocks(self.layers)
        projection = self.patch_embed.projection
        self.initialization.weight_(projection.weight.view(projection.weight.shape[0], -1))
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        for token in (self.cls_token, self.dist_token, self.register_tokens):
            if token is not None:
                self.initialization.token_(token)
        if self.pos_embed is None:
            return
        if isinstance(self.pos_embed, nn.Parameter) and self.initialization.position_ is not None:
            self.initialization.position_(self.pos_embed)
        else:
            with torch.no_grad():  # also the fixed table: a checkpoint may have replaced it
                self.pos_embed.copy_(sincos_positions(self.grid, self.arch.width, self.num_placed))

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, if there is one. Raises ValueError if it does not cover the network."""
        entries = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        pretrained = [entry for entry in entries if entry.get('type') == 'Pretrained']
        if not pretrained:
            super().init_weights()
        for entry in pretrained:
            new, grid = entry.get('allow_missing', ()), entry.get('grid')
            load_backbone(self, checkpoint_of(entry), prefix=entry.get('prefix'), allow_missing=new, grid=grid)
            self._is_init = True

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap of this network. Raises ValueError for an unknown tap."""
        kind, has_cls = parse_tap(name, self.arch.depth).kind, self.cls_token is not None
        if kind in ('relation', 'logit', 'value'):
            return TapSpec('relation', self.arch.num_heads, cls=has_cls)
        if kind in ('output', 'projected') and not self.options['final_norm']:
            raise ValueError(f"Tap '{name}': the network has no final norm. Use 'block:-1', or set final_norm=True.")
        if kind == 'projected':
            if self.proj is None:
                raise ValueError(f"Tap '{name}': the network has no projection. Set projection=…, or use 'output'.")
            return TapSpec('tokens', self.proj.out_features, cls=has_cls)
        return TapSpec('tokens', self.arch.width * (3 if kind == 'qkv' else 1), cls=has_cls)

    def embed(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Compute the input tokens of the first block: prefix tokens, then the visible patches, (B, P + V, D).

        Raises:
            ValueError: The images have another size, or the number of visible patches differs between images.
        """
        check_size(images_BCHW, self)
        return self.pre_norm(self._with_prefix(self._embed_patches(images_BCHW, mask)))

    def embed_at(self, images_BCHW: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Compute the input tokens of images of another grid (B, P + L, D), with positions resized, and their rotary turns."""
        patches_BLD = self.patch_embed(images_BCHW)
        if self.pos_embed is not None:
            patches_BLD = patches_BLD + resize_positions(self.pos_embed[:, self.num_placed :], self.grid, grid, 0)
        turns_1NK = None if self.rotary is None else self.rotary.at(grid)
        return self.pre_norm(self._with_prefix(patches_BLD)), turns_1NK

    def _with_prefix(self, patches_BVD: Tensor) -> Tensor:
        """Put the prefix tokens before the patches, (B, P + V, D)."""
        if self.cls_token is None:
            return patches_BVD
        placed = self.cls_token if self.dist_token is None else torch.cat([self.cls_token, self.dist_token], dim=1)
        if self.pos_embed is not None:
            placed = placed + self.pos_embed[:, : self.num_placed]
        prefix = placed if self.register_tokens is None else torch.cat([placed, self.register_tokens], dim=1)
        return torch.cat([prefix.expand(patches_BVD.shape[0], -1, -1), patches_BVD], dim=1)

    def _embed_patches(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Embed the visible patches and add positions, (B, V, D)."""
        if mask is None:
            return self._with_positions(self.patch_embed(images_BCHW))
        if mask.ids_keep_BV is None:
            raise ValueError(
                'A network that computes visible patches only needs the same number of visible patches in every image. Use '
                'a masking with a fixed number of visible patches, or a MaskTokenViT.'
            )
        patches_BVD = self.patch_embed(images_BCHW, mask.ids_keep_BV)
        if self.pos_embed is None:
            return patches_BVD
        positions_1LD = self.pos_embed[:, self.num_placed :]
        return patches_BVD + take(positions_1LD.expand(images_BCHW.shape[0], -1, -1), mask.ids_keep_BV)

    def _with_positions(self, patches_BLD: Tensor) -> Tensor:
        return patches_BLD if self.pos_embed is None else patches_BLD + self.pos_embed[:, self.num_placed :]

    def forward(
        self,
        images_BCHW: Tensor,
        mask: TokenMask | None = None,
        taps: Sequence[str] = ('output',),
        depth: int | None = None,
        region: RegionTokens | None = None,
    ) -> TokenFeatures:
        """Compute the features of the requested taps, and no more blocks than they need.

        Args:
            images_BCHW: Normalised images of ``img_size``.
            mask: Mask of hidden patches; None shows every patch.
            taps: Names of the features to return.
            depth: Number of blocks to use, as if the network had no others; None for all.
            region: Tokens that will be read, None for all; the last block skips the others if all taps are its output.
        """
        depth = self.arch.depth if depth is None else depth
        tokens_BND = self.embed(images_BCHW, mask)
        parsed = [parse_tap(name, depth) for name in taps]
        shown = None if self.sees_all else mask
        turns_BNK = None if self.rotary is None else self.rotary(shown)
        if shown is not None or region is None or region.complete or not end_at_one_block(parsed):
            return TokenFeatures(run_blocks(self, tokens_BND, parsed, None, turns_BNK), self.num_prefix, shown)
        values = run_blocks(self, tokens_BND, parsed, region.rows(self.num_prefix), turns_BNK)
        return TokenFeatures(values, self.num_prefix, region=region)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Look up the layer of a parameter, for mmpretrain's layer-wise learning rate decay.

        Returns:
            (i, depth + 2): i = 0 for patch embedding, prefix tokens and positions, k for block k (1-based), depth + 1 for
            other parameters.
        """
        num_layers = self.arch.depth + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name[len(prefix) :]
        if name.startswith(EMBEDDINGS):
            return 0, num_layers
        if name.startswith('layers.'):
            return int(name.split('.')[1]) + 1, num_layers
        return num_layers - 1, num_layers


def checkpoint_of(init_cfg: Mapping[str, Any]) -> str:
    """Return the file of ``dict(type='Pretrained', checkpoint=FILE)``. Raises ValueError if there is none."""
    if not init_cfg.get('checkpoint'):
        raise ValueError(f'init_cfg={dict(init_cfg)}: add checkpoint=FILE.')
    return str(init_cfg['checkpoint'])
