"""Train a config: ours, or any config of mmpretrain, mmdet or mmseg that uses our components.

    mkd train configs/dbot/dbot_digits.py [--work-dir DIR] [--resume [FILE]] [--cfg-options KEY=VALUE ...]
    mkd train dbot:momentum-0.9998          train a row of configs/dbot/ablations.yml
    mkd train CONFIG --dry-run              show what would run and what is missing, and try one step on random images
    mkd train CONFIG --find-batch           find the largest batch that fits in memory

The arguments are those of the hosts' own tools. To train on several processes, run tools/dist_train.sh or
tools/slurm_train.sh. `--cfg-options data_root=DIR` sets the folder of all datasets.

Ctrl-C saves the state and exits with 130 (a second one exits at once), SIGTERM and SIGUSR1 save it and exit with 85.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING

from mkd_cli.command import at_least, script

if TYPE_CHECKING:
    from mmengine.config import Config

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train` and `test`, named as in the hosts' own tools."""
    parser.add_argument('config', help='config file, name of a shipped config, or METHOD:ROW for an ablation')
    parser.add_argument('--work-dir', metavar='DIR', help='folder of logs and checkpoints (default: work_dirs/CONFIG)')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='what started this process')
    # torch.distributed.launch, which mim uses, passes the rank as an option; torchrun sets the variable instead
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-options`."""
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='settings of the config to change'
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_run_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help='continue from the newest checkpoint of the work dir, or from FILE (default: start anew)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='start anew in a used work dir; the old one is renamed, never deleted'
    )
    parser.add_argument('--amp', action='store_true', help='use mixed precision: bfloat16 where the GPU has it')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--wandb', metavar='PROJECT', help='record the run with Weights & Biases (default: off)')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--dry-run',
        nargs='?',
        type=at_least(1),
        const=0,
        metavar='IMAGES',
        help='report without training; the one step uses IMAGES images (default: off; IMAGES is the batch size on a GPU, '
        '4 on a CPU)',
    )
    parser.add_argument(
        '--find-batch',
        nargs='?',
        type=at_least(1),
        const=0,
        metavar='MIB',
        help='find the largest batch that fits in MIB of memory, without training (default: off; MIB is what is free)',
    )
    parser.add_argument(
        '--processes',
        type=at_least(1),
        help='number of processes that --dry-run and --find-batch assume (default: those of the launcher)',
    )


def run(args: argparse.Namespace) -> int:
    """Train, or report; return the exit code."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    from mkd_plugin.preflight.config import apply_training_options, load_config
    from mkd_plugin.preflight.distributed import processes_from_environment
    from mkd_plugin.utils.configs import parse_options

    if args.resume and args.overwrite:
        raise ValueError('--resume continues the run of the work dir, --overwrite starts a new one: give one of them.')
    options = parse_options(args.cfg_options)
    cfg = load_config(args.config, work_dir=args.work_dir, options=options, launcher=args.launcher)
    rank, processes = processes_from_environment(args.launcher)
    if (args.dry_run is not None or args.find_batch is not None) and rank > 0:
        return 0
    apply_training_options(
        cfg, amp=args.amp, validate=not args.no_validate, auto_scale_lr=args.auto_scale_lr, resume=args.resume
    )
    if args.wandb is not None:
        from mkd_plugin.preflight.tracking import add_wandb

        add_wandb(cfg, args.wandb)
    if args.dry_run is not None:
        from mkd_plugin.preflight.dry_run import dry_run

        return dry_run(cfg, processes=args.processes or processes, images=args.dry_run)
    if args.find_batch is not None:
        from mkd_plugin.preflight.batch import find_batch
        from mkd_plugin.preflight.rehearsal import check_for_report

        check_for_report(cfg)
        find_batch(cfg, processes=args.processes or processes, limit=args.find_batch)
        return 0
    return train(cfg, overwrite=args.overwrite)


def train(cfg: Config, *, overwrite: bool) -> int:
    """Check the run, then train; return the exit code."""
    from mkd_plugin.engine.run_folder import check_unused, held
    from mkd_plugin.preflight.annotations import check_annotations, check_samples
    from mkd_plugin.preflight.checks import check_data, check_work_dir
    from mkd_plugin.preflight.distributed import build_runner, start_process_group
    from mkd_plugin.preflight.mistakes import config_mistakes
    from mkd_plugin.preflight.rehearsal import rehearse

    start_process_group(cfg)
    if not (cfg.get('resume') or overwrite):
        check_unused(cfg.work_dir)
    rehearse(cfg)
    check_work_dir(cfg.work_dir)
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    check_annotations(cfg, ('train_dataloader', 'val_dataloader'))
    check_samples(cfg, ('train_dataloader', 'val_dataloader'))
    logging.raiseExceptions = False  # a log file on a full disk must not print a traceback per line
    with config_mistakes(cfg), held(cfg.work_dir, resume=bool(cfg.get('resume')), overwrite=overwrite):
        build_runner(cfg).train()
    return 0


main = script('train')
