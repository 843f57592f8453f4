"""Train a config: ours, or any of mmpretrain's, mmdet's or mmseg's that uses our parts.

    python tools/train.py configs/dbot/dbot_digits.py [--work-dir DIR] [--resume [FILE]] [--cfg-options KEY=VALUE …]
    python tools/train.py dbot:momentum-0.9998          a row of configs/dbot/ablations.yml
    python tools/train.py CONFIG --dry-run              what would run, what is missing, and one step on made-up images

The arguments are those of the hosts' own tools. On several processes: tools/dist_train.sh, tools/slurm_train.sh.
`--cfg-options data_root=DIR` reaches the datasets.
"""

from __future__ import annotations

import argparse
import sys

from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mkd_plugin.preflight.config import add_shared_arguments, apply_training_options, load_config
from mkd_plugin.preflight.data import check_data, check_work_dir
from mkd_plugin.preflight.distributed import processes_from_environment, start_process_group


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_arguments(parser)
    parser.add_argument('--resume', nargs='?', const='auto', help='go on from the newest checkpoint, or from FILE')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision: bfloat16 where there is one')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the rate with the real batch size')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--dry-run',
        nargs='?',
        type=int,
        const=0,
        metavar='IMAGES',
        help='report and stop; the one step has IMAGES images (by default the batch size on a GPU, 4 on a CPU)',
    )
    parser.add_argument('--processes', type=int, help='with --dry-run: how many processes the run will have')
    return parser.parse_args()


def main() -> int:
    """Train, or report; the exit code."""
    args = parse_args()
    cfg = load_config(args)
    if args.dry_run is None:
        apply_training_options(cfg, args)
        check_work_dir(cfg.work_dir)
        check_data(cfg, ('train_dataloader', 'val_dataloader'))
        start_process_group(cfg)
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.train()
        return 0

    rank, processes = processes_from_environment(args.launcher)
    if rank > 0:
        return 0
    apply_training_options(cfg, args)
    from mkd_plugin.preflight.dry_run import dry_run

    return dry_run(cfg, processes=args.processes or processes, images=args.dry_run)


if __name__ == '__main__':
    sys.exit(main())
