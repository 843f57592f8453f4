"""Exact resume: a run that was killed and resumed ends with the same weights as an uninterrupted one, bit for bit.

Every random number is a function of the seed and of the position in the run, so no generator state has to be saved.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from mkd_plugin.datasets.sampler import ExactBatches, Position, SeededDataset, seed_generators
from mkd_plugin.engine.checkpoints import check_resumable, newest_checkpoint
from mkd_plugin.engine.dependencies import CONFIG, INPUTS, check_same_samples, compare_with_checkpoint, inputs_of
from mkd_plugin.engine.provenance import config_record
from mkd_plugin.engine.run_folder import RUN, RunFolder, claim
from mkd_plugin.engine.run_utils import is_training, on_main, runs_by_epoch, when_run_ends
from mkd_plugin.registry import HOOKS
from mkd_plugin.utils.draws import derive_seed, start_step

LOADER_OPTIONS = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'multiprocessing_context', 'prefetch_factor')
ORPHAN_CHECK = 5.0  # seconds


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes every random number a function of the position in the run, for both of mmengine's training loops.

    * The order of samples depends on (seed, epoch), augmentation on (seed, epoch, index), for any number of workers.
    * Masks and drop path depend on (seed, iteration, row of the global batch), so that any number of processes draws the
      same. All else that a model draws depends on (seed, iteration, rank).
    * A resumed run continues at its position, also within an epoch, without loading the samples before it. If a validation is
      due there, it is repeated: the checkpoint is older than its score.
    * ``resume=True`` takes the newest complete checkpoint; without one the run starts from scratch with the same seed.
    * A change of config, samples, classes or teachers is refused (:mod:`.dependencies` states the rule).
    * A folder holds one run: a fresh start in a used one is refused, and so is a second process (:mod:`.run_folder`). The
      run's id is in its checkpoints, and those of other runs are not resumed from.

    Results are exact on a CPU with the same number of threads, and on a GPU as far as its kernels are deterministic
    (``randomness=dict(deterministic=True)``). With a seed of None, a run killed before its first checkpoint draws a new
    seed.

    Args:
        allow_changed_config: Resume although config, samples, classes, teachers or images of a step changed.

    Raises:
        ValueError: The folder is used, or another process trains there. On resume: the run changed, the checkpoint is of
            another run or lacks its state, or all checkpoints are damaged.
    """

    priority = 'VERY_HIGH'  # before hooks that draw random numbers or load data

    def __init__(self, *, allow_changed_config: bool = False) -> None:
        self.allow_changed_config = allow_changed_config
        self.inputs: dict[str, Any] = {}
        self.claimed = False
        self.folder: RunFolder | None = None  # while the run may write to it
        self.unvalidated = False  # where a run was resumed

    def before_run(self, runner: Runner) -> None:
        """Claim the folder, and choose the checkpoint to resume from."""
        self.choose_checkpoint(runner)
        if is_training(runner):
            when_run_ends(runner, lambda error: self._release(), last=True)

    def choose_checkpoint(self, runner: Runner) -> None:
        """Resolve ``resume=True`` to the newest complete checkpoint, the same on every rank, or to a new run."""
        if is_training(runner) and not self.claimed:  # not for a validation after the training
            resume, tell = bool(runner._resume), runner.logger.warning
            folder = on_main(lambda: claim(runner.work_dir, resume=resume, tell=tell))  # before files are touched
            self.claimed, self.folder = True, folder if is_main_process() else replace(folder, locked=False)
        if runner._resume is not True or runner._load_from is not None:  # a FlexibleRunner's may be a path
            return
        found = on_main(lambda: newest_checkpoint(runner.work_dir, warn=runner.logger.warning))
        runner._load_from, runner._resume = found, found is not None
        runner.logger.info(f'resume=True: {found or "there is no checkpoint yet, the run starts from scratch"}.')

    def _release(self) -> None:
        start_step(None)
        if self.folder is not None:
            self.folder.release()
            self.folder = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the run with the one of the checkpoint if it is resumed, not only initialised from it."""
        if not runner._resume:
            return
        source = runner._resume if isinstance(runner._resume, str) else runner._load_from
        check_resumable(checkpoint, source)
        if self.folder is not None:
            theirs = checkpoint['meta'].get(RUN)
            self.folder = self.folder.continue_from(theirs, str(source), tell=runner.logger.warning)
        compare_with_checkpoint(runner, checkpoint, source, allow_changes=self.allow_changed_config)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check that the folder is still this run's, and record the run and what it depends on."""
        if self.folder is not None:
            self.folder.check()
            checkpoint['meta'][RUN] = self.folder.run
        self.inputs = self.inputs or inputs_of(runner)
        checkpoint['meta'].update({CONFIG: config_record(runner.cfg), INPUTS: self.inputs})

    def before_train(self, runner: Runner) -> None:
        """Replace the loop's loader by one that starts at the run's position."""
        if self.folder is not None:
            runner.message_hub.update_info(RUN, self.folder.run)
        loop, self.seed = runner.train_loop, int(runner.seed)
        if (runner._randomness_cfg or {}).get('diff_rank_seed'):
            self.seed -= get_rank()  # which mmengine adds
        self.unvalidated = bool(runner._resume) and validates(runner)
        self.inputs = self.inputs or inputs_of(runner)
        check_same_samples(self.inputs)
        endless = hasattr(loop, 'dataloader_iterator')
        reason = why_not_exact(loop.dataloader, endless=endless)
        if reason is not None:
            runner.logger.warning(f'A resumed run will not see the same samples: {reason}.')
            return
        size = len(loop.dataloader)

        def position() -> tuple[int, int]:
            if endless:
                return divmod(loop.iter, size)
            batch = loop.iter - loop.epoch * size
            return loop.epoch, batch if 0 <= batch <= size else 0  # out of range only if a changed config was allowed

        loop.dataloader = make_exact(loop.dataloader, seed=self.seed, position=position, endless=endless)
        if endless:
            skips_itself = hasattr(loop.dataloader_iterator, 'skip_iter')
            loop.dataloader_iterator = EndlessBatches(loop.dataloader, ignored=0 if skips_itself else loop.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        """Validate where the run was resumed, if that was due."""
        if self.unvalidated:
            self.unvalidated = False
            runner.val_loop.run()

    after_train = before_train_epoch  # a complete run has no other epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the model draws. The batch is already loaded, whether in this process or in a worker."""
        rank, ranks = get_dist_info()
        seed_generators(derive_seed('iteration', self.seed, runner.iter, rank))
        start_step(derive_seed('step', self.seed, runner.iter), rank=rank, ranks=ranks)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Leave what is drawn between two steps to torch's generator."""
        start_step(None)


def validates(runner: Runner) -> bool:
    """Whether one of mmengine's loops validates at the run's position."""
    loop, by_epoch = runner.train_loop, runs_by_epoch(runner)
    known = isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop))
    if runner.val_loop is None or not known or (by_epoch and loop.iter != loop.epoch * len(loop.dataloader)):
        return False
    loop._decide_current_val_interval()
    done, last = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    return bool(done >= max(1, loop.val_begin) and (done % loop.val_interval == 0 or done == last))


