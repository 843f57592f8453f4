"""What the result of a run depends on: recorded in its checkpoints and compared when it is resumed.

===============================================================  =======================================================
changed since the checkpoint                                     then
===============================================================  =======================================================
config, seed, images of a step                                   the run is refused
number of processes that share the images of a step              a warning, or refused, with the reason
number, names, labels, order of the training samples; classes    the run is refused
content of a teacher's file                                      the run is refused
versions of this package, torch, timm and the hosts              a warning
number of threads, in training on a CPU                          a warning
===============================================================  =======================================================

The content of the images is not compared: hashing it would take as long as an epoch of loading.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler

from mkd_plugin.checkpoint.read import provenance_of
from mkd_plugin.datasets.sampler import ElasticSampler
from mkd_plugin.datasets.shards.listing import ShardList
from mkd_plugin.engine.provenance import changed_teachers, changes_between, config_record, model_files, software
from mkd_plugin.engine.run_utils import bare_model, images_per_step, on_main
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.targets import BatchStandardize
from mkd_plugin.version import __version__

CONFIG, INPUTS = 'mkd_config', 'mkd_inputs'  # keys in a checkpoint's meta
PROCESSES, BATCH = 'world_size', 'train_dataloader.batch_size'  # entries of a config's record
SHOWN = 7  # changes listed in a message, so that it has at most 12 lines
LONGEST = 300  # characters of a change


def inputs_of(runner: Runner) -> dict[str, int | str | None]:
    """Number and digest of the training samples; threads of torch if the number changes results, else None."""
    dataset = runner.train_loop.dataloader.dataset
    digest = hashlib.sha256()
    return dict(
        samples=len(dataset) if hasattr(dataset, '__len__') else None,
        digest=digest.hexdigest() if add_samples(dataset, digest) else None,
        threads=torch.get_num_threads() if get_device() == 'cpu' else None,
    )


def check_same_samples(inputs: Mapping[str, Any]) -> None:
    """Raise ValueError on every process if their lists of training samples differ, as those of nodes with copies may."""
    found = [(entry['samples'], entry['digest']) for entry in all_gather_object(dict(inputs))]
    others = [rank for rank, entry in enumerate(found) if entry != found[0]]
    if others:
        raise ValueError(
            f'The list of training samples differs between processes: rank 0 has {found[0][0]}, and {len(others)} others have '
            f'another list (rank {others[0]}: {found[others[0]][0]}). Give every node the same files under the same names.'
        )


def add_samples(dataset: Any, digest: Any) -> bool:
    """Add a data set's list of samples (files or places in shards, labels, order) to a hash; False if it keeps no list.

    Covers data sets of mmengine and the hosts, torchvision's folders, and wrappers of these.
    """
    if getattr(dataset, 'serialize_data', False):  # mmengine's, as it is shared with the workers
        digest.update(dataset.data_address)
        digest.update(dataset.data_bytes)
        return True
    samples = getattr(dataset, 'data_list', None) or getattr(dataset, 'samples', None)
    if isinstance(samples, ShardList):
        digest.update(samples.digest.encode())
        return True
    if samples:
        for sample in samples:
            digest.update(pickle.dumps(sample, protocol=4))
        return True
    for name in ('indices', 'repeat_indices', 'times'):  # which samples of the wrapped data set are taken
        digest.update(repr((name, getattr(dataset, name, None))).encode())
    wrapped = getattr(dataset, 'dataset', None)
    parts = getattr(dataset, 'datasets', None) or ([] if wrapped is None else [wrapped])
    return bool(parts) and all(add_samples(part, digest) for part in parts)


def compare_with_checkpoint(
    runner: Runner, checkpoint: Mapping[str, Any], source: str | None, *, allow_changes: bool
) -> None:
    """Compare a run with the one to be resumed, by the rule above, on the main process.

    Raises:
        ValueError: On every process: something changed that decides the result, and ``allow_changes`` is not set.
    """
    deciding, others = on_main(lambda: changes_since(runner, checkpoint))
    if others:
        runner.logger.warning(
            f'Changed since the checkpoint, so that numbers may differ in the last digits: {"; ".join(others)}.'
        )
    if not deciding:
        return
    lines = [line if len(line) <= LONGEST else f'{line[:LONGEST]} …' for line in deciding[:SHOWN]]
    if len(deciding) > SHOWN:
        lines.append(f'and {len(deciding) - SHOWN} more')
    listed = '\n    '.join(lines)
    if allow_changes:
        runner.logger.warning(f'Resumed although the run has changed, as allowed. Changed:\n    {listed}')
        return
    raise ValueError(
        f'The run to be resumed from {source} has another config, other data or another teacher. Changed:\n    {listed}\n'
        'Restore these; or start a new run in another work_dir, with load_from instead of resume; or set '
        'default_hooks.exact_resume.allow_changed_config=True, and get the result of neither run.'
    )


def changes_since(runner: Runner, checkpoint: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """One line per change: those that decide the result, and the others. What the checkpoint lacks is not compared."""
    meta, before = checkpoint['meta'], provenance_of(checkpoint)
    old, new = meta.get(INPUTS, {}), inputs_of(runner)
    metainfo = getattr(runner.train_loop.dataloader.dataset, 'metainfo', None) or {}
    deciding, others = compare_configs(runner, meta[CONFIG]) if CONFIG in meta else ([], [])
    deciding = [
        *changed_samples(old, new),
        *changed_classes((meta.get('dataset_meta') or {}).get('classes'), metainfo.get('classes')),
        *changed_teachers(before.get('files') or {}, model_files(runner.cfg) if before.get('files') else {}),
        *deciding,
    ]
    versions = {**before.get('software', {}), 'mkd_plugin': before.get('version')} if before else {}
    now = {**software(), 'mkd_plugin': __version__}
    others += [f'{name} {versions[name]} → {now.get(name)}' for name in versions if versions[name] != now.get(name)]
    if None not in (old.get('threads'), new['threads']) and old['threads'] != new['threads']:
        others.append(f'threads of torch {old["threads"]} → {new["threads"]}')
    return deciding, others


def why_processes_count(runner: Runner) -> str:
    """Why other processes that share the same images of a step compute something else; '' if they do not."""
    model, batches = bare_model(runner), runner.train_loop.dataloader.batch_sampler
    if not isinstance(model, MaskedDistiller):
        return f'{type(model).__name__} draws for each process'
    parts: list[nn.Module] = [model.backbone, model.masking, *model.objectives.values()]
    for module in chain.from_iterable(part.modules() for part in parts):
        batch_norms = (BatchStandardize, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if isinstance(module, batch_norms) or getattr(module, 'per_process', False):
            return f'{type(module).__name__} uses the images of one process'
    if model.masking.per_image > 1:
        return f'{type(model.masking).__name__} draws several masks of an image'
    if type(batches) is not BatchSampler or not isinstance(batches.sampler, (ElasticSampler, InfiniteSampler)):
        return 'only ElasticSampler and InfiniteSampler keep the order'
    if isinstance(batches.sampler, ElasticSampler) and batches.sampler.round_up == batches.drop_last:
        return 'round_up of the sampler must be the opposite of drop_last'
    return ''


def compare_configs(runner: Runner, old: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """One line per change of the config: those that decide the result, and the others."""
    new = config_record(runner.cfg)
    changes, before, now = changes_between(old, new), int(old[PROCESSES]), int(new[PROCESSES])
    if before == now:
        return changes, []
    if reason := why_processes_count(runner):
        changes.remove(line := f'{PROCESSES}: {before} → {now}')
        return [f'{line}, which decides the result: {reason}', *changes], []
    changes = [line for line in changes if not line.startswith((f'{PROCESSES}: ', f'{BATCH}: '))]
    if (images := before * int(old[BATCH])) == images_per_step(runner):
        return changes, [f'number of processes {before} → {now}']
    advice = f'a number of processes that divides {images}' if images % now else f'{BATCH}={images // now}'
    wrong = f'images of a step: {before} × {old[BATCH]} → {now} × {new[BATCH]}. To keep {images}, use {advice}'
    return [wrong, *changes], []


def changed_samples(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line if the list of training samples is another."""
    if not old or (old['samples'], old['digest']) == (new['samples'], new['digest']):
        return []
    if old['samples'] != new['samples']:
        return [f'number of training samples: {old["samples"]} → {new["samples"]}']
    return [f'training samples: still {new["samples"]}, but with other files, places in shards, labels or order']


def changed_classes(old: Sequence[str] | None, new: Sequence[str] | None) -> list[str]:
    """A line if the list of classes is another."""
    if old is None or list(old) == list(new or ()):
        return []
    pairs = enumerate(zip_longest(old, new or (), fillvalue='none'))
    place, (before, after) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    return [f'classes: {len(old)} → {len(new or ())}, first other name at {place}: {before!r} → {after!r}']
