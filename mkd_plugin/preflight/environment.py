"""What a report of a problem should say about the machine."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import torch
from mmengine.utils.dl_utils import collect_env

from mkd_plugin.compat.hosts import HOSTS
from mkd_plugin.version import __version__


def describe_environment() -> dict[str, str]:
    """mmengine's environment, and beside it the versions of the plugin, the hosts and timm, threads, and bf16."""
    found = {str(name): str(value) for name, value in collect_env().items()}
    found['mkd_plugin'] = __version__
    for host in HOSTS:
        installed = host.installed()
        names = ', '.join(f'{number} ({name})' for name, number in installed.items())
        found[host.module] = names or f'not installed (supported {host.supported})'
    for name in ('timm', 'numpy', 'pillow', 'opencv-python', 'transformers'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = 'not installed'
    found['CPU cores'] = str(os.cpu_count())
    found['CPU threads of torch'] = str(torch.get_num_threads())
    gpu = torch.cuda.is_available()
    found['GPU bf16'] = (
        ('yes' if torch.cuda.is_bf16_supported() else 'no: mixed precision is fp16') if gpu else 'no GPU'
    )
    return found
