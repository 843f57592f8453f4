"""Stages on the hosts' own runner: what a breakpoint does, and that nothing of it depends on where a run was resumed."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mkd_plugin
from mkd_plugin.engine.stages import stage_schedulers
from mkd_plugin.registry import HOOKS

LR = 1e-3
STEPS = 4  # iterations an epoch


class Recorder(Hook):
    """Keeps what the optimiser is about to use, and the networks at each start of an epoch."""

    priority = 'LOWEST'

    def __init__(self):
        self.rates, self.students, self.teachers, self.moments, self.stages = [], [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.param_groups[0]['lr'])
        self.stages.append(runner.message_hub.get_info('mkd_stage'))
        if runner.iter % STEPS == 0:
            model = runner.model
            self.students.append(copy.deepcopy(model.backbone.state_dict()))
            self.teachers.append(copy.deepcopy(model.teachers['boot'].network.state_dict()))
            self.moments.append(len(runner.optim_wrapper.optimizer.state))


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    from mkd_plugin.datasets import write_digits

    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


def tiny_config(digits: Path, work_dir: Path, lengths: list[int], **hook) -> Config:
    """dbot_digits with a smaller network, STEPS iterations an epoch and a warm-up of one epoch."""
    cfg = mkd_plugin.get_config('dbot/dbot_digits')
    cfg.work_dir = str(work_dir)
    cfg.model.backbone.arch = dict(width=16, depth=2, num_heads=2)
    cfg.model.backbone.patch_size = 8
    cfg.model.objectives.feature.head.update(depth=1, width=16, num_heads=2)
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_dataloader.dataset.update(data_root=str(digits), indices=4 * STEPS)
    cfg.optim_wrapper.optimizer.lr = LR
    if lengths[0] > 1:
        cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 1
        cfg.param_scheduler[1].end = lengths[0]
    else:
        cfg.param_scheduler = None
    cfg.train_cfg.max_epochs = sum(lengths)
    cfg.custom_hooks = [dict(type='mkd_plugin.StageHook', lengths=lengths, **hook)]
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.pop('curves')
    cfg.visualizer = None
    cfg.log_level = 'ERROR'
    return cfg


def by_iteration(cfg: Config, lengths: list[int]) -> Config:
    """The same run counted in iterations."""
    for entry in cfg.param_scheduler:
        entry.update(by_epoch=False, convert_to_iter_based=False, begin=entry.get('begin', 0) * STEPS)
        entry.end *= STEPS
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=sum(lengths) * STEPS)
    cfg.custom_hooks[0].lengths = [length * STEPS for length in lengths]
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=STEPS)
    cfg.log_processor = dict(by_epoch=False)
    return cfg


def run(cfg: Config) -> tuple[Runner, Recorder]:
    runner = Runner.from_cfg(cfg)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return runner, recorder


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_stage_hook__teacher_is_the_student_of_the_stage_before(digits, tmp_path):
    runner, seen = run(tiny_config(digits, tmp_path, [2, 2, 2]))
    assert same(seen.students[0], seen.teachers[0])  # teacher 0 starts as a copy of the student
    stages = [torch.load(tmp_path / f'stage_{stage}.pth', weights_only=True) for stage in range(4)]
    students = [
        {
            key.removeprefix('backbone.'): value
            for key, value in stage['state_dict'].items()
            if key.startswith('backbone.')
        }
        for stage in stages
    ]
    assert same(students[0], seen.students[0])
    for epoch, teacher in enumerate(seen.teachers):
        assert same(teacher, students[epoch // 2])
    assert [stage['meta']['mkd_plugin']['stage'] for stage in stages[1:]] == [1, 2, 3]
    assert seen.stages == [1] * 2 * STEPS + [2] * 2 * STEPS + [3] * 2 * STEPS
    assert int(runner.model.teachers['boot'].num_promotions) == 2


def test_stage_hook__student_and_heads_start_anew(digits, tmp_path):
    _, seen = run(tiny_config(digits, tmp_path, [1, 1, 1]))
    first, second, third = seen.students
    weights = 'layers.0.attn.qkv.weight'
    assert not torch.equal(first[weights], second[weights]) and not torch.equal(second[weights], third[weights])
    bound = math.sqrt(6 / (16 + 48))  # xavier-uniform of a 16 → 48 layer: fresh weights stay inside, to the rim
    assert 0.9 * bound < second[weights].abs().max() <= bound
    assert not second['layers.0.attn.qkv.bias'].any()


def test_stage_hook__student_kept_if_asked(digits, tmp_path):
    _, seen = run(tiny_config(digits, tmp_path, [1, 1], reset_student=False))
    assert same(seen.students[1], seen.teachers[1])


@pytest.mark.parametrize('reset', [False, True])
def test_stage_hook__optimizer_moments(digits, tmp_path, reset):
    _, seen = run(tiny_config(digits, tmp_path, [1, 1], reset_optimizer=reset))
    assert seen.moments[0] == 0
    assert (seen.moments[1] == 0) == reset


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_stage_hook__every_stage_reaches_the_peak(digits, tmp_path, loop):
    """The rate itself, against the closed form: linear warm-up over one epoch, then a half cosine to 0."""
    lengths = [3, 2]
    cfg = tiny_config(digits, tmp_path, lengths)
    _, seen = run(cfg if loop == 'epochs' else by_iteration(cfg, lengths))
    expected = []
    for length in lengths:
        for step in range(length * STEPS):
            if step < STEPS - 1:
                expected.append(LR * (1e-6 + (1 - 1e-6) * step / (STEPS - 1)))
            else:  # mmengine's warm-up reaches the peak on its last step; the cosine starts one later
                progress = max(step - STEPS, 0) / ((length - 1) * STEPS)
                expected.append(LR * (1 + math.cos(math.pi * progress)) / 2)
    assert len(seen.rates) == len(expected)
    for stage in range(2):
        part = slice(0, 3 * STEPS) if stage == 0 else slice(3 * STEPS, None)
        assert max(seen.rates[part]) == pytest.approx(LR)
    assert seen.rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
@pytest.mark.parametrize('resume_at', [1, 2, 3])
def test_stage_hook__resumed_run_promotes_as_the_whole_one(digits, tmp_path, loop, resume_at):
    """Resumed inside stage 1, at the breakpoint, and inside stage 2: the same teacher, new student and rates."""
    lengths = [2, 2]

    def config(name: str) -> Config:
        cfg = tiny_config(digits, tmp_path / name, lengths)
        return cfg if loop == 'epochs' else by_iteration(cfg, lengths)

    _, whole = run(config('whole'))
    cfg = config('resumed')
    name = f'epoch_{resume_at}' if loop == 'epochs' else f'iter_{resume_at * STEPS}'
    cfg.load_from, cfg.resume = str(tmp_path / 'whole' / f'{name}.pth'), True
    runner, resumed = run(cfg)
    assert resumed.rates == pytest.approx(whole.rates[resume_at * STEPS :], rel=1e-9)
    assert runner.model.teachers['boot'].promotions == 1
    if resume_at == 2:  # the breakpoint itself is replayed bit for bit
        assert same(resumed.teachers[0], whole.teachers[2])
        assert same(resumed.students[0], whole.students[2])


def test_stage_hook__logs_what_shows_a_collapse(digits, tmp_path):
    runner, _ = run(tiny_config(digits, tmp_path, [1, 1]))
    scalars = runner.message_hub.log_scalars
    assert {'train/feature_target_std', 'train/feature_student_std', 'train/hidden_share'} <= set(scalars)
    assert scalars['train/hidden_share'].current() == pytest.approx(7 / 9)  # floor(9 · 0.25) = 2 of 9 stay visible
    assert scalars['train/feature_target_std'].current() > 0.1


def test_stage_hook__checkpoints_are_readable_without_objects(digits, tmp_path):
    run(tiny_config(digits, tmp_path, [1, 1]))
    for name in ('epoch_1.pth', 'stage_1.pth'):
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        assert checkpoint['message_hub']['log_scalars']['train/loss']['values']


def test_load_student__from_a_run(digits, tmp_path):
    runner, _ = run(tiny_config(digits, tmp_path, [1, 1]))
    student = mkd_plugin.load_student(tmp_path / 'stage_2.pth')
    images = torch.rand(2, 3, 24, 24)
    normalised = (images * 255 - 77.9) / 92.8
    expected = runner.model.backbone.eval()(normalised, taps=('block:-1',)).tokens('block:-1')[:, 1:].mean(1)
    torch.testing.assert_close(student.features(images), expected)
    teacher = mkd_plugin.load_student(tmp_path / 'stage_2.pth', part='boot')
    before = mkd_plugin.load_student(tmp_path / 'stage_1.pth')
    assert torch.equal(teacher.features(images), before.features(images))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(lengths=[2, 3]), r'\[2, 3\] add up to 5 epochs, but the run has 4'),
        (dict(teacher='nobody'), r"promotes the teacher 'nobody', but .* are \['boot'\]"),
    ],
)
def test_stage_hook__refuses_stages_that_do_not_fit(digits, tmp_path, change, message):
    cfg = tiny_config(digits, tmp_path, [2, 2])
    cfg.custom_hooks[0].update(change)
    with pytest.raises(ValueError, match=message):
        run(cfg)


def test_stage_hook__refuses_a_warm_up_longer_than_a_stage(digits, tmp_path):
    cfg = tiny_config(digits, tmp_path, [4, 1])
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 2
    with pytest.raises(ValueError, match='LinearLR runs from 0 to 2, but a stage has only 1'):
        run(cfg)
    assert not list(tmp_path.glob('*.pth'))  # refused before any work


def test_stage_hook__refuses_lengths_without_substance():
    with pytest.raises(ValueError, match='every stage needs a positive length'):
        HOOKS.build(dict(type='StageHook', lengths=[10, 0]))


def test_stage_schedulers__stretch_the_end_only():
    schedule = [
        dict(type='LinearLR', begin=0, end=5),
        dict(type='CosineAnnealingLR', begin=5, end=20, T_max=15, eta_min=0.1),
    ]
    longer = stage_schedulers(schedule, 20, 30)
    assert longer[0] == schedule[0]
    assert longer[1] == dict(type='CosineAnnealingLR', begin=5, end=30, T_max=25, eta_min=0.1)
    assert schedule[1]['end'] == 20  # the config itself is left alone
    with pytest.raises(ValueError, match='must fit into every stage'):
        stage_schedulers(schedule, 10, 10)


def test_momentum_hook__moves_after_optimiser_steps_only(digits, tmp_path):
    cfg = tiny_config(digits, tmp_path, [1])
    cfg.model.teachers.boot = dict(type='MomentumTeacher', momentum=0.5)
    cfg.custom_hooks = [dict(type='mkd_plugin.MomentumHook')]
    cfg.optim_wrapper.accumulative_counts = 2
    runner, _ = run(cfg)
    assert runner.iter == STEPS

    moves = []

    class Count(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            moves.append(runner.model.teachers['boot'].network.cls_token.clone())

    runner = Runner.from_cfg(cfg)
    runner.register_hook(Count(), priority='LOWEST')
    runner.train()
    changed = [not torch.equal(a, b) for a, b in zip(moves, moves[1:], strict=False)]
    assert changed == [False, True, False]


def test_momentum_hook__needs_a_momentum_teacher(digits, tmp_path):
    cfg = tiny_config(digits, tmp_path, [1])
    cfg.custom_hooks = [dict(type='mkd_plugin.MomentumHook')]
    with pytest.raises(ValueError, match='no MomentumTeacher'):
        run(cfg)


def redraw_on_rank(rank: int, folder: Path) -> None:
    """One of two processes: own random state and own weights, then a new stage."""
    import torch.distributed as dist

    from mkd_plugin.engine.stages import redraw

    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = mkd_plugin.registry.MODELS.build(tiny_config(folder, folder, [1]).model)
    before = torch.random.get_rng_state()
    redraw(model, seed=5 + rank)  # even if the seeds differed
    assert torch.equal(before, torch.random.get_rng_state())
    torch.save(model.state_dict(), folder / f'{rank}.pth')


def test_redraw__gives_every_rank_the_same_weights(tmp_path):
    torch.multiprocessing.spawn(redraw_on_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(2)]
    drawn = [key for key in ranks[0] if key.startswith(('backbone.', 'objectives.'))]
    assert drawn and all(torch.equal(ranks[0][key], ranks[1][key]) for key in drawn)
    teacher = [key for key in ranks[0] if key.endswith('qkv.weight') and key.startswith('teachers.')]
    assert not torch.equal(ranks[0][teacher[0]], ranks[1][teacher[0]])  # they really were different before
