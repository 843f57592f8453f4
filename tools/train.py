"""Train a config: ours, or any of mmpretrain's, mmdet's or mmseg's that uses our parts.

    python tools/train.py configs/dbot/dbot_digits.py [--work-dir DIR] [--resume [FILE]] [--cfg-options KEY=VALUE …]
    python tools/train.py dbot:momentum-0.9998          a row of configs/dbot/ablations.yml

The arguments are those of the hosts' own tools.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

import mkd_plugin


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config file, or METHOD:ROW for an ablation')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; work_dirs/<config> by default')
    parser.add_argument('--resume', nargs='?', const='auto', help='go on from the newest checkpoint, or from FILE')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision in bfloat16')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the rate with the real batch size')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='changes of the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch, which mim uses, passes the rank on; torchrun sets the variable instead
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's changes.

    Raises:
        ValueError: --auto-scale-lr although the config does not say which batch size its rate is for.
    """
    method, _, row = args.config.partition(':')
    cfg = mkd_plugin.get_ablation(method, row) if row else Config.fromfile(args.config)
    cfg.launcher = args.launcher
    cfg.merge_from_dict(args.cfg_options)
    name = f'{method}_{row}' if row else Path(args.config).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise ValueError(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr=dict(base_batch_size=…) to scale from.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    return cfg


if __name__ == '__main__':
    Runner.from_cfg(load_config(parse_args())).train()
