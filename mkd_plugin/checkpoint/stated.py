"""What a file says about its network beside names and shapes: our provenance, or Hugging Face's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mkd_plugin.checkpoint.read import provenance_of

__all__ = ['stated_grid', 'stated_options']

ACTIVATIONS = {'gelu': 'gelu', 'quick_gelu': 'quick_gelu'}


def stated_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``VisionTransformer`` that a file states; ``num_heads`` stands beside them where ``arch`` is not all known.

    Raises:
        ValueError: It states an activation that our network does not have.
    """
    options = provenance_of(checkpoint).get('backbone')
    if isinstance(options, dict):
        return options
    meta = checkpoint.get('meta')
    config = meta.get('hf_config') if isinstance(meta, dict) else None
    if not isinstance(config, dict):
        return {}
    config = config.get('vision_config', config)  # of a whole CLIP
    found = {
        'num_heads': config.get('num_attention_heads'),
        'norm_eps': config.get('layer_norm_eps'),
        'img_size': config.get('image_size'),
        'patch_size': config.get('patch_size'),
        'activation': activation_of(config.get('hidden_act', 'gelu')),
    }
    return {name: value for name, value in found.items() if value is not None}


def activation_of(name: str) -> str:
    """Our name of Hugging Face's activation. Raises ValueError if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"The file's network has the activation '{name}'; ours has {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def stated_grid(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Patches per column and row, if the options tell it."""
    size, patch = options.get('img_size'), options.get('patch_size')
    if size is None or not isinstance(patch, int):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch
