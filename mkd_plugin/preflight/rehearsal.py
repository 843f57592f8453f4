"""Rehearsal of a run before it writes anything: each part of the config is compared with its class, or built without weights.

The model is built on torch's meta device, where tensors have shapes but no values: a ViT-H takes a fraction of a second. What
is drawn here changes nothing in the run, because the Runner sets all seeds afterwards.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine import registry as registries
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.runner import set_random_seed
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.compat.ops.ext import check_ops
from mkd_plugin.compat.weights import load_state_dict
from mkd_plugin.engine.checkpoints import check_resumable
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.protocols import Progress
from mkd_plugin.preflight.checks import (
    DENSE,
    LOADERS,
    check_schedule,
    datasets_of,
    parts_of,
    type_name,
    without_checkpoints,
)
from mkd_plugin.preflight.mistakes import config_mistakes, unknown_type
from mkd_plugin.preflight.plan import fake_batch, stages_of
from mkd_plugin.registry import check_names, check_values, parameters_of

# Options that the Runner takes out of a part before it builds the rest.
TAKEN = {'type', '_scope_', 'priority', 'by_epoch', 'convert_to_iter_based', 'constructor', 'paramwise_cfg', 'name'}
LOADER_TAKEN = ('dataset', 'sampler', 'batch_sampler', 'collate_fn', 'worker_init_fn', 'num_batch_per_epoch',
                'disable_subprocess_warning')  # fmt: skip


def rehearse(cfg: Config, *, training: bool = True) -> None:
    """Raise ValueError, before anything is written, if a part of the config is wrong; without ``training``, of what a test
    needs.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    if find_spec(scope) is None:
        raise ValueError(f'default_scope={scope!r}: no such package is installed. Use mmpretrain, mmdet or mmseg.')
    if not MMLogger.check_instance_created('rehearsal'):  # hosts log what they build
        MMLogger.get_instance('rehearsal', log_level='ERROR')
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings(), config_mistakes(cfg):
        warnings.simplefilter('ignore')
        check_runner_options(cfg, training=training)
        for where, node, registry in components(cfg, training):
            check_component(where, node, registry)
        for name in LOADERS if training else LOADERS[2:]:
            if cfg.get(name) is not None:
                check_loader(name, cfg[name])
                check_pipelines(name, cfg)
        if training:
            check_schedule(cfg)
            rehearse_training(cfg)


