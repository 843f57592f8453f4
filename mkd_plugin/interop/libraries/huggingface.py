"""Our networks as Hugging Face's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Options = Mapping[str, Any]

# Our kind → Hugging Face's name of the model, its class, and what its config has beside the sizes.
CLASSES: dict[str, tuple[str, str, Callable[[Options], dict[str, Any]]]] = {
    'vit': ('vit', 'ViTModel', lambda options: {}),
    'deit': ('deit', 'DeiTModel', lambda options: {}),
    'dinov2': ('dinov2', 'Dinov2Model', lambda options: scales(options)),
    'dinov2_registers': (
        'dinov2_with_registers',
        'Dinov2WithRegistersModel',
        lambda options: {**scales(options), 'num_register_tokens': options['num_registers']},
    ),
    'beit': ('beit', 'BeitModel', lambda options: relative(options)),
    'clip': (
        'clip_vision_model',
        'CLIPVisionModelWithProjection',
        lambda options: {'projection_dim': options['projection']},
    ),
    'clip_unprojected': ('clip_vision_model', 'CLIPVisionModel', lambda options: {}),
}


def scales(options: Options) -> dict[str, Any]:
    """DINOv2's layer scale and MLP."""
    return {
        'layerscale_value': options['layer_scale'],
        'mlp_ratio': options['arch']['mlp_ratio'],
        'use_swiglu_ffn': False,
    }


def relative(options: Options) -> dict[str, Any]:
    """BEiT's positions, and its norm of tokens instead of their mean."""
    return {
        'use_relative_position_bias': options['relative_position'] == 'per_block',
        'use_shared_relative_position_bias': options['relative_position'] == 'shared',
        'use_absolute_position_embeddings': options['position'] != 'none',
        'use_mask_token': False,
        'use_mean_pooling': False,
        'layer_scale_init_value': options['layer_scale'] or 0,
    }


def config_of(kind: str, options: Options) -> dict[str, Any]:
    """The ``config.json`` of a network."""
    model_type, architecture, more = CLASSES[kind]
    arch = options['arch']
    size = options['img_size']
    return {
        'model_type': model_type,
        'architectures': [architecture],
        'hidden_size': arch['width'],
        'num_hidden_layers': arch['depth'],
        'num_attention_heads': arch['num_heads'],
        'intermediate_size': round(arch['width'] * arch['mlp_ratio']),
        'hidden_act': options['activation'],
        'layer_norm_eps': options['norm_eps'],
        'image_size': size if isinstance(size, int) else list(size),
        'patch_size': options['patch_size'],
        'num_channels': options['in_channels'],
        'qkv_bias': True,
        **more(options),
    }


def build(kind: str, options: Options) -> nn.Module:
    """The network, with random weights."""
    import transformers

    config = config_of(kind, options)
    settings = {name: value for name, value in config.items() if name not in ('model_type', 'architectures')}
    model = getattr(transformers, CLASSES[kind][1])
    pooler = {'add_pooling_layer': False} if kind in ('vit', 'deit', 'beit') else {}  # which the others cannot have
    network: nn.Module = model(model.config_class(**settings), **pooler)
    return network


def builder(kind: str) -> Callable[[Options], nn.Module]:
    """The function that builds one kind."""
    return lambda options: build(kind, options)


BUILDERS = {kind: builder(kind) for kind in CLASSES}


def run(network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
    """All tokens after the final norm."""
    return {'output': network(images_BCHW).last_hidden_state}


def run_clip(network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
    """All tokens before the final norm, and cls after it or after the projection."""
    found = network(images_BCHW)
    if hasattr(found, 'image_embeds'):
        return {'block:-1': found.last_hidden_state, 'projected': found.image_embeds[:, None]}
    return {'block:-1': found.last_hidden_state, 'output': found.pooler_output[:, None]}
