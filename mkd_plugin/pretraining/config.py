"""Write a recipe as a config file that trains on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.interop.specs import ModelSpec
from mkd_plugin.pretraining.recipe import HEAD_WIDTH, METHODS, STUDENTS, Data, Recipe, Schedule, table
from mkd_plugin.utils.configs import get_config

DROP_PATH = {'ti': 0.0, 's': 0.5, 'b': 1.0, 'l': 1.0}  # share of the rate that the method has for ViT-B
LOG_LINES, CHECKPOINTS = 100, 10  # of a run, at most about
NETWORK_SIZES = ('arch', 'patch_size', 'img_size', 'in_channels')
# Top-level keys of the file, in the order in which people read them; what else a recipe defines only helps to write it.
SECTIONS = (
    ('network and targets', ('model', 'data_preprocessor')),
    ('images', ('train_dataloader',)),
    ('optimiser and schedule', ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr')),
    ('runtime', ('default_scope', 'custom_imports', 'default_hooks', 'env_cfg', 'visualizer')),
    ('records', ('log_level', 'log_processor', 'randomness')),
)


@dataclass(frozen=True)
class TeacherFile:
    """A teacher that the user gave."""

    spec: ModelSpec  #: The file
    opened: OpenedModel | None  #: The network in it; None for a model of timm, which timm builds

    @property
    def output(self) -> str:
        """The tap of its last features."""
        return 'output' if self.opened is None or self.opened.final_norm else 'block:-1'

    @property
    def three_quarters(self) -> str:
        """The tap after three quarters of its blocks; of a model of timm, the last but one of its intermediates."""
        return f'block:{self.opened.network.arch.depth * 3 // 4 - 1}' if self.opened else 'block:-2'

    def can_skip(self, patch: int) -> bool:
        """Whether it can compute the student's visible patches only."""
        network = self.opened.network if self.opened else None
        return network is not None and network.patch_size == patch and network.relative_position is None

    def config(self) -> dict[str, Any]:
        """Return the teacher's config."""
        path = str(self.spec.path.absolute())
        if self.opened is None:
            return dict(type='TimmTeacher', model=self.spec.timm_model, checkpoint=path, resample='bilinear')
        options = self.opened.network.options
        return dict(
            type='ViTTeacher',
            arch=options['arch'],
            patch_size=options['patch_size'],
            network={key: value for key, value in options.items() if key not in NETWORK_SIZES},
            checkpoint=path,
            prefix=self.opened.prefix,
            pixel_mean=[float(value) for value in self.opened.pixels[0]],
            pixel_std=[float(value) for value in self.opened.pixels[1]],
        )


def schedule_of_method(name: str) -> Schedule:
    """Read the schedule of a method's own recipe."""
    cfg = get_config(METHODS[name].config)
    final = float(cfg.param_scheduler[-1].get('eta_min', 0.0))
    epochs = cfg.train_cfg.max_epochs // METHODS[name].stages
    return Schedule(cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size, epochs, final)


def config_of(recipe: Recipe, dataset: Mapping[str, Any], teachers: Mapping[str, TeacherFile]) -> Config:
    """Return the config of a recipe: that of the method's paper, with our numbers. ``dataset`` has no pipeline of its own."""
    cfg = get_config(METHODS[recipe.method].config)
    cfg.custom_imports = dict(imports=['mkd_plugin'], allow_failed_imports=False)
    use_student(cfg.model, recipe)
    if recipe.method in TEACHERS:
        TEACHERS[recipe.method](cfg.model, recipe, teachers)
    use_data(cfg, recipe, dataset)
    use_schedule(cfg, recipe)
    return cfg


