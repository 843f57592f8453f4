"""Evaluate a checkpoint: accuracy, boxes or masks, as the config's evaluator says.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--out FILE] [--cfg-options KEY=VALUE …]

The weights must be the model's, all of them: a checkpoint of another network is an error, not a bad score. On several
processes: tools/dist_test.sh.
"""

from __future__ import annotations

import argparse
import sys

import mmengine
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mkd_plugin.preflight.config import add_shared_arguments, load_config
from mkd_plugin.preflight.data import check_data, check_work_dir
from mkd_plugin.preflight.distributed import start_process_group


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_arguments(parser)
    parser.add_argument('checkpoint', help='file to evaluate')
    parser.add_argument('--out', help='write the predictions (.pkl), or with --out-item metrics the scores (.json)')
    parser.add_argument('--out-item', choices=['pred', 'metrics'], default='pred')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    return parser.parse_args()


def main() -> int:
    """Evaluate; the exit code.

    Raises:
        ValueError: The config has nothing to evaluate, or the checkpoint is not of its model.
    """
    args = parse_args()
    cfg = load_config(args)
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise ValueError(
            f'{args.config} has no test_dataloader and test_evaluator: a pre-training has nothing to evaluate. Fine-tune '
            'its checkpoint with a config of configs/<method>/finetune, and test that.'
        )
    cfg.load_from, cfg.resume = None, False
    if cfg.get('model', {}).get('backbone', {}).get('init_cfg'):
        cfg.model.backbone.init_cfg = None  # the checkpoint has every weight: what it was fine-tuned from is not needed
    if args.amp:
        cfg.test_cfg.fp16 = True
    check_work_dir(cfg.work_dir)
    check_data(cfg, ('test_dataloader',))
    start_process_group(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    try:
        runner.load_checkpoint(args.checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise ValueError(f'{args.checkpoint} is not a checkpoint of {args.config}: {error}') from error
    if args.out and args.out_item == 'pred':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out and args.out_item == 'metrics' and runner.rank == 0:
        mmengine.dump(metrics, args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