def check_for_report(cfg: Config) -> None:
    """Raise ValueError if so much of a config is wrong that a dry run has nothing to report on."""
    check_runner_options(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        check_loader('train_dataloader', cfg.train_dataloader)


def check_runner_options(cfg: Config, *, training: bool = True) -> None:
    """Raise ValueError if a config lacks what a run needs, or its seed cannot be set."""
    needed = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper') if training else ('model',)
    missing = [name for name in needed if cfg.get(name) is None]
    if missing:
        raise ValueError(
            f'{cfg.filename or "The config"} has no {", ".join(missing)}: it is not a config for a run. `mkd print-config` '
            'shows what a config holds with its bases.'
        )
    for stage in ('val', 'test'):
        given = {
            f'{stage}_{part}': cfg.get(f'{stage}_{part}') is not None for part in ('dataloader', 'cfg', 'evaluator')
        }
        if len(set(given.values())) > 1:
            raise ValueError(
                f'The config has {" and ".join(name for name in given if given[name])}, but no '
                f'{" and ".join(name for name in given if not given[name])}: give all three or none.'
            )
    if not isinstance(logging.getLevelName(cfg.get('log_level', 'INFO')), int):
        raise ValueError(f'log_level={cfg.log_level}: use DEBUG, INFO, WARNING, ERROR or CRITICAL.')
    randomness = cfg.get('randomness') or {}
    parameters = parameters_of(set_random_seed)[0]
    check_names('randomness', randomness, parameters)
    check_values('randomness', randomness, parameters)
    seed = randomness.get('seed')
    if seed is not None and (seed != int(seed) or not 0 <= seed < 2**32):
        raise ValueError(f'randomness.seed={seed}: it must be a whole number from 0 to 2**32 - 1, or None for any.')


def components(cfg: Config, training: bool) -> Iterator[tuple[str, Any, Registry]]:
    """Yield dotted key, config and registry of the parts whose registry is known from their place."""
    wrapper, hooks = cfg.get('optim_wrapper') or {}, cfg.get('default_hooks') or {}
    if training:
        yield 'optim_wrapper', {'type': 'OptimWrapper', **wrapper}, registries.OPTIM_WRAPPERS
        if 'optimizer' in wrapper:
            yield 'optim_wrapper.optimizer', wrapper['optimizer'], registries.OPTIMIZERS
        if 'constructor' in wrapper:
            yield 'optim_wrapper.constructor', dict(type=wrapper['constructor']), registries.OPTIM_WRAPPER_CONSTRUCTORS
        yield from listed('param_scheduler', cfg.get('param_scheduler'), registries.PARAM_SCHEDULERS)
        if 'runner_type' in cfg:
            yield 'runner_type', dict(type=cfg.runner_type), registries.RUNNERS
    yield from ((f'default_hooks.{key}', hook, registries.HOOKS) for key, hook in hooks.items() if hook is not None)
    yield from listed('custom_hooks', cfg.get('custom_hooks'), registries.HOOKS)
    yield 'model', cfg.model, MODELS
    for where, part in parts_of(cfg.model, 'model'):
        if where.endswith('.init_cfg'):
            for place, node, _ in listed(where, part, registries.WEIGHT_INITIALIZERS):
                yield place, initializer(place, node), registries.WEIGHT_INITIALIZERS
    for stage in ('train', 'val', 'test'):
        if cfg.get(f'{stage}_cfg') is not None:
            yield f'{stage}_cfg', with_loop(stage, cfg[f'{stage}_cfg']), registries.LOOPS
        yield from listed(f'{stage}_evaluator', cfg.get(f'{stage}_evaluator'), registries.METRICS)
    for name in LOADERS:
        loader = cfg.get(name) or {}
        yield from ((where, node, registries.DATASETS) for where, node in datasets_of(cfg, [name]))
        samplers = registries.DATA_SAMPLERS
        for key, registry in (('sampler', samplers), ('batch_sampler', samplers), ('collate_fn', registries.FUNCTIONS)):
            if loader.get(key) is not None:
                yield f'{name}.{key}', loader[key], registry
    if cfg.get('visualizer') is not None:
        yield 'visualizer', {'type': 'Visualizer', **cfg.visualizer}, registries.VISUALIZERS
        yield from listed('visualizer.vis_backends', cfg.visualizer.get('vis_backends'), registries.VISBACKENDS)


def initializer(where: str, node: Any) -> Any:
    """Return what is compared of an ``init_cfg``: its type. Our networks have options of their own for 'Pretrained'."""
    if not isinstance(node, Mapping):
        return node
    if node.get('type') == 'Pretrained' and not isinstance(node.get('checkpoint'), str):
        raise ValueError(f"{where}: {dict(node)} names no file. Add checkpoint='FILE'.")
    return dict(type=node.get('type'))


def listed(where: str, nodes: Any, registry: Registry) -> Iterator[tuple[str, Any, Registry]]:
    """Yield the entries of a list, or the one that stands alone."""
    if isinstance(nodes, (list, tuple)):
        yield from ((f'{where}.{number}', node, registry) for number, node in enumerate(nodes))
    elif nodes is not None:
        yield where, nodes, registry


def with_loop(stage: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name the loop that the Runner takes where a config names none."""
    if {'type', 'by_epoch'} <= set(node):
        raise ValueError(
            f'{stage}_cfg has both type={node["type"]} and by_epoch={node["by_epoch"]}: leave one of them out.'
        )
    by_epoch = 'EpochBasedTrainLoop' if node.get('by_epoch', True) else 'IterBasedTrainLoop'
    return {'type': {'train': by_epoch, 'val': 'ValLoop', 'test': 'TestLoop'}[stage], **node}


def check_component(where: str, node: Any, registry: Registry) -> None:
    """Compare a part of a config with its class: type, names of options, kinds of values."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{where}={node!r}: it must be a dict with a 'type'.")
    kind = node.get('type')
    if kind is None:
        raise ValueError(f"{where}={dict(node)}: it has no 'type', the name of a class.")
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(node.get('_scope_')) as here:
            component = here.get(kind)
            if component is None:
                raise ValueError(unknown_type(where, kind, here))
    elif callable(kind):
        component = kind
    else:
        raise ValueError(f'{where}.type={kind!r}: it must be the name of a class.')
    parameters, complete = parameters_of(component)
    options = {key: value for key, value in node.items() if key not in TAKEN}
    if complete:
        check_names(f'{where}: {type_name(kind)}', options, parameters)
    check_values(f'{where}: {type_name(kind)}', options, parameters)
    ours = component.__module__.startswith('mkd_plugin')  # a host's may need the Runner's visualizer
    if ours and registry is registries.HOOKS:
        registry.build({key: value for key, value in node.items() if key != 'priority'})


def check_loader(name: str, loader: Any) -> None:
    """Build a loader without its data set."""
    options = {key: value for key, value in loader.items() if key not in LOADER_TAKEN}
    parameters = {**parameters_of(DataLoader.__init__)[0], 'num_workers': int, 'batch_size': int}
    check_names(name, options, parameters)
    check_values(name, options, parameters)
    try:
        DataLoader([0], **options)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise ValueError(f'{name}: {error}') from error


def check_pipelines(name: str, cfg: Config) -> None:
    """Build the transforms of a loader's images."""
    for where, dataset in datasets_of(cfg, [name]):
        pipeline = dataset.get('pipeline')
        if pipeline is not None and not isinstance(pipeline, (list, tuple)):
            raise ValueError(f'{where}.pipeline={pipeline!r}: it must be a list of transforms.')
        for entry in listed(f'{where}.pipeline', pipeline, registries.TRANSFORMS):
            check_component(*entry)
        Compose(pipeline)


class ConstantsOnCpu(TorchFunctionMode):
    """Create constants, such as pixel statistics, on the CPU, because constructors read their values.

    An operation that also takes a tensor on the meta device moves them there: teachers try an image in their constructor.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.linspace):
            options.setdefault('device', 'cpu')
        elif any(isinstance(value, Tensor) and value.is_meta for value in tree_leaves((args, options))):
            args, options = tree_map_only(Tensor, lambda value: value.to('meta'), (args, options))
        return func(*args, **options)


def rehearse_training(cfg: Config) -> None:
    """Build model and optimiser on the meta device; run a step there if the model is ours."""
    model_cfg = without_checkpoints(cfg.model.to_dict())
    model_cfg.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    try:
        with torch.device('meta'), ConstantsOnCpu():
            model = MODELS.build(ConfigDict(model_cfg))
    except Exception as error:
        if of_meta(error):
            return
        raise
    check_ops(model)
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook.get('type')).endswith('FreezeHook'):
            registries.HOOKS.build(hook).freeze(model)
    check_clipping(cfg.optim_wrapper.get('clip_grad') or {})
    build_optim_wrapper(model, cfg.optim_wrapper)
    pipeline = cfg.train_dataloader.dataset.get('pipeline') or [{}]
    if cfg.get('default_scope') not in DENSE and re.search('Load.*Image', type_name(pipeline[0].get('type'))):
        rehearse_step(model, cfg)  # some data sets give images, not files
    try:
        check_start(cfg, model)
    except (NotImplementedError, RuntimeError) as error:
        if not of_meta(error):
            raise
    try:
        stages_of(cfg, cfg.optim_wrapper.optimizer.lr)
    except ArithmeticError as error:
        raise ValueError(f'param_scheduler: its learning rates cannot be computed: {error}.') from error


def check_start(cfg: Config, model: nn.Module) -> None:
    """Compare the checkpoint that a run starts from with the model, which may be on the meta device.

    Addresses, and the folders of sharded runs, are checked when the run loads them. Raises ValueError if the file is
    damaged or of another network, or a run cannot be resumed from it.
    """
    source = cfg.get('load_from')
    if not source or not Path(source).is_file():
        return
    checkpoint = read_checkpoint(source, lazy=True)
    if cfg.get('resume'):
        check_resumable(checkpoint, source)
        return
    weights = checkpoint.get('state_dict', checkpoint)
    if isinstance(weights, Mapping):
        plain = {name.removeprefix('module.'): value for name, value in weights.items()}
        load_state_dict(model, plain, source=str(source), strict=False)


def check_clipping(options: Mapping[str, Any]) -> None:
    """Compare ``clip_grad`` with the function of torch that it is passed to in the first step."""
    function = clip_grad_value_ if options.get('type') == 'value' else clip_grad_norm_
    parameters, given = parameters_of(function)[0], {key: value for key, value in options.items() if key != 'type'}
    check_names('optim_wrapper.clip_grad', given, parameters)
    check_values('optim_wrapper.clip_grad', given, parameters)


def rehearse_step(model: Any, cfg: Config) -> None:
    """Compute the losses of two images without values: crop, image size and widths must agree."""
    batch = model.data_preprocessor(fake_batch(cfg, 2), training=True)
    try:
        if isinstance(model, MaskedDistiller):
            model.begin_training(Progress(0, 2))
        model.to('meta')(**model.data_preprocessor.cast_data(batch), mode='loss')
    except Exception as error:
        if not of_meta(error):
            raise


def of_meta(error: Exception) -> bool:
    """Whether an error comes from the meta device itself: an operation that needs values."""
    return isinstance(error, NotImplementedError) or re.search(r'\bmeta\b', str(error)) is not None
