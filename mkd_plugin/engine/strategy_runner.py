"""mmengine's runner for strategies, with checkpoints and exact resume as in its ordinary one."""

from __future__ import annotations

from typing import Any

from mmengine.runner import FlexibleRunner

from mkd_plugin.engine.exact_resume import ExactResumeHook
from mkd_plugin.registry import RUNNERS

__all__ = ['StrategyRunner']


@RUNNERS.register_module()
class StrategyRunner(FlexibleRunner):
    """A ``FlexibleRunner`` (``strategy=dict(type='FSDPStrategy', …)``) whose checkpoints are those of ``Runner``.

    * ``resume=True`` takes the newest whole checkpoint: mmengine's own chooses before any hook is asked, and takes
      whatever ``last_checkpoint`` names.
    * Weights have the names that they have without a wrapper; mmengine's own prefixes DDP's with ``module.``.
    """

    def load_or_resume(self) -> None:
        """Choose the checkpoint, then load it."""
        for hook in self.hooks:
            if isinstance(hook, ExactResumeHook) and not self._has_loaded:
                hook.choose_checkpoint(self)
        super().load_or_resume()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks; what is to be saved is put in order before."""
        if fn_name == 'before_save_checkpoint':
            checkpoint = kwargs['checkpoint']
            weights = checkpoint['state_dict']
            checkpoint['state_dict'] = {name.removeprefix('module.'): value for name, value in weights.items()}
        super().call_hook(fn_name, **kwargs)
