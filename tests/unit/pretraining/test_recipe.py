"""Rules that choose the numbers of a pre-training."""

from __future__ import annotations

import pytest

from mkd_plugin.pretraining.recipe import (
    METHODS,
    MIN_EPOCH,
    MIN_STAGE,
    STUDENTS,
    Data,
    Machine,
    Request,
    Schedule,
    choose,
    fit_to_time,
    table,
)

DBOT = Schedule(rate=2.4e-3, batch=4096, epochs=800, final=0.0)
SCHEDULES = dict.fromkeys(METHODS, DBOT)
GPU, CPU = Machine(gpus=1, cores=16, bfloat16=True), Machine(gpus=0, cores=2, bfloat16=False)
IMAGENET = Data(images=1_281_167, short_edge=375)


def recipe(data=IMAGENET, machine=GPU, **request):
    return choose(Request(**request), data, machine, SCHEDULES)


def test_choose__imagenet_on_gpus_is_the_papers_recipe():
    found = recipe(machine=Machine(8, 64, True))
    assert (found.method, found.student, found.size, found.patch) == ('dbot', 'b', 224, 16)
    assert (found.batch, found.rate, found.decoder) == (4096, DBOT.rate, (512, 8))
    assert found.steps == round(800 * 1_281_167 / 4096)
    assert found.warm_up / found.steps == pytest.approx(40 / 800, rel=1e-3)


@pytest.mark.parametrize('images', [300, 5_000, 60_000, 10**6])
@pytest.mark.parametrize('machine', [GPU, CPU], ids=['GPU', 'CPU'])
@pytest.mark.parametrize('short_edge', [12, 28, 64, 96, 150, 400])
def test_choose__no_plan_is_hopeless(images, machine, short_edge):
    found = recipe(Data(images, short_edge), machine)
    assert found.steps >= MIN_STAGE
    assert found.batch <= images / MIN_EPOCH or found.batch <= 32
    assert found.size % found.patch == 0
    assert found.size <= max(short_edge, 24)
    assert found.images_at_once * found.accumulate * found.processes == found.batch
    width, depth = STUDENTS[found.student]
    assert found.decoder[0] ** 2 * found.decoder[1] < width**2 * depth / 2  # fewer parameters than the encoder


def test_choose__method_by_teachers_and_length():
    assert [recipe(machine=machine).method for machine in (GPU, CPU)] == ['dbot', 'mae']
    assert [recipe(machine=machine, teachers=2).method for machine in (GPU, CPU)] == ['maskdistill'] * 2


def test_choose__what_the_user_says_wins():
    found = recipe(method='mae', student='s', size=96, epochs=10, batch=256)
    assert (found.method, found.student, found.size, found.batch, found.stages) == ('mae', 's', 96, 256, 1)
    assert found.steps == round(10 * IMAGENET.images / 256)
    given = {name for name, _, why in table(found, IMAGENET) if why == 'given'}
    assert {'method', 'student', 'size', 'batch'} <= given


def test_choose__one_epoch_of_few_images_has_a_step_after_the_warm_up():
    found = recipe(Data(40, 96), CPU, epochs=1)
    assert found.steps == 2 and found.warm_up == 1


def test_choose__every_other_number_has_a_reason():
    assert all(why != 'given' for _, _, why in table(recipe(), IMAGENET))


def test_choose__accumulates_what_a_gpu_cannot_hold():
    found = recipe(student='l')
    assert found.accumulate == 4096 // 128
    before = found.images_at_once
    found.halve()
    assert (found.images_at_once, found.batch) == (before // 2, 4096)


def test_halve__one_image_is_the_end():
    found = recipe(batch=1, student='l')
    with pytest.raises(ValueError, match='One image of 224 px does not fit in memory with --student l'):
        found.halve()


def test_fit_to_time__about_ten_minutes_but_no_hopeless_stage():
    quick, slow = recipe(Data(300, 400), CPU), recipe(Data(300, 400), CPU)
    fit_to_time(quick, 0.2)
    assert quick.stages * quick.steps * 0.2 == pytest.approx(600, rel=0.01)
    fit_to_time(slow, 10.0)
    assert slow.steps == MIN_STAGE


@pytest.mark.parametrize(
    ('request_', 'sentence'),
    [
        (dict(method='dbot', teachers=1), 'With 1, use --method maskdistill or dmae'),
        (dict(method='hybrid', teachers=1), '--method hybrid takes 2 teachers, got 1'),
        (dict(teachers=9), 'Give fewer --teacher'),
        (dict(size=30), 'give a multiple of 4 of at least 24'),
        (dict(size=16), 'give a multiple of 4 of at least 24'),
        (dict(batch=2_000_000), 'is larger than the data: there are 1281167 images'),
    ],
)
def test_choose__wrong_requests(request_, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe(**request_)


def test_choose__batch_for_several_gpus():
    with pytest.raises(ValueError, match='cannot be divided among 8 GPUs'):
        recipe(machine=Machine(8, 64, True), batch=100)