class LoaderDied(ChildProcessError, RuntimeError):
    """A process that loads data died. An OSError, of which the commands print the message alone."""


class ExactLoader(DataLoader[Any]):
    """A loader that explains the death of a worker process."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except (RuntimeError, EOFError, ConnectionError) as error:  # the type depends on what torch was waiting for
            from_data = 'Caught' in str(error) or not self.num_workers
            if from_data or (isinstance(error, RuntimeError) and 'DataLoader worker' not in str(error)):
                raise
            raise LoaderDied(
                f'A process that loads data died ({str(error).strip() or type(error).__name__}). Most often the machine '
                'ran out of memory (lower train_dataloader.num_workers or prefetch_factor) or of shared memory (enlarge '
                '/dev/shm). Start the run again with resume=True: it continues from its last checkpoint, to the same result.'
            ) from error


class EndlessBatches:
    """Replaces the iterator of mmengine's ``IterBasedTrainLoop``: starts at the run's position and never sleeps.

    ``ignored`` calls are made by the loop only to reach the position of a resumed run (mmengine < 0.10.6).
    """

    def __init__(self, loader: ExactLoader, *, ignored: int = 0) -> None:
        self.batches = chain(repeat(None, ignored), loader)  # starts later: the loop does not know its position yet

    def __next__(self) -> Any:
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the batches already start at the right position."""


def why_not_exact(loader: DataLoader[Any], *, endless: bool) -> str | None:
    """Why the order of a loader cannot be reproduced from any position; None if it can."""
    if isinstance(loader.dataset, IterableDataset):
        return f'{type(loader.dataset).__name__} chooses the order of its samples itself'
    if loader.batch_sampler is None:
        return 'its samples are not batched by the loader (batch_size=None)'
    if isinstance(getattr(loader.batch_sampler, 'sampler', None), InfiniteSampler):
        if type(loader.batch_sampler) is not BatchSampler:
            return f'{type(loader.batch_sampler).__name__} regroups an endless order'
        if not endless:
            return 'InfiniteSampler never ends an epoch: use DefaultSampler, or an IterBasedTrainLoop'
    return None


def make_exact(loader: DataLoader[Any], *, seed: int, position: Position, endless: bool) -> ExactLoader:
    """Rebuild a loader with seeded samples in an order that can start anywhere. Raises ValueError if it has no batch."""
    if len(loader) == 0:
        raise ValueError(
            f'train_dataloader: {len(loader.dataset)} samples fill no batch of {loader.batch_size} on every process, and '  # type: ignore[arg-type]
            'drop_last=True leaves out the rest. Lower batch_size, or set drop_last=False.'
        )
    return ExactLoader(
        SeededDataset(loader.dataset, seed=seed),
        batch_sampler=ExactBatches(loader, seed=seed, position=position, endless=endless),
        worker_init_fn=partial(start_worker, then=loader.worker_init_fn),
        generator=torch.Generator(),  # otherwise each epoch draws a number from the run's own generator
        persistent_workers=loader.persistent_workers,
        **{name: getattr(loader, name) for name in LOADER_OPTIONS},
    )


def start_worker(worker: int, *, then: Callable[[int], Any] | None) -> None:
    """Let only the main process end a worker.

    A scheduler and Ctrl-C signal all processes of a run, and the main one still needs batches until it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigtimedwait'):
        signals = {signal.SIGTERM, signal.SIGUSR1}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=obey_parent, args=(signals, os.getppid()), daemon=True).start()
    if then is not None:
        then(worker)


def obey_parent(signals: set[signal.Signals], parent: int) -> None:
    """Exit on a signal from the main process, which Python sends when it ends, or when that is gone; ignore other processes.

    A worker that was sending a batch when the main process was killed would wait for ever, and keep its memory.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait(signals, ORPHAN_CHECK)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
