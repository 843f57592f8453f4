"""Stages on the hosts' own runner: what a breakpoint does, and that nothing of it depends on where a run was resumed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mkd_plugin
from mkd_plugin.engine.teacher_updates import fit_schedule
from mkd_plugin.models.protocols import Stages

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


def tiny_config(digits: Path, work_dir: Path, lengths: list[int], **teacher) -> Config:
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
    cfg.model.teachers.boot.update(stages=lengths, **teacher)
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


def test_stages__teacher_is_the_student_of_the_stage_before(digits, tmp_path):
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
    assert runner.model.teachers['boot'].promotions == 2


def test_stages__student_and_heads_start_anew(digits, tmp_path):
    _, seen = run(tiny_config(digits, tmp_path, [1, 1, 1]))
    first, second, third = seen.students
    weights = 'layers.0.attn.qkv.weight'
    assert not torch.equal(first[weights], second[weights]) and not torch.equal(second[weights], third[weights])
    bound = math.sqrt(6 / (16 + 48))  # xavier-uniform of a 16 → 48 layer: fresh weights stay inside, to the rim
    assert 0.9 * bound < second[weights].abs().max() <= bound
    assert not second['layers.0.attn.qkv.bias'].any()


def test_stages__student_kept_if_asked(digits, tmp_path):
    _, seen = run(tiny_config(digits, tmp_path, [1, 1], reset_student=False))
    assert same(seen.students[1], seen.teachers[1])


@pytest.mark.parametrize('reset', [False, True])
def test_stages__optimizer_moments(digits, tmp_path, reset):
    _, seen = run(tiny_config(digits, tmp_path, [1, 1], reset_optimizer=reset))
    assert seen.moments[0] == 0
    assert (seen.moments[1] == 0) == reset


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_stages__every_stage_reaches_the_peak(digits, tmp_path, loop):
    """The rate itself, against the closed form: linear warm-up over one epoch, then a half cosine to 0."""
    lengths = [2, 3]
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
        part = slice(0, 2 * STEPS) if stage == 0 else slice(2 * STEPS, None)
        assert max(seen.rates[part]) == pytest.approx(LR)
    assert seen.rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
@pytest.mark.parametrize('resume_at', [1, 2, 3])
def test_stages__resumed_run_promotes_as_the_whole_one(digits, tmp_path, loop, resume_at):
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


def test_stages__logs_what_shows_a_collapse(digits, tmp_path):
    runner, _ = run(tiny_config(digits, tmp_path, [1, 1]))
    scalars = runner.message_hub.log_scalars
    assert {'train/feature_target_std', 'train/feature_student_std', 'train/hidden_share'} <= set(scalars)
    assert scalars['train/hidden_share'].current() == pytest.approx(7 / 9)  # floor(9 · 0.25) = 2 of 9 stay visible
    assert scalars['train/feature_target_std'].current() > 0.1


def test_stages__checkpoints_are_readable_without_objects(digits, tmp_path):
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


def test_stages__a_run_too_short_for_them_is_refused(digits, tmp_path):
    cfg = tiny_config(digits, tmp_path, [1, 1])
    cfg.train_cfg.max_epochs = 1
    with pytest.raises(ValueError, match=r'A run of 1 epochs or iterations cannot be divided .* \[1, 1\]'):
        run(cfg)
    assert not list(tmp_path.glob('*.pth'))  # refused before any work


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_run_length__is_one_override(digits, tmp_path, loop):
    """Two stages of 3 epochs become two of 2: each has its warm-up, reaches the peak, and ends as the schedule does."""
    cfg = tiny_config(digits, tmp_path, [3, 3])
    cfg = cfg if loop == 'epochs' else by_iteration(cfg, [3, 3])
    cfg.merge_from_dict({'train_cfg.max_epochs': 4} if loop == 'epochs' else {'train_cfg.max_iters': 4 * STEPS})
    _, seen = run(cfg)
    written = tiny_config(digits, tmp_path / 'written', [2, 2])
    _, written = run(written if loop == 'epochs' else by_iteration(written, [2, 2]))
    assert seen.stages == written.stages == [1] * 2 * STEPS + [2] * 2 * STEPS
    assert len(seen.rates) == 4 * STEPS and seen.rates[: 2 * STEPS] == pytest.approx(seen.rates[2 * STEPS :])
    assert max(seen.rates) == pytest.approx(LR) and seen.rates[2 * STEPS - 1] < LR / 4
    if loop == 'epochs':
        assert seen.rates == pytest.approx(written.rates)


def test_lengths__divide_a_run():
    assert Stages((1, 1)).lengths(200) == [100, 100]
    assert Stages((400, 800)).lengths(1200) == [400, 800]
    assert Stages((400, 800)).lengths(12) == [4, 8]
    assert Stages((1, 1, 1)).lengths(1600) == [533, 533, 534]


@pytest.mark.parametrize('stages', [0, [], [10, 0], -1])
def test_stages__without_length_are_refused(digits, tmp_path, stages):
    cfg = tiny_config(digits, tmp_path, [1, 1])
    cfg.model.teachers.boot.stages = stages
    with pytest.raises(ValueError, match='give the number of stages, or their relative lengths'):
        mkd_plugin.registry.build(cfg.model)


SCHEDULE = [
    dict(type='LinearLR', begin=0, end=5),
    dict(type='CosineAnnealingLR', begin=5, end=20, T_max=15, eta_min=0.1),
]


@pytest.mark.parametrize(
    'length, warm_up',
    [
        (20, 5),  # the length it was written for
        (30, 5),
        (10, 2),  # its share, a quarter of 20, is more than a tenth
        (4, 1),
    ],
)
def test_fit_schedule__keeps_the_warm_up_where_it_fits(length, warm_up):
    first, second = fit_schedule(SCHEDULE, length, by_epoch=True)
    assert first == dict(type='LinearLR', begin=0, end=warm_up)
    wanted = dict(begin=warm_up, end=length, T_max=length - warm_up, eta_min=0.1)
    assert second == dict(type='CosineAnnealingLR', **wanted)
    assert SCHEDULE[1]['end'] == 20  # the config itself is left alone


def test_fit_schedule__short_warm_ups_keep_their_length_up_to_a_tenth():
    schedule = [dict(type='LinearLR', begin=0, end=40), dict(type='CosineAnnealingLR', begin=40, end=800)]
    ends = {length: fit_schedule(schedule, length, by_epoch=True)[0]['end'] for length in (1600, 533, 400, 100)}
    assert ends == {1600: 40, 533: 40, 400: 40, 100: 10}
    assert fit_schedule(schedule, 4, by_epoch=True) == [dict(type='CosineAnnealingLR', begin=0, end=4)]


def test_fit_schedule__leaves_the_other_unit_alone():
    schedule = [dict(type='LinearLR', by_epoch=False, begin=0, end=500), dict(type='CosineAnnealingLR', end=20)]
    assert fit_schedule(schedule, 10, by_epoch=True) == [schedule[0], dict(type='CosineAnnealingLR', begin=0, end=10)]


def test_momentum_teacher__moves_after_optimiser_steps_only(digits, tmp_path):
    cfg = tiny_config(digits, tmp_path, [1])
    cfg.model.teachers.boot = dict(type='MomentumTeacher', momentum=0.5)
    cfg.optim_wrapper.accumulative_counts = 2
    runner, _ = run(cfg)
    assert runner.iter == STEPS

    moves = []

    class Count(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            moves.append(runner.model.teachers['boot'].network.cls_token.clone())

    cfg.work_dir = str(tmp_path / 'second')
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Count(), priority='LOWEST')
    runner.train()
    changed = [not torch.equal(a, b) for a, b in zip(moves, moves[1:], strict=False)]
    assert changed == [False, True, False]


@pytest.mark.parametrize(
    'teacher',
    [dict(type='MomentumTeacher', momentum=0.5), dict(type='BootstrappedTeacher', stages=2)],
    ids=['momentum', 'stages'],
)
def test_changing_teacher__without_its_hook_stops_the_run_within_two_steps(digits, tmp_path, teacher):
    cfg = tiny_config(digits, tmp_path, [2])
    cfg.model.teachers.boot = teacher
    cfg.default_hooks.pop('teacher_update')
    with pytest.raises(
        ValueError, match=r"teacher 'boot' should change .* nothing changes it: add .*TeacherUpdateHook"
    ):
        run(cfg)


def test_teacher_update_hook__is_idle_for_other_models():
    cfg = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    hook = mkd_plugin.registry.HOOKS.build(cfg.default_hooks.teacher_update)
    runner = SimpleNamespace(model=torch.nn.Linear(1, 1), iter=0)
    for place in ('before_run', 'before_train', 'before_train_epoch', 'after_train_epoch'):
        getattr(hook, place)(runner)
    hook.before_train_iter(runner, 0)
    hook.after_train_iter(runner, 0)
    assert hook.lengths == []


def redraw_on_rank(rank: int, folder: Path) -> None:
    """One of two processes: own random state and own weights, then a new stage."""
    import torch.distributed as dist

    from mkd_plugin.engine.teacher_updates import redraw

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
