"""Evaluate a checkpoint with the evaluator of its config: accuracy, boxes or masks.

    mkd test CONFIG CHECKPOINT [--work-dir DIR] [--out FILE] [--cfg-options KEY=VALUE ...]

The checkpoint must hold all weights of the model; a checkpoint of another network is an error. To evaluate on several
processes, run tools/dist_test.sh.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from mkd_cli.command import script
from mkd_cli.train import add_run_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add_run_arguments(parser)
    add('checkpoint', help='checkpoint file to evaluate')
    add('--out', metavar='FILE', help='file for what --out-item names (default: nothing is written)')
    add('--out-item', choices=['pred', 'metrics'], default='pred', help='write predictions (.pkl) or scores (.json)')
    add('--amp', action='store_true', help='use mixed precision')


def run(args: argparse.Namespace) -> int:
    """Evaluate; return the exit code."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    import mmengine
    from mmengine.evaluator import DumpResults

    from mkd_plugin.preflight.annotations import check_annotations
    from mkd_plugin.preflight.checks import check_data, check_work_dir, exists
    from mkd_plugin.preflight.config import load_config
    from mkd_plugin.preflight.distributed import build_runner, processes_from_environment
    from mkd_plugin.preflight.mistakes import config_mistakes
    from mkd_plugin.preflight.rehearsal import rehearse
    from mkd_plugin.utils.configs import parse_options

    endings = {'pred': ('.pkl', '.pickle'), 'metrics': ('.json', '.yml', '.yaml', '.pkl')}[args.out_item]
    if args.out and not args.out.endswith(endings):
        raise ValueError(
            f'--out {args.out}: --out-item {args.out_item} needs a file that ends in {", ".join(endings)}.'
        )
    options = parse_options(args.cfg_options)
    cfg = load_config(args.config, work_dir=args.work_dir, options=options, launcher=args.launcher)
    processes_from_environment(args.launcher)
    prepare_test(cfg, args.config, amp=args.amp)
    rehearse(cfg, training=False)
    check_work_dir(cfg.work_dir)
    check_data(cfg, ('test_dataloader',))
    check_annotations(cfg, ('test_dataloader',))
    if not exists(args.checkpoint):
        raise ValueError(f'There is no checkpoint {args.checkpoint}.')
    with config_mistakes(cfg):
        runner = build_runner(cfg)
        try:
            runner.load_checkpoint(args.checkpoint, map_location='cpu', strict=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ValueError(
                f'{args.checkpoint} is not a checkpoint of {args.config}: {" ".join(lines[:3])}'
            ) from error
    if args.out and args.out_item == 'pred':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out and args.out_item == 'metrics' and runner.rank == 0:
        mmengine.dump(metrics, args.out)
    return 0


def prepare_test(cfg: Any, name: str, *, amp: bool = False) -> None:
    """Prepare a config for evaluation: nothing but the tested checkpoint is loaded. Raises ValueError without a test set."""
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise ValueError(
            f'{name} has no test_dataloader and test_evaluator: a pre-training has nothing to evaluate. Fine-tune its '
            'checkpoint with a config of configs/<method>/finetune, and test that.'
        )
    cfg.load_from, cfg.resume = None, False
    if cfg.get('model', {}).get('backbone', {}).get('init_cfg'):
        cfg.model.backbone.init_cfg = None  # the checkpoint has every weight: its own start is not needed
    if amp:
        cfg.test_cfg.fp16 = True


main = script('test')
