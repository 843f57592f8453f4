"""The largest batch that fits in memory, and the rate of another batch than the recipe's."""

from __future__ import annotations

import math
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from mkd_plugin.preflight.memory import GIB, memory_free
from mkd_plugin.preflight.plan import Batch, batch_of, build_for_step, fake_batch, run_step

CONTEXT = multiprocessing.get_context('forkserver')
NO_MEMORY = 'no memory'  # sent by a process that has none
SAY_SO = ('allocate memory', 'out of memory', 'not enough memory', 'could not create')  # torch and oneDNN


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number of images that fits, at most ``most``, to within 1 / 16; 0 if not even one does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, min(2 * high, most)
        if low == most:
            return most
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def find_batch(cfg: Config, *, processes: int, limit: int, say: Callable[[str], Any] = print) -> int:
    """Find the images that fit in ``limit`` MiB (0: what is free) of one of ``processes``, up to the recipe's batch; say all.

    Raises ValueError if not even one image fits, or a step fails for another reason.
    """
    batch = batch_of(cfg, processes)
    wanted = batch.base or batch.effective
    share, memory = math.ceil(wanted / processes), limit * 2**20 or memory_free()

    def fits(images: int) -> bool:
        does = step_fits(cfg, images, memory)
        say(f'{images} images: {"fit" if does else "do not fit"}')
        return does

    found = largest_batch(fits, share)
    if not found:
        raise ValueError(
            f'Not even one image fits in {memory / GIB:.2f} GiB. Choose a smaller network (model.backbone.arch) or smaller '
            'images, or shard the network over several GPUs (docs/train.md).'
        )
    parts = next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= found)
    rate = cfg.optim_wrapper.optimizer.lr * math.sqrt(share * processes / wanted)
    say(f'largest batch: {found} images in {memory / GIB:.2f} GiB{" (all that the recipe needs)" * (found == share)}')
    say(
        f'for {share * processes} images an update on {processes} process{"es" * (processes > 1)}: --cfg-options '
        f'train_dataloader.batch_size={share // parts} optim_wrapper.accumulative_counts={parts}, rate {rate:.4g}'
    )
    return found


def step_fits(cfg: Config, images: int, memory: int) -> bool:
    """Whether a step of ``images`` images fits in ``memory`` bytes, tried in another process. Raises ValueError if it fails."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    CONTEXT.set_forkserver_preload([__name__])
    process = CONTEXT.Process(target=try_step, args=(cfg.to_dict(), images, memory, sender))
    process.start()
    sender.close()
    try:
        failed = receiver.recv()
    except EOFError:  # killed, as Linux does where memory ends
        failed = NO_MEMORY
    process.join()
    if failed not in ('', NO_MEMORY):
        raise ValueError(f'A step of {images} images fails: {failed}')
    return not failed


def try_step(cfg: dict[str, Any], images: int, memory: int, sender: Connection) -> None:
    """Run a training step on random images within ``memory`` bytes; send why it failed, or ''."""
    try:
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        MMLogger.get_instance('batch', log_level='WARNING')
        batch = fake_batch(Config(cfg), images)
        bound_memory(memory)
        run_step(*build_for_step(Config(cfg)), batch)
        sender.send('')
    except Exception as error:  # whatever it is, the parent tells it
        sender.send(NO_MEMORY if out_of_memory(error) else str(error) or repr(error))


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch has a class for it on a GPU only."""
    classes = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, classes) or any(part in str(error) for part in SAY_SO)


def bound_memory(memory: int) -> None:
    """Let allocations fail beyond ``memory`` bytes: on the GPU, or on a CPU beyond what this process holds now."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / torch.cuda.get_device_properties(0).total_memory))
        return
    lines = Path('/proc/self/status').read_text().splitlines()
    held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmData'))
    resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))


def rate_advice(batch: Batch, rate: float, optimizer: str) -> str | None:
    """Say what another batch than the recipe's asks for; None if it is the recipe's, or the rate is scaled already.

    docs/train.md has the sources.
    """
    if not batch.base or batch.scaled or batch.effective == batch.base:
        return None
    ratio = batch.effective / batch.base
    power, rule = (0.5, 'by the root of') if 'Adam' in optimizer else (1.0, 'in proportion to')
    advice = f'{ratio:.4g} × the batch: optim_wrapper.optimizer.lr={rate * ratio**power:.3g} ({rule} it, as {optimizer} needs)'
    return advice + f'; the same epochs have 1 / {ratio:.3g} of the updates: train longer' * (ratio > 1)
