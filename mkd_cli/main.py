"""Masked knowledge distillation of vision transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from mkd_cli.command import USAGE_ERROR, did_you_mean, run_command

COMMANDS = {
    'pretrain': 'pre-train on a folder of images: one command, with defaults for everything',
    'train': 'train a config, or report with --dry-run what it would do',
    'test': 'evaluate a fine-tuned checkpoint with the evaluator of its config',
    'evaluate': 'evaluate frozen networks by k-NN, linear probes and few-shot learning',
    'evaluate-classifier': 'evaluate fine-tuned classifiers on other image sets, and measure their shape bias',
    'analyze': 'measure attention, spectra, similarity and curvature of networks, as one page',
    'benchmark': 'fine-tune checkpoints for classification, detection and segmentation, as one report',
    'sweep': 'fine-tune over several learning rates or numbers of frozen blocks, as one plot',
    'look': 'show nearest neighbours and patch features of a folder of images, as one page',
    'features': 'write the features of a folder of images, as .npz, Parquet or safetensors',
    'convert': 'convert a checkpoint between formats',
    'export': 'like convert, and also write ONNX, torch.export and TorchScript',
    'inspect': 'describe a checkpoint file without running anything in it',
    'print-config': 'print a config with everything it inherits',
    'make-shards': 'pack a folder of images into tar shards',
    'make-label-list': 'write a list of labelled images for semi-supervised fine-tuning',
    'make-digits': 'write the embedded handwritten digits as an image folder',
    'make-digit-scenes': 'write scenes of digits in the formats of COCO and ADE20K',
    'doctor': 'report versions, devices, and what is missing and how to install it',
    'host': "run a host package's own script with mkd_plugin imported first",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ['--help']
    if name in ('-h', '--help'):
        print(help_text())
        return 0
    if name == '--version':
        print(installed_version())
        return 0
    if name not in COMMANDS:
        kind = 'option' if name.startswith('-') else 'command'
        hint = did_you_mean(name, COMMANDS) or ' See mkd --help.'
        print(f'error: unknown {kind} {name!r}.{hint}', file=sys.stderr)
        return USAGE_ERROR
    return run_command(import_module(f'mkd_cli.{name.replace("-", "_")}'), rest, prog=f'mkd {name}')


def help_text() -> str:
    """Return usage and the table of commands."""
    width = max(map(len, COMMANDS))
    rows = '\n'.join(f'  {name:<{width}}  {text}' for name, text in COMMANDS.items())
    return (
        f'usage: mkd COMMAND [ARGUMENTS]\n\n{__doc__}\n\ncommands:\n{rows}\n\n'
        'mkd COMMAND --help describes a command. mkd --version prints the version.'
    )


def installed_version() -> str:
    """Return the version of the installed package."""
    try:
        return version('mkd-plugin')
    except PackageNotFoundError:
        return 'mkd_plugin is not installed; this is a checkout'


if __name__ == '__main__':
    sys.exit(main())