def use_student(model: Any, recipe: Recipe) -> None:
    """Set the sizes of the student and of the decoders."""
    model.backbone.update(arch=recipe.student, img_size=recipe.size, patch_size=recipe.patch)
    heads = [objective.head for objective in model.objectives.values() if 'head' in objective]
    decoders = [head for head in heads if head.type == 'TransformerDecoder']
    for decoder in decoders:
        width, depth = recipe.decoder
        decoder.update(width=width, depth=depth, num_heads=width // HEAD_WIDTH)
    for part in (model.backbone, *decoders):
        if 'drop_path_rate' in part:
            part.drop_path_rate *= DROP_PATH[recipe.student]


def use_one_objective_each(model: Any, recipe: Recipe, teachers: Mapping[str, TeacherFile]) -> None:
    """MaskDistill with any number of teachers: the paper's objective for each, of equal weight."""
    pattern = model.objectives.pop('feature')
    model.teachers = {name: teacher.config() for name, teacher in teachers.items()}
    for name in teachers:
        model.objectives[name] = dict(pattern, teacher=name, tap=teachers[name].output, weight=1 / len(teachers))


def use_aligned_blocks(model: Any, recipe: Recipe, teachers: Mapping[str, TeacherFile]) -> None:
    """DMAE: align block ¾ · depth of the student with that of each teacher."""
    pattern = model.objectives.pop('feature')
    del model.teachers['mae']
    own = STUDENTS[recipe.student][1] * 3 // 4 - 1
    for name, teacher in teachers.items():
        sees = dict(sees='visible') if teacher.can_skip(recipe.patch) else {}
        model.teachers[name] = dict(teacher.config(), **sees)
        region, weight = ('visible' if teacher.opened is None else 'visible+cls'), 1 / len(teachers)
        model.objectives[name] = dict(
            pattern, teacher=name, tap=teacher.three_quarters, student=f'block:{own}', region=region, weight=weight
        )


def use_relations_and_features(model: Any, recipe: Recipe, teachers: Mapping[str, TeacherFile]) -> None:
    """Hybrid Distill: relations of the first teacher, features of the second."""
    (first, relations), (second, features) = teachers.items()
    if relations.opened is None:
        raise ValueError(f'--teacher {relations.spec.text}: --method hybrid reads the relations of a ViT, not of timm.')
    model.teachers = {first: relations.config(), second: features.config()}
    depth, heads = relations.opened.network.arch.depth, STUDENTS[recipe.student][0] // 64
    model.masking.update(teacher=first, at=(0, depth // 3, depth * 2 // 3))
    model.objectives.relation.teacher, model.objectives.feature.teacher = first, second
    if features.opened is None:
        model.objectives.feature.region = 'visible'
    if heads != relations.opened.network.arch.num_heads:  # unscaled relations of other heads differ in scale
        taps = ('logit:-3', 'logit:-2')
        model.objectives.relation.update(tap=taps, student=taps, head=dict(type='RegroupedRelations'))


TEACHERS = {'maskdistill': use_one_objective_each, 'dmae': use_aligned_blocks, 'hybrid': use_relations_and_features}


def use_data(cfg: Config, recipe: Recipe, dataset: Mapping[str, Any]) -> None:
    """Set the images, keeping the method's own augmentation."""
    pipeline = cfg.train_dataloader.dataset.pipeline
    for transform in pipeline:
        if transform.type == 'LoadImageFromFile':
            transform.type = 'mkd_plugin.LoadAnyImage'
        if 'scale' in transform:
            transform.scale = recipe.size
    cfg.train_dataloader.update(
        batch_size=recipe.images_at_once,
        num_workers=recipe.workers,
        persistent_workers=recipe.workers > 0,
    )
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)  # `update` would merge it with the base's
    cfg.train_dataloader.dataset = dict(dataset, pipeline=pipeline)


def use_schedule(cfg: Config, recipe: Recipe) -> None:
    """Set rate, schedule, length, logs and checkpoints, all counted in steps."""
    wrapper = cfg.optim_wrapper
    wrapper.optimizer.lr = recipe.rate
    if recipe.accumulate > 1:
        wrapper.accumulative_counts = recipe.accumulate
    if not recipe.bfloat16:
        wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale'):
            wrapper.pop(key, None)
    stage, warm_up = (number * recipe.accumulate for number in (recipe.steps, recipe.warm_up))
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warm_up),
        dict(type='CosineAnnealingLR', eta_min=recipe.final, by_epoch=False, begin=warm_up, end=stage),
    ]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=recipe.iterations)
    cfg.auto_scale_lr = dict(base_batch_size=recipe.batch)
    cfg.default_hooks.logger.interval = max(1, recipe.iterations // LOG_LINES)
    every = max(1, recipe.iterations // CHECKPOINTS // recipe.accumulate) * recipe.accumulate
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=every)
    cfg.log_processor = dict(by_epoch=False)


def text_of(cfg: Config, recipe: Recipe, data: Data, command: str) -> str:
    """Return the file: the plan as comments, then the config."""
    rows = table(recipe, data)
    width = [max(len(row[column]) for row in rows) for column in (0, 1)]
    plan = '\n'.join(f'#   {name:<{width[0]}}  {value:<{width[1]}}  {why}' for name, value, why in rows)
    text = f'# Written by `{command}`, for {data.images:,} images. The numbers, and why:\n#\n{plan}\n'
    values = without_scopes(cfg.to_dict())
    for title, keys in SECTIONS:
        part = '\n'.join(Config({key: values[key]}).pretty_text.strip() for key in keys)
        text += f'\n# --- {title} ---\n{part}\n'
    return text


def without_scopes(node: Any) -> Any:
    """Remove mmengine's marks of a base's package: all are the default scope's."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [without_scopes(part) for part in node] if isinstance(node, list) else node
