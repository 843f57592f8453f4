"""A student's features in a teacher's space: through the head that learned to predict it, with the normalisation undone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.formats import strip_compile_prefix
from mkd_plugin.checkpoint.read import read_checkpoint, weights_of
from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.models.distiller import build_objective
from mkd_plugin.models.objective import Objective
from mkd_plugin.models.protocols import DistillContext, StudentContext
from mkd_plugin.models.standardize import TargetStatistics
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import build
from mkd_plugin.structures import ALL, CLS, VISIBLE, Region, TapSpec, TokenFeatures, TokenMask, Tokens

PATCHES = 'patches'
POOLS = {'cls': (CLS,), 'mean': (PATCHES,)}  # what each pool reads; 'none' reads all that is predicted


class TeacherSpace(nn.Module):
    """Network whose only tap is a teacher's tokens as the student predicts them from intact images.

    Args:
        network: The student.
        name: Name of the teacher, for messages.
        objectives: 'cls', 'patches' or both → the objective whose head predicts them.

    Raises:
        ValueError: A normalisation cannot be undone or has no statistics; an objective is not of one tap of tokens; cls and
            patches differ in width.
    """

    def __init__(self, network: VisionTransformer, name: str, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        for objective in objectives.values():
            check_predictor(objective, network, name)
        self.backbone, self.objectives = network, nn.ModuleDict(objectives)
        self.grid, self.image_hw, self.num_prefix = network.grid, network.image_hw, int(CLS in objectives)
        widths = {kind: objective.heads[0].out_width for kind, objective in objectives.items()}
        self.width = next(iter(widths.values()))
        if set(widths.values()) != {self.width}:
            raise ValueError(
                f"--as {name}: the teacher's cls has {widths[CLS]} channels, its patches {widths[PATCHES]}. Give --pool cls or "
                '--pool mean.'
            )
        self.taps = tuple({tap: None for objective in objectives.values() for tap in objective.student_taps})

    def tap_spec(self, name: str) -> TapSpec:
        """Describe the tap."""
        return TapSpec('tokens', self.width)

    def forward(self, images_BCHW: Tensor, taps: Sequence[str]) -> TokenFeatures:
        """Predict the teacher's tokens of the student's normalised images."""
        rows, columns = self.grid
        hidden_BL = torch.zeros(len(images_BCHW), rows * columns, dtype=torch.bool, device=images_BCHW.device)
        mask = TokenMask.from_hidden(hidden_BL, rows * columns)
        features = self.backbone(images_BCHW, mask, self.taps)
        tokens = []
        for kind, objective in self.objectives.items():
            region = (Region(None, True) if kind == CLS else Region(ALL.name, False)).tokens(mask)
            (normalize,), (head,) = objective.normalizations, objective.heads  # type: ignore[misc]
            predicted = head(features, objective.student_taps, region)
            tokens.append(normalize.invert(predicted) if isinstance(normalize, TargetStatistics) else predicted)
        return TokenFeatures({tap: Tokens(torch.cat(tokens, dim=1)) for tap in taps}, self.num_prefix)


def check_predictor(objective: Objective, network: VisionTransformer, name: str) -> None:
    """Raise ValueError unless an objective predicts tokens of one tap, and its normalisation can be undone."""
    if len(objective.heads) > 1 or network.tap_spec(objective.student_taps[0]).kind != 'tokens':
        raise ValueError(
            f'--as {name}: the objective compares relations, or several taps, and not the tokens of one tap.'
        )
    (normalize,) = objective.normalizations
    if isinstance(normalize, TargetStatistics):
        normalize.check_known()
    elif not isinstance(normalize, nn.Identity):
        raise ValueError(
            f'--as {name}: {type(normalize).__name__} cannot be undone. Train with FixedStandardize or RunningStandardize, or '
            'without a normalisation.'
        )


def in_teacher_space(
    subject: OpenedModel, path: str, cfg: Any, name: str, pools: Sequence[str] | None
) -> tuple[OpenedModel, list[str]]:
    """Replace a student by what it predicts of a teacher; also return which of the pools 'cls' and 'mean' it predicts.

    Args:
        subject: The student of a checkpoint of the pre-training.
        path: The checkpoint.
        cfg: The config of the pre-training.
        name: Name of a teacher, or of one of its objectives.
        pools: 'cls', 'mean' or 'none'; None for all that is predicted.

    Raises:
        ValueError: There is no such teacher; the checkpoint has no heads, or not those of the config; nothing predicts what is
            asked for, or several objectives do; the normalisation cannot be undone.
    """
    model = copy.deepcopy(cfg.model)
    chosen = choose_objectives(model, name, pools)
    weights = strip_compile_prefix(weights_of(read_checkpoint(path, lazy=True), path))
    if not any(key.startswith('objectives.') for key in weights):
        raise ValueError(
            f'--as {name}: {path} has no heads. Give a checkpoint of the pre-training, such as epoch_100.pth; saved students '
            'have none.'
        )
    teacher = model.objectives[next(iter(chosen.values()))].teacher
    source = model.teachers[teacher]
    for part in (source, source.get('teacher'), source.get('start')):
        if isinstance(part, dict) and 'checkpoint' in part:  # only the shapes of its features matter
            part.update(checkpoint=None, seed=0)
    network = build({**model.backbone, 'init_cfg': None})
    student = StudentContext(network, tuple(subject.pixels[0]), tuple(subject.pixels[1]))
    teachers = {teacher: build(source, student=student)}
    context = DistillContext(student, teachers, build(model.masking, student=student))
    objectives = {kind: build_objective(key, model.objectives[key], context) for kind, key in chosen.items()}
    parts: dict[str, nn.Module] = {
        'backbone': network,
        **{f'objectives.{chosen[kind]}': objectives[kind] for kind in chosen},
    }
    for place, module in parts.items():
        own = {key.removeprefix(f'{place}.'): value for key, value in weights.items() if key.startswith(f'{place}.')}
        shapes = {key: value.shape for key, value in own.items()}
        other = [key for key, value in module.state_dict().items() if shapes.get(key) != value.shape]
        if other:
            raise ValueError(
                f"--as {name}: {path} is of another config: {place} has no '{other[0]}' of that shape. Give the config of "
                'its run, which is in its work dir.'
            )
        module.load_state_dict(own, strict=False)
    space = TeacherSpace(network, name, objectives).eval().to(subject.device)
    identity = (
        f'{subject.identity} as {name} {model.backbone} {[(key, model.objectives[key]) for key in chosen.values()]}'
    )
    opened = replace(subject, network=cast(VisionTransformer, space), identity=identity, final_norm=True)
    return opened, [pool for pool, (kind,) in POOLS.items() if kind in chosen]


def choose_objectives(model: Any, name: str, pools: Sequence[str] | None) -> dict[str, str]:
    """Find the objectives whose heads predict cls and patches of a teacher from intact images: 'cls' or 'patches' → name."""
    regions = {key: one.region for key, one in sorted(model.objectives.items()) if name in (key, one.teacher)}
    if not regions:
        raise ValueError(
            f'--as {name}: the config has the teachers {sorted(model.teachers)} and the objectives {sorted(model.objectives)}.'
        )
    found = {
        CLS: [key for key, region in regions.items() if region == CLS or region.endswith(f'+{CLS}')],
        PATCHES: [key for key, region in regions.items() if region.partition('+')[0] in (ALL.name, VISIBLE.name)],
    }
    asked = [kind for pool in pools or () for kind in POOLS.get(pool, ())] or [kind for kind in found if found[kind]]
    for kind in asked or [PATCHES]:
        if len(found[kind]) != 1:
            reason = f'the objectives {found[kind]} do; name one of them' if found[kind] else 'no objective does'
            raise ValueError(f'--as {name}: to predict {kind} of intact images, {reason}.')
    return {kind: found[kind][0] for kind in found if kind in asked}
