"""The runs of kill_resume.py: a tiny dBOT in two stages, a detector and a segmentor, by either loop; and where they die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EPOCH, EPOCHS, BATCH = 6, 4, 4  # of dBOT: iterations in an epoch, epochs (half of them in each stage), images of a step
DENSE_EPOCH, DENSE_EPOCHS = 4, 2  # of detectors and segmentors: seven scenes in batches of two
DENSE = {
    'detector': 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes',
    'segmentor': 'downstream/mmseg/vit-digits_upernet_digit-scenes',
}
MODULES = {
    'dbot': ['mkd_plugin.models', 'mkd_plugin.engine', 'mmpretrain.models', 'mmpretrain.datasets', 'mmpretrain.engine'],
    'detector': ['mmdet.models', 'mmdet.datasets', 'mmdet.engine'],
    'segmentor': ['mmseg.models', 'mmseg.datasets', 'mmseg.engine'],
}
# Where a process kills itself.
CHECKPOINT_AIMS = ('part of a checkpoint', 'before the rename', 'before the pointer', 'before the deletion')
AIMS = (*CHECKPOINT_AIMS, 'part of a stage', 'breakpoint')


@dataclass(frozen=True)
class Scenario:
    """What is trained, how its progress is counted, how its data are loaded, and by how many processes.

    Attributes:
        loop: 'epochs' or 'iterations'.
        workers: Worker processes of the data loader.
        accumulate: Iterations of an optimizer step.
        ranks: Processes that train; more than one are connected by gloo.
        model: 'dbot', 'detector' or 'segmentor'.
    """

    loop: str
    workers: int
    accumulate: int = 1
    ranks: int = 1
    model: str = 'dbot'

    def __str__(self) -> str:
        return f'{self.model}-{self.loop}-{self.workers}-workers-{self.accumulate}-accumulated-{self.ranks}-processes'

    @property
    def iterations(self) -> int:
        """Iterations of the whole run."""
        return EPOCH * EPOCHS if self.model == 'dbot' else DENSE_EPOCH * DENSE_EPOCHS


# Four accumulated iterations do not divide an epoch of six: checkpoints due between two steps are postponed.
DBOT = (
    Scenario('epochs', 0),
    Scenario('epochs', 2, 4),
    Scenario('iterations', 0, 2),
    Scenario('iterations', 2),
)
SCENARIOS = (
    *DBOT,
    Scenario('epochs', 0, ranks=2),
    Scenario('iterations', 2, ranks=2),
    Scenario('epochs', 0, model='detector'),
    Scenario('iterations', 2, model='detector'),
    Scenario('epochs', 2, model='segmentor'),
    Scenario('iterations', 0, model='segmentor'),
    Scenario('iterations', 0, ranks=2, model='segmentor'),
)


def write_data(model: str, folder: Path) -> Path:
    """Write the images that a model is trained on, unless they are there."""
    if model == 'dbot':
        from mkd_plugin.datasets import write_digits

        return folder / 'digits' if (folder / 'digits').exists() else write_digits(folder / 'digits')
    from projects.digit_scenes.writing import write_digit_scenes

    return write_digit_scenes(folder / 'scenes', train=7, val=1)


def build_config(scenario: Scenario, data: Path, work_dir: Path) -> Any:
    """Config of a run that keeps one checkpoint and resumes by itself; its workers are persistent."""
    from mmengine.config import Config

    from mkd_plugin.preflight.config import fit_to_device

    cfg = dbot_config(scenario, data) if scenario.model == 'dbot' else dense_config(scenario, data)
    cfg.work_dir, cfg.resume, cfg.log_level, cfg.visualizer = str(work_dir), True, 'ERROR', None
    cfg.launcher = 'none' if scenario.ranks == 1 else 'pytorch'
    fit_to_device(cfg)
    cfg.train_dataloader.update(num_workers=scenario.workers, persistent_workers=scenario.workers > 0)
    cfg.optim_wrapper.accumulative_counts = scenario.accumulate
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.default_hooks.pop('curves', None)  # half a second each
    return Config(cfg.to_dict(), format_python_code=False)  # laying its text out takes yapf a second


def dbot_config(scenario: Scenario, data: Path) -> Any:
    """A tiny dbot_digits with drop path, in two stages."""
    import mkd_plugin

    cfg = mkd_plugin.get_config('dbot/dbot_digits')
    cfg.model.backbone.update(arch=dict(width=16, depth=2, num_heads=2), patch_size=8, drop_path_rate=0.3)
    cfg.model.objectives.feature.head.update(depth=1, width=16, num_heads=2)
    cfg.train_dataloader.batch_size = BATCH // scenario.ranks
    cfg.train_dataloader.dataset.update(data_root=str(data), indices=BATCH * EPOCH)
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 1
    cfg.param_scheduler[1].end = EPOCHS // 2
    cfg.train_cfg.max_epochs = EPOCHS
    cfg.default_hooks.checkpoint.interval = 1
    if scenario.loop == 'iterations':
        for entry in cfg.param_scheduler:
            entry.update(by_epoch=False, convert_to_iter_based=False, begin=entry.begin * EPOCH, end=entry.end * EPOCH)
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=EPOCHS * EPOCH)
        cfg.train_dataloader.sampler.type = 'InfiniteSampler'
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
        cfg.log_processor = dict(by_epoch=False)
    return cfg


def dense_config(scenario: Scenario, data: Path) -> Any:
    """The detector or segmentor of the digit scenes with four narrow blocks, without validation."""
    from helpers.tiny_dense import read, shrink

    from mkd_plugin.preflight.config import move_data_root

    cfg = shrink(read(DENSE[scenario.model]))
    if scenario.model == 'segmentor':
        cfg.model.data_preprocessor.size = (96, 96)  # of a scene
    else:
        for head in cfg.model.roi_head.bbox_head:
            head.fc_out_channels = 16
    move_data_root(cfg, f'{data}/')
    cfg.data_root = f'{data}/'
    for part in ('val', 'test'):
        for name in ('cfg', 'dataloader', 'evaluator'):
            cfg.pop(f'{part}_{name}', None)
    cfg.default_hooks.pop('visualization', None)
    cfg.train_dataloader.batch_size = 2 // scenario.ranks
    cfg.train_dataloader.dataset.indices = DENSE_EPOCH * 2 - 1
    cfg.default_hooks.checkpoint.interval = 2
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=scenario.iterations)
    if scenario.loop == 'epochs':
        cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=DENSE_EPOCHS)
        cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        cfg.log_processor = dict(by_epoch=True)
    return cfg


@dataclass(frozen=True)
class Moment:
    """When a process kills itself.

    Attributes:
        aim: One of ``AIMS``.
        nth: At which of its occurrences.
        share: Which part of the file is written before, 0 … 1.
    """

    aim: str
    nth: int
    share: float


def train(cfg: Any, moment: Moment | None, rank: int, port: int, progress: Any) -> None:
    """Train from scratch or resume as one of the run's processes; runs in its own process."""
    import torch
    from mmengine.hooks import Hook

    from mkd_plugin.preflight.distributed import build_runner

    class Report(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            progress.value += rank == 0

    os.setpgid(0, 0)  # its data workers are ended with it
    Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
    log = os.open(Path(cfg.work_dir, 'output.txt'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if cfg.launcher != 'none':
        places = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_PORT=port, MASTER_ADDR='127.0.0.1')
        os.environ.update({name: str(value) for name, value in places.items()})
    torch.set_num_threads(1)
    runner = build_runner(cfg)
    runner.register_hook(Report())
    if moment is not None:
        kill_at(moment)
    runner.train()


def kill_at(moment: Moment) -> None:
    """Make this process kill itself when it reaches a certain line for the nth time."""
    from mmengine.fileio import LocalBackend

    from mkd_plugin.engine import AtomicCheckpointHook, checkpoints, saving, teacher_updates

    left = [moment.nth]

    def dies(function: Callable[..., Any], at: Callable[..., bool] = lambda *args: True) -> Callable[..., Any]:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            left[0] -= at(*args)
            if left[0] <= 0:
                if function is put:
                    Path(args[2]).write_bytes(args[1][: int(len(args[1]) * moment.share)])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return replaced

    put = LocalBackend.put
    owner, name, at = {
        'part of a checkpoint': (LocalBackend, 'put', lambda self, data, path: 'stage' not in Path(path).name),
        'part of a stage': (LocalBackend, 'put', lambda self, data, path: 'stage' in Path(path).name),
        'before the rename': (checkpoints, 'move_into_place', lambda *args: True),
        'before the pointer': (saving, 'point_to', lambda *args: True),
        'before the deletion': (AtomicCheckpointHook, '_forget', lambda self, steps: bool(steps)),
        'breakpoint': (teacher_updates, 'restart_schedule', lambda *args: True),
    }[moment.aim]
    setattr(owner, name, dies(getattr(owner, name), at))
