"""A run that was killed and resumed ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

from typing import Any

from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.checkpoints import newest_checkpoint
from mkd_plugin.engine.exact_data import (
    EndlessBatches,
    base_seed,
    derive_seed,
    make_exact,
    seed_generators,
    why_not_exact,
)
from mkd_plugin.engine.provenance import changes_between, record_of
from mkd_plugin.registry import HOOKS

RECORD = 'mkd_config'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes every random number of a run a function of its position, for mmengine's own loops of both kinds.

    * Order of the samples: of (seed, epoch); augmentation: of (seed, epoch, index), in any number of workers.
    * Masks, drop path and whatever else the model draws: of (seed, iteration, rank).
    * A resumed run goes on at its position, also in the middle of an epoch, without loading what was seen.
    * ``resume=True`` takes the newest whole checkpoint; if there is none yet, the run starts anew with the same seed.
    * A config that would give another result is refused.

    It is exact on the CPU with the same number of threads; on a GPU as far as its kernels are deterministic
    (``randomness=dict(deterministic=True)``). A seed of None is drawn anew by a run killed before its first checkpoint.

    Args:
        allow_changed_config: Resume although model, data, schedule, seed or number of processes changed.

    Raises:
        ValueError: When resuming: the config changed, or all checkpoints are damaged.
    """

    priority = 'VERY_HIGH'  # before the hooks that draw or load anything

    def __init__(self, *, allow_changed_config: bool = False) -> None:
        self.allow_changed_config = allow_changed_config

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint, the same on every rank."""
        self.choose_checkpoint(runner)

    def choose_checkpoint(self, runner: Runner) -> None:
        """Let ``resume=True`` mean the newest whole checkpoint, or a new run if there is none."""
        if runner._resume is not True or runner._load_from is not None:  # FlexibleRunner's may be a path
            return
        found = [newest_checkpoint(runner.work_dir, warn=runner.logger.warning) if get_rank() == 0 else None]
        broadcast_object_list(found)
        runner._load_from, runner._resume = found[0], found[0] is not None
        runner.logger.info(f'resume=True: {found[0] or "there is no checkpoint yet, the run starts anew"}.')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the configs, if the run is resumed and not merely initialised."""
        old = checkpoint.get('meta', {}).get(RECORD)
        changes = changes_between(old, record_of(runner.cfg)) if runner._resume and old is not None else []
        if not changes:
            return
        listed = '\n    '.join(changes)
        if not self.allow_changed_config:
            raise ValueError(
                f'The run to be resumed from {runner._load_from} has another config. Changed:\n    {listed}\nRestore '
                'these values; or start a new run in another work_dir, with load_from instead of resume; or allow it '
                'with default_hooks.exact_resume.allow_changed_config=True: the result is then that of neither config.'
            )
        runner.logger.warning(f'Resumed with another config, as allowed. Changed:\n    {listed}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add what the config was."""
        checkpoint['meta'][RECORD] = record_of(runner.cfg)

    def before_train(self, runner: Runner) -> None:
        """Give the loop a loader that starts where the run is."""
        loop, self.seed = runner.train_loop, base_seed(runner)
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
            loop.dataloader_iterator = EndlessBatches(loop.dataloader, swallow=0 if skips_itself else loop.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the model draws. The batch is loaded already, so that loading it here or elsewhere is the same."""
        seed_generators(derive_seed('iteration', self.seed, runner.iter, get_rank()))
