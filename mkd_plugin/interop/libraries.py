"""Networks of other libraries, built from the options of our ``VisionTransformer``.

The libraries are optional and take seconds to import, so each is imported only where a network is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import yaml
from torch import Tensor, nn

Options = Mapping[str, Any]
TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name('classes.yml').read_text('utf-8'))

EPS = {'DINOv3': 1e-5}  # of the norms in timm's models, if not 1e-6
# What timm's class has beside the options that its DINOv3 and EVA-02 share.
EVA: dict[str, dict[str, Any]] = {
    'DINOv3': dict(rope_type='dinov3', rope_temperature=100, rope_rotate_half=True, use_abs_pos_emb=False),
    'EVA02': dict(ref_feat_shape=[16, 16]),
}


def keywords(library: str, options: Options) -> dict[str, Any]:
    """Return our options by the keywords that a library's classes have for them."""
    arch = options['arch']
    known = {**options, **arch, 'hidden': round(arch['width'] * arch['mlp_ratio'])}
    return {keyword: known[name] for keyword, name in TABLE['keywords'][library].items()}


class Library:
    """A library that has classes like our ViT."""

    package: ClassVar[str]

    def build(self, name: str, options: Options) -> nn.Module:
        """Build the class ``name`` with random weights."""
        raise NotImplementedError

    def run(self, network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the network's tokens (B, 1 + L, D), or cls alone (B, 1, D), keyed by our tap that must equal them."""
        raise NotImplementedError

    def config(self, name: str, options: Options) -> dict[str, Any] | None:
        """Return the content of ``config.json`` without pixel statistics; None if the library reads no folders."""
        return None


def beit_positions(options: Options) -> dict[str, Any]:
    """Return the position options that timm's and mmpretrain's BEiT share."""
    return dict(
        use_abs_pos_emb=options['position'] != 'none',
        use_rel_pos_bias=options['relative_position'] == 'per_block',
        use_shared_rel_pos_bias=options['relative_position'] == 'shared',
    )


class Timm(Library):
    """timm's ``VisionTransformer``, ``VisionTransformerDistilled``, ``Beit`` and ``Eva``."""

    package = 'timm'

    def build(self, name: str, options: Options) -> nn.Module:
        from timm.models.beit import Beit
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        kinds: dict[str, Any] = {kind.__name__: kind for kind in (Beit, VisionTransformerDistilled, VisionTransformer)}
        norm = partial(nn.LayerNorm, eps=options['norm_eps'])
        network: nn.Module = kinds.get(name, Eva)(**self.arguments(name, options), norm_layer=norm)
        return network

    def arguments(self, name: str, options: Options) -> dict[str, Any]:
        """Return the arguments of the class ``name`` as plain values, all but the norm."""
        common = dict(keywords('timm', options), num_classes=options['projection'] or 0, global_pool='token')
        if name == 'Beit':
            return {**common, **beit_positions(options)}
        registers, inner = options['num_registers'], options['inner_norm']
        if name in EVA:
            norms = dict(scale_mlp=inner is not None, scale_attn_inner=inner == 'both', qkv_fused=inner is None)
            gated, rotary = options['activation'] == 'swiglu', dict(use_rot_pos_emb=True, **EVA[name])
            return {**common, **norms, **rotary, 'swiglu_mlp': gated, 'swiglu_align_to': 0, 'num_reg_tokens': registers}
        common |= dict(pre_norm=options['pre_norm'], act_layer=options['activation'])
        if name == 'VisionTransformerDistilled':
            return common
        if not options['cls_token']:
            return {**common, 'class_token': False, 'global_pool': 'avg', 'fc_norm': False}
        return {**common, 'reg_tokens': registers, 'no_embed_class': registers > 0}

    def run(self, network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
        tokens = {'output': network.forward_features(images_BCHW)}
        if network.num_classes:
            tokens['projected'] = network(images_BCHW)[:, None]
        return tokens

    def config(self, name: str, options: Options) -> dict[str, Any]:
        if options['norm_eps'] != EPS.get(name, 1e-6):
            raise ValueError(
                f"timm's config.json cannot state norm_eps={options['norm_eps']}: write a file (.safetensors or .pth) instead "
                'of a folder, and build the network with norm_layer.'
            )
        classes = options['projection'] or 0
        model = dict(num_classes=classes, num_features=options['arch']['width'])
        return dict(architecture=TABLE['architectures'][name], **model, model_args=self.arguments(name, options))


class MMPretrain(Library):
    """mmpretrain's ``VisionTransformer``, ``DistilledVisionTransformer`` and ``BEiTViT``."""

    package = 'mmpretrain'

    def build(self, name: str, options: Options) -> nn.Module:
        from mmpretrain import models

        size, quick = options['img_size'], options['activation'] == 'quick_gelu'
        common: dict[str, Any] = dict(
            keywords('mmpretrain', options),
            img_size=size if isinstance(size, int) else tuple(size),
            arch=keywords('mmpretrain_arch', options),
            norm_cfg=dict(type='LN', eps=options['norm_eps']),
            layer_scale_init_value=options['layer_scale'] or 0.0,
            layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')) if quick else {},
            out_type='raw',
            final_norm=True,
        )
        special: dict[str, dict[str, Any]] = {
            'VisionTransformer': dict(pre_norm=options['pre_norm']),
            'DistilledVisionTransformer': {},  # it accepts pre_norm, but ignores it in forward
            'BEiTViT': beit_positions(options),
        }
        network: nn.Module = getattr(models, name)(**common, **special[name])
        return network

    def run(self, network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
        return {'output': network(images_BCHW)[-1]}


class OpenCLIP(Library):
    """OpenCLIP's visual tower."""

    package = 'open_clip'

    def build(self, name: str, options: Options) -> nn.Module:
        from open_clip.transformer import QuickGELU, VisionTransformer

        activation = QuickGELU if options['activation'] == 'quick_gelu' else nn.GELU
        network: nn.Module = VisionTransformer(**keywords('open_clip', options), act_layer=activation)
        return network

    def run(self, network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
        return {'projected': network(images_BCHW)[:, None]}


def dinov2_config(options: Options) -> dict[str, Any]:
    """Add DINOv2's layer scale, MLP and registers."""
    registers = {'num_register_tokens': options['num_registers']} if options['num_registers'] else {}
    scale, ratio = options['layer_scale'], options['arch']['mlp_ratio']
    return {'layerscale_value': scale, 'mlp_ratio': ratio, 'use_swiglu_ffn': False, **registers}


def beit_config(options: Options) -> dict[str, Any]:
    """Add BEiT's positions; its final norm is applied to tokens, not to their mean."""
    return {
        'use_relative_position_bias': options['relative_position'] == 'per_block',
        'use_shared_relative_position_bias': options['relative_position'] == 'shared',
        'use_absolute_position_embeddings': options['position'] != 'none',
        'use_mask_token': False,
        'use_mean_pooling': False,
        'layer_scale_init_value': options['layer_scale'] or 0,
    }


class HuggingFace(Library):
    """Hugging Face's ``…Model`` classes."""

    package = 'transformers'

    # What the config of a class has besides the common entries.
    EXTRAS: ClassVar[dict[str, Callable[[Options], dict[str, Any]]]] = {
        'Dinov2Model': dinov2_config,
        'Dinov2WithRegistersModel': dinov2_config,
        'BeitModel': beit_config,
        'CLIPVisionModelWithProjection': lambda options: {'projection_dim': options['projection']},
    }

    def config(self, name: str, options: Options) -> dict[str, Any]:
        extra = self.EXTRAS.get(name)
        return {
            'model_type': TABLE['model_types'][name],
            'architectures': [name],
            **keywords('transformers', options),
            'qkv_bias': True,
            **(extra(options) if extra else {}),
        }

    def build(self, name: str, options: Options) -> nn.Module:
        import transformers

        config = self.config(name, options)
        settings = {key: value for key, value in config.items() if key not in ('model_type', 'architectures')}
        model = getattr(transformers, name)
        pooler = {'add_pooling_layer': False} if config['model_type'] in ('vit', 'deit', 'beit') else {}
        network: nn.Module = model(model.config_class(**settings), **pooler)
        return network

    def run(self, network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
        output = network(images_BCHW)
        if not type(network).__name__.startswith('CLIP'):
            return {'output': output.last_hidden_state}
        if hasattr(output, 'image_embeds'):
            return {'block:-1': output.last_hidden_state, 'projected': output.image_embeds[:, None]}
        return {'block:-1': output.last_hidden_state, 'output': output.pooler_output[:, None]}
