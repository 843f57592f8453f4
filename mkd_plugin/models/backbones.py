"""Backbones of other libraries as students: their feature maps, resampled to one grid, are the tokens."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.checkpoint.load import load_module
from mkd_plugin.models.teachers.timm import create
from mkd_plugin.models.vit.block import MAE_INIT, Initialization
from mkd_plugin.models.vit.embeddings import check_size, grid_of, hw_of
from mkd_plugin.models.vit.vit import checkpoint_of
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import VISIBLE, Region, RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens

TIMM, PIXELS, UNITS = 'timm.', 'pixels', 'units'


@MODELS.register_module()
class BackboneStudent(BaseModule):
    """A network that gives feature maps, with the interface of our ViTs.

    The tap ``stage:i`` is the i-th map that the network returns, and ``output`` the last. Each is resampled to the grid of
    ``img_size`` and ``patch_size`` (bilinear, antialiased). A linear head after that gives what the same layer on the map,
    resampled, would give. The mean of the map takes the place of the cls token.

    Parameters that no tap depends on, such as the norms of other stages, keep their initial values and need no gradient.

    Args:
        network: Config of the network: a host's backbone, such as ``dict(type='mmpretrain.ResNet', depth=18)``; a model of
            timm, such as ``dict(type='timm.resnet18')``, with further options of ``timm.create_model``; or a class of your
            own whose ``forward`` returns a map (B, C, h, w) or several.
        img_size: Side of the square input, or (height, width), pixels.
        patch_size: Side of the squares that a token describes and a masking hides, pixels: img_size / patch_size is the
            teacher's grid.
        in_channels: Image channels.
        taps: Taps that objectives read.
        mask_at: Where hidden patches are replaced. None refuses every masking that hides patches; 'pixels' sets their pixels
            to 0, the mean colour; the name of a module, such as 'stem' or 'patch_embed', replaces its output there by a
            learned token; 'units' does not compute them (timm's Hiera and mmpretrain's MAEHiViT).
        visible_only: Return tokens of visible patches only, for a decoder that fills in the others.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` starts from a file of the network's own names, loaded strictly.

    Raises:
        ValueError: The network cannot be built, gives no such maps, or cannot hide patches at ``mask_at``.
    """

    initialization: ClassVar[Initialization] = MAE_INIT
    num_prefix = 1

    def __init__(
        self,
        *,
        network: dict[str, Any],
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        taps: Sequence[str] = ('output',),
        mask_at: str | None = None,
        visible_only: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.image_hw = hw_of(img_size)
        self.grid = grid_of(self.image_hw, patch_size)
        self.img_size, self.patch_size, self.in_channels = img_size, patch_size, in_channels
        self.cfg, self.mask_at = dict(network), mask_at
        self.network = build_network(self.cfg, self.image_hw, in_channels)
        kind = self.cfg['type']
        self.title = kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__name__}'
        self.can_hide, self.sees_all = mask_at is not None, not visible_only and mask_at != UNITS
        self.mask_token: nn.Parameter | None = None
        if mask_at == UNITS:
            check_units(self.network, self.grid, self.title)
        self.channels = self._try(taps)
        if mask_at not in (None, PIXELS, UNITS):
            self._add_mask_token(mask_at)

    def _try(self, taps: Sequence[str]) -> dict[str, int]:
        """Run an empty image, freeze what the taps do not depend on, and return the channels of each tap."""
        own = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.network.eval()  # a batch norm cannot normalise one value
        with torch.enable_grad():
            maps = self._trial(taps)
            total = torch.stack([found.float().sum() for found in maps.values()]).sum()
            gradients = torch.autograd.grad(total, list(own.values()), allow_unused=True)
        self.network.train()
        unread = [name for name, gradient in zip(own, gradients, strict=True) if gradient is None]
        for name in unread:
            own[name].requires_grad_(False)
        if unread:
            print_log(f'{self.title}: {list(taps)} do not depend on {unread}, which are not trained.', 'current')
        for tap, found in maps.items():
            self._check_map(tap, found)
        return {tap: found.shape[1] for tap, found in maps.items()}

    def _trial(self, taps: Sequence[str]) -> dict[str, Tensor]:
        """Compute the maps of an empty image. Raises ValueError if the network cannot."""
        try:
            return self._maps(torch.zeros(1, self.in_channels, *self.image_hw), taps)
        except Exception as error:  # whatever a network of another library raises
            raise ValueError(
                f'{self.title} cannot compute {list(taps)} of an image of {self.image_hw[0]} × {self.image_hw[1]} px '
                f'({type(error).__name__}: {error}). Use another img_size, or taps that it has.'
            ) from error

    def _check_map(self, tap: str, found: Tensor) -> None:
        """Raise ValueError if a tap is no map that can be resampled to the grid."""
        if found.dim() != 4:
            raise ValueError(
                f"'{tap}' of {self.title} has the shape {tuple(found.shape)}, which is no map (B, C, h, w). Of a ViT use "
                "VisibleViT, MaskTokenViT or PlainViT; mmpretrain's backbones have out_type='featmap'."
            )
        height, width = found.shape[-2:]
        if height * width == 1 < self.grid[0] * self.grid[1]:
            raise ValueError(
                f"'{tap}' of {self.title} is one vector for an image of {self.image_hw[0]} × {self.image_hw[1]} px, which "
                f'cannot be resampled to {self.grid[0]} × {self.grid[1]} patches. Use larger images, or an earlier stage.'
            )
        if self.mask_at == UNITS and (height, width) != self.grid:
            raise ValueError(
                f"mask_at='{UNITS}': '{tap}' of {self.title} has {height} × {width} positions, but units are "
                f'{self.grid[0]} × {self.grid[1]} patches. Read its last stage, and set patch_size to its stride.'
            )

    def _add_mask_token(self, place: str) -> None:
        """Add a token for the output of a module, whose layout a trial run shows."""
        modules = dict(self.network.named_modules())
        if place not in modules:
            raise ValueError(
                f"mask_at='{place}': {self.title} has no such module. Use '{PIXELS}', or one of "
                f'{[name for name, _ in self.network.named_children()]}.'
            )
        outputs: list[Any] = []
        handle = modules[place].register_forward_hook(lambda module, inputs, output: outputs.append(output))
        with torch.no_grad():
            self._trial(list(self.channels))
        handle.remove()
        shape = tuple(first_of(outputs[0]).shape) if outputs else ()
        layout = layout_of(shape, self.image_hw)
        if layout is None or layout[1][0] % self.grid[0] or layout[1][1] % self.grid[1]:
            raise ValueError(
                f"mask_at='{place}': its output of shape {shape} cannot be divided into the student's {self.grid[0]} × "
                f"{self.grid[1]} patches. Use an earlier module, a larger patch_size, or '{PIXELS}'."
            )
        self.mask_channel, self.masked_hw = layout
        sizes = [size if dim == self.mask_channel else 1 for dim, size in enumerate(shape)]
        self.mask_token = nn.Parameter(torch.zeros(sizes))
        self.initialization.token_(self.mask_token)

    def reset_parameters(self) -> None:
        """Draw new weights, as in a new network of the same config."""
        cfg = {key: value for key, value in self.cfg.items() if key != 'init_cfg' or 'Pretrained' not in str(value)}
        fresh = build_network(cfg, self.image_hw, self.in_channels)
        if isinstance(fresh, BaseModule):
            fresh.init_weights()
        self.network.load_state_dict(fresh.state_dict())
        if self.mask_token is not None:
            self.initialization.token_(self.mask_token)

    def init_weights(self) -> None:
        """Let a host's network draw its weights, then load the file of ``init_cfg``, if there is one."""
        if isinstance(self.network, BaseModule):  # timm's networks have drawn theirs
            self.network.init_weights()
        if self.init_cfg is not None:
            adapt = getattr(sys.modules[type(self.network).__module__], 'checkpoint_filter_fn', None)
            prefix = self.init_cfg.get('prefix') or ''
            load_module(self.network, checkpoint_of(self.init_cfg), prefix=prefix, adapt=adapt)
        self._is_init = True

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap. Raises ValueError unless it is one of ``taps``."""
        if name not in self.channels:
            raise ValueError(
                f"The student {self.title} has the taps {list(self.channels)}, got '{name}'. Name what objectives read in its "
                "option taps: 'output', or 'stage:i' for the i-th map."
            )
        return TapSpec('tokens', self.channels[name])

    def forward(
        self,
        images_BCHW: Tensor,
        mask: TokenMask | None = None,
        taps: Sequence[str] = ('output',),
        depth: int | None = None,
        region: RegionTokens | None = None,
    ) -> TokenFeatures:
        """Compute the tokens of the taps: the mean of the map, then one token for each patch.

        ``depth`` and ``region`` are those of ViTs and have no effect: the network is run as a whole.
        """
        check_size(images_BCHW, self)
        shown = None if self.sees_all else mask
        if shown is not None and self.mask_at == UNITS:
            units_BVD = visible_units(self.network, images_BCHW, shown)
            tokens_BND = torch.cat([units_BVD.mean(1, keepdim=True), units_BVD], dim=1)
            return TokenFeatures(dict.fromkeys(taps, Tokens(tokens_BND)), self.num_prefix, shown)
        if mask is None or self.mask_at is None:
            maps = self._maps(images_BCHW, taps)
        else:
            maps = self._masked_maps(images_BCHW, mask, taps)
        tokens = {tap: Tokens(self._resample(map_BDhw)) for tap, map_BDhw in maps.items()}
        if shown is not None:
            rows_BN = Region(VISIBLE.name, cls=True).tokens(shown).rows(self.num_prefix)
            tokens = {tap: Tokens(value.at(rows_BN)) for tap, value in tokens.items()}
        return TokenFeatures(tokens, self.num_prefix, shown)

    def _maps(self, images_BCHW: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Compute the map of each tap, (B, C, h, w)."""
        network: Any = self.network
        if is_timm(self.cfg):
            places = {tap: stage_of(tap, len(network.feature_info)) for tap in taps}
            wanted = sorted(set(places.values()))
            maps = network.forward_intermediates(images_BCHW, indices=wanted, intermediates_only=True)
            return {tap: maps[wanted.index(place)] for tap, place in places.items()}
        output = network(images_BCHW, None) if hasattr(network, 'masking_id') else network(images_BCHW)
        output = list(output.values()) if isinstance(output, Mapping) else output
        maps = list(output) if isinstance(output, (tuple, list)) else [output]
        return {tap: maps[stage_of(tap, len(maps))] for tap in taps}

    def _masked_maps(self, images_BCHW: Tensor, mask: TokenMask, taps: Sequence[str]) -> dict[str, Tensor]:
        """Compute the maps with hidden patches replaced at ``mask_at``."""
        token, hidden_B1hw = self.mask_token, mask.hidden_BL.view(-1, 1, *self.grid).float()
        hidden_B1hw = F.interpolate(hidden_B1hw, self.image_hw if token is None else self.masked_hw) > 0
        if token is None:
            return self._maps(images_BCHW.masked_fill(hidden_B1hw, 0), taps)
        hidden = hidden_B1hw.flatten(2).mT if token.dim() == 3 else hidden_B1hw.movedim(1, self.mask_channel)

        def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
            masked = torch.where(hidden, token.to(first_of(output).dtype), first_of(output))
            return masked if isinstance(output, Tensor) else (masked, *output[1:])

        assert self.mask_at is not None
        handle = self.network.get_submodule(self.mask_at).register_forward_hook(replace)
        try:
            return self._maps(images_BCHW, taps)
        finally:
            handle.remove()

    def _resample(self, map_BDhw: Tensor) -> Tensor:
        """Put the mean of a map before its values at the patches, (B, 1 + L, D)."""
        mean_B1D = map_BDhw.mean((2, 3)).unsqueeze(1)
        if tuple(map_BDhw.shape[-2:]) != self.grid:
            # products, whose gradient is the same in every run; that of F.interpolate on a GPU is not
            rows, columns = (resampling(*sizes, map_BDhw) for sizes in zip(map_BDhw.shape[-2:], self.grid, strict=True))
            map_BDhw = torch.einsum('yh,bdhw,xw->bdyx', rows, map_BDhw, columns)
        return torch.cat([mean_B1D, map_BDhw.flatten(2).transpose(1, 2)], dim=1)


def is_timm(cfg: Mapping[str, Any]) -> bool:
    """Whether a config names a model of timm."""
    return str(cfg.get('type')).startswith(TIMM)


def build_network(cfg: Mapping[str, Any], image_hw: tuple[int, int], in_channels: int) -> nn.Module:
    """Build a network from its config, without a classifier. Raises ValueError if that is not possible."""
    if not is_timm(cfg):
        try:
            network: nn.Module = build(dict(cfg))
        except TypeError as error:  # an option that the host's class does not have
            raise ValueError(f'{cfg["type"]}: {error}.') from error
        return network
    name = cfg['type'].removeprefix(TIMM)
    options = {key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
    if options.get('pretrained'):
        raise ValueError(
            f"type='{TIMM}{name}': leave out pretrained=True, and start from a local file with "
            "init_cfg=dict(type='Pretrained', checkpoint=FILE)."
        )
    model = create(name, {'in_chans': in_channels, **options})
    if hasattr(model, 'set_input_size'):
        model.set_input_size(img_size=image_hw)
    return model


def stage_of(tap: str, count: int) -> int:
    """Read the number of a map, counted from 0, from the name of a tap. Raises ValueError if there is no such map."""
    found = re.fullmatch(r'stage:(-?[0-9]+)', 'stage:-1' if tap == 'output' else tap)
    if found is None or not -count <= int(found[1]) < count:
        raise ValueError(
            f"there is no tap '{tap}'. It returns {count} maps: use 'output', or 'stage:i' with i in [−{count}, {count})."
        )
    return int(found[1]) % count


def resampling(size: int, wanted: int, like: Tensor) -> Tensor:
    """Weights of a bilinear, antialiased resampling along one side, (wanted, size)."""
    unit = torch.eye(size, device=like.device)[None, None]
    return F.interpolate(unit, (wanted, size), mode='bilinear', antialias=True)[0, 0].to(like.dtype)


def first_of(output: Any) -> Tensor:
    """Return the tensor that a module gives, the first of several (a host's patch embedding gives its grid too)."""
    tensor: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return tensor


def layout_of(shape: tuple[int, ...], image_hw: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
    """Find the dimension of the channels, and height and width, of a map or of tokens; None if it is neither."""
    if len(shape) == 3:  # (B, N, D)
        stride = math.isqrt(image_hw[0] * image_hw[1] // shape[1])
        grid = (image_hw[0] // max(stride, 1), image_hw[1] // max(stride, 1))
        return (2, grid) if grid[0] * grid[1] == shape[1] else None
    for channel, (height, width) in ((1, shape[2:]), (3, shape[1:3])) if len(shape) == 4 else ():
        if height * image_hw[1] == width * image_hw[0]:
            return channel, (height, width)
    return None


def check_units(network: Any, grid: tuple[int, int], title: str) -> None:
    """Raise ValueError unless a network can leave out the patches of a grid."""
    if not hasattr(network, 'mask_spatial_shape') and not hasattr(network, 'masking_id'):
        raise ValueError(
            f"mask_at='{UNITS}': {title} computes every patch; only timm's Hiera and mmpretrain's MAEHiViT can leave some "
            f"out. Use '{PIXELS}', or the name of its first module."
        )
    units = tuple(getattr(network, 'mask_spatial_shape', grid))
    if units != grid:
        raise ValueError(
            f"mask_at='{UNITS}': {title} has {units} units, the student {grid} patches. Change patch_size."
        )


def visible_units(network: Any, images_BCHW: Tensor, mask: TokenMask) -> Tensor:
    """Compute the visible units of the last stage only, (B, V, D)."""
    if hasattr(network, 'mask_spatial_shape'):
        stages = network.forward_features(images_BCHW, mask=~mask.hidden_BL, return_intermediates=True)[1]
        units_BVD: Tensor = stages[-1].flatten(1, 3)
        return units_BVD
    network.masking_id = lambda *_: (mask.ids_keep_BV, None, None)  # instead of a random draw
    tokens_BVD: Tensor = network(images_BCHW, True)[0]
    del network.masking_id
    return tokens_BVD
