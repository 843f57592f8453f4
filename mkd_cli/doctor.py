"""Report versions, devices, and what is missing and how to install it. Add the output to a bug report.

mkd doctor
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from mkd_cli.command import script
from mkd_cli.environment import explain_missing_module, stale_environment

# Optional distributions, and what needs them.
OPTIONAL = {
    'transformers': ("teachers and exports in Hugging Face's format", 'pip install "transformers>=4.53,<5"'),
    'open_clip_torch': ("checks of exports in OpenCLIP's format", 'pip install "open_clip_torch>=2.24"'),
}
REPORTED = ('torch', 'torchvision', 'timm', 'numpy', 'scikit-learn', 'pillow', 'opencv-python', *OPTIONAL)
LEFT_OUT = ('PyTorch', 'TorchVision', 'PyTorch compiling details', 'numpy_random_seed', 'sys.platform')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print the report; return 1 if a problem was found."""
    problem = import_problem()
    for name, value in describe_environment().items() if problem is None else versions().items():
        print(f'{name}: {value}')
    problems = [text for text in (problem, stale_environment()) if text]
    for text in problems:
        print(f'problem: {text}')
    for text in missing_parts() if problem is None else ():
        print(f'optional: {text}')
    print('not ready' if problems else 'ready')
    return 1 if problems else 0


def import_problem() -> str | None:
    """Return why mkd_plugin cannot be imported, or None."""
    try:
        import mkd_plugin  # noqa: F401
    except ModuleNotFoundError as error:
        return explain_missing_module(error)
    except ImportError as error:
        return str(error)
    return None


def versions() -> dict[str, str]:
    """Return the versions of everything that matters here, from metadata alone."""
    found = {'Python': platform.python_version(), 'platform': platform.platform()}
    for name in REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = 'not installed'
    return found


def missing_parts() -> Iterator[str]:
    """Yield a sentence for each optional part that is missing, with the command that installs it."""
    from mkd_plugin.compat.hosts import explain_missing_host

    for module, task in (('mmdet', 'object detection'), ('mmseg', 'semantic segmentation')):
        message = explain_missing_host(module, task)
        if message is not None:
            yield message
    for name, (task, command) in OPTIONAL.items():
        if versions()[name] == 'not installed':
            yield f'{task} need {name}, which is not installed: run `{command}`.'


def describe_environment() -> dict[str, str]:
    """Return mmengine's report of the environment, and the versions of the plugin, its hosts and libraries."""
    import torch
    from mmengine.utils.dl_utils import collect_env

    from mkd_plugin.compat.hosts import HOSTS
    from mkd_plugin.version import __version__

    found = {'mkd_plugin': __version__}
    for host in HOSTS:
        names = ', '.join(f'{number} ({name})' for name, number in host.installed().items())
        found[host.module] = names or f'not installed (supported {host.supported})'
    found.update(versions())
    found |= {str(name): str(value) for name, value in collect_env().items() if name not in LEFT_OUT}
    found['CPU cores'] = str(os.cpu_count())
    found['CPU threads of torch'] = str(torch.get_num_threads())
    found['GPU bf16'] = 'no GPU'
    if torch.cuda.is_available():
        found['GPU bf16'] = 'yes' if torch.cuda.is_bf16_supported() else 'no: mixed precision is fp16'
    return found


main = script('doctor')
