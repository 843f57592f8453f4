"""Record a run with Weights & Biases, through mmengine's visualizer."""

from __future__ import annotations

import netrc
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from mmengine.config import Config


def add_wandb(cfg: Config, project: str) -> None:
    """Add mmengine's ``WandbVisBackend`` to a config; the run is named after its work dir. See :func:`check_wandb`."""
    check_wandb()
    before = cfg.get('visualizer') or {}
    backend = dict(type='WandbVisBackend', init_kwargs=dict(project=project, name=Path(cfg.work_dir).name))
    cfg.visualizer = {'type': 'Visualizer', **before, 'vis_backends': [*(before.get('vis_backends') or []), backend]}


def check_wandb() -> None:
    """Raise ValueError unless wandb can record a run."""
    if find_spec('wandb') is None:
        raise ValueError('--wandb needs wandb, which is not installed: pip install wandb.')
    import wandb

    settings = wandb.setup().settings
    if settings.mode not in ('online', 'shared') or settings.api_key:
        return
    try:
        saved = netrc.netrc().authenticators(urlsplit(settings.base_url).hostname or '')
    except (OSError, netrc.NetrcParseError):  # no such file
        saved = None
    if saved is None:
        raise ValueError(
            '--wandb: wandb is not logged in. Run `wandb login`, or set WANDB_MODE=offline and upload later with '
            '`wandb sync`.'
        )
