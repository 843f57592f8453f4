"""What a folder of weights holds beside them, so that Hugging Face and timm build the network and prepare its images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mkd_plugin.interop.export import ForeignClass
from mkd_plugin.interop.libraries import TABLE, Options
from mkd_plugin.interop.pixels import SHORT_EDGE


def folder_files(
    foreign: ForeignClass, options: Options, provenance: Mapping[str, Any], parameters: int
) -> dict[str, str] | None:
    """Return the texts of a folder by file name; None for a library that reads no folders.

    Args:
        foreign: The class that the weights are for.
        options: The network's options.
        provenance: Where the weights come from, with the pixel statistics if they are known.
        parameters: Number of weights.
    """
    package, config = foreign.library.package, foreign.library.config(foreign.name, options)
    if config is None:
        return None
    size = options['img_size']
    height, width = (size, size) if isinstance(size, int) else size
    statistics = None
    if 'pixel_mean' in provenance:
        statistics = [[value / 255 for value in provenance[name]] for name in ('pixel_mean', 'pixel_std')]
    files = {'config.json': config}
    if package == 'timm':
        config['pretrained_cfg'] = pretrained_config((height, width), config['num_classes'], statistics)
    elif statistics is not None:
        files['preprocessor_config.json'] = processor_config((height, width), statistics)
    texts = {name: json.dumps(content, indent=2) + '\n' for name, content in files.items()}
    source = provenance['source']
    texts['README.md'] = TABLE['model_card'].format(
        library=package,
        title=f'{foreign.name} of mkd_plugin',
        parameters=parameters,
        version=provenance['version'],
        file=source['file'],
        sha256=source['sha256'],
        format=source['format'],
        height=height,
        width=width,
        patch=options['patch_size'],
        pixels='Its pixel statistics are not known.' if statistics is None else 'Pixel statistics are in the config.',
        use=TABLE['uses'][package],
        provenance=json.dumps(provenance, indent=2, default=str),
    )
    return texts


def processor_config(image_hw: tuple[int, int], statistics: list[list[float]]) -> dict[str, Any]:
    """Return ``preprocessor_config.json``: resize the short edge (bicubic), crop the centre, normalise."""
    height, width = image_hw
    return {
        'image_processor_type': 'BitImageProcessor',
        'do_convert_rgb': True,
        'do_resize': True,
        'size': {'shortest_edge': round(max(image_hw) * SHORT_EDGE)},
        'resample': 3,
        'do_center_crop': True,
        'crop_size': {'height': height, 'width': width},
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': statistics[0],
        'image_std': statistics[1],
    }


def pretrained_config(image_hw: tuple[int, int], classes: int, statistics: list[list[float]] | None) -> dict[str, Any]:
    """Return what timm calls ``pretrained_cfg``: how images are prepared."""
    known = {} if statistics is None else {'mean': statistics[0], 'std': statistics[1]}
    return {
        'input_size': [3, *image_hw],
        'fixed_input_size': True,
        'interpolation': 'bicubic',
        'crop_pct': max(image_hw) / (round(max(image_hw) * SHORT_EDGE) + 0.01),  # timm rounds their ratio down
        'num_classes': classes,
        **known,
    }
