"""Compile the model during training."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.run_utils import bare_model
from mkd_plugin.models.vit import Block
from mkd_plugin.registry import HOOKS

WHAT = ('blocks', 'loss')


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles transformer blocks, or the whole loss, with ``torch.compile``; names of parameters stay as they are.

    Blocks of one width share their code, so that a few compilations serve all of them, before and after a promotion.
    Choose ``'blocks'`` with DDP or FSDP: a compiled loss has all gradients at its end, and none is sent while others are
    computed.

    Args:
        what: 'blocks', or 'loss' for the whole of ``model.loss``.
        backend: Backend of ``torch.compile``.

    Raises:
        ValueError: ``what`` is unknown; before training: the model has no block, or ``torch.compile`` does not work here.
    """

    def __init__(self, *, what: str = 'blocks', backend: str = 'inductor') -> None:
        if what not in WHAT:
            raise ValueError(f'CompileHook(what={what!r}): use one of {list(WHAT)}.')
        self.what, self.backend = what, backend

    def before_train(self, runner: Runner) -> None:
        """Check the compiler, then compile in place; the work is done at the first step."""
        model = bare_model(runner)
        check_compiler(self.backend, next(model.parameters()).device)
        compile_model(model, self.what, self.backend)
        runner.logger.info(f'CompileHook: the {self.what} will be compiled at the first step.')


def compile_model(model: Any, what: str, backend: str) -> None:
    """Compile 'blocks' or the 'loss' of a model in place, at the first call. Raises ValueError if it has no block."""
    if what == 'loss':
        model.loss = torch.compile(model.loss, backend=backend, dynamic=False)
        return
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError(
            "CompileHook(what='blocks'): the model has no block of mkd_plugin's ViT. Use what='loss', or remove the hook."
        )
    for block in blocks:
        block.compile(backend=backend, dynamic=False)


def check_compiler(backend: str, device: torch.device) -> None:
    """Compile a sum. Raises ValueError if that fails, in one line, before any work is lost."""
    try:
        torch.compile(lambda x: x + 1, backend=backend, dynamic=False)(torch.ones(1, device=device))
    except Exception as error:  # the type depends on what is missing: a compiler, Triton, a newer GPU
        cause = getattr(error, 'inner_exception', error)  # torch wraps what the backend raised
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise ValueError(
            f'CompileHook: torch.compile(backend={backend!r}) does not work on {device}: {reason} Remove the hook, or install '
            'what is missing (a C++ compiler for a CPU, Triton for a GPU).'
        ) from error
