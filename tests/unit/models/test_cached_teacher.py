"""Features that are written once and read back, against the teacher itself."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from helpers.networks import ARCH, DBOT, hidden_masks
from helpers.objectives import TOKENIZER, given
from helpers.teachers import SEEDED, context_of
from safetensors.torch import save_file

from mkd_plugin.models.students import VisibleViT
from mkd_plugin.models.teachers import CachedTeacher, cached
from mkd_plugin.preflight.checks import without_checkpoints
from mkd_plugin.registry import build
from mkd_plugin.structures import TokenMask


def cached_cfg(folder, teacher=SEEDED, gigabytes=1):
    return dict(type='CachedTeacher', teacher=dict(teacher), folder=str(folder), max_gigabytes=gigabytes)


@pytest.fixture
def teacher(tmp_path, vit_options):
    """Builds a cached teacher of the tiny student, whose runs are counted in ``runs``."""

    def made(teacher=SEEDED, gigabytes=1, folder=tmp_path / 'features'):
        built = build(cached_cfg(folder, teacher, gigabytes), student=context_of(VisibleViT(**vit_options)))
        built.runs = 0
        built.teacher.register_forward_hook(lambda *_: setattr(built, 'runs', built.runs + 1))
        return built

    return made


def files_in(folder):
    return sorted(Path(folder).rglob('*.safetensors'))


def tokens_of(teacher, images, taps=('output', 'block:0')):
    features = teacher(images, None, taps)
    return [features.tokens(tap) for tap in taps]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_second_epoch__reads_the_very_features_of_the_first(teacher, dtype):
    images, own = torch.randn(6, 3, 16, 16, dtype=dtype), teacher().to(dtype)
    batches = images.split(2)
    with torch.no_grad():
        wanted = [tokens_of(own.teacher, batch) for batch in batches]
        own.runs = 0
        first = [tokens_of(own, batch) for batch in batches]
        assert (own.runs, own.found, own.images) == (3, 0, 6)
        second = [tokens_of(own, batch) for batch in batches]
        assert (own.runs, own.found, own.images) == (3, 6, 12)
        again = teacher().to(dtype)  # another run
        third = [tokens_of(again, batch) for batch in batches]
        shuffled = tokens_of(again, images[[5, 0, 3, 0]])
        assert again.runs == 0
    for epoch in (first, second, third):
        for found, values in zip(epoch, wanted, strict=True):
            assert all(torch.equal(x, y) and x.dtype == dtype for x, y in zip(found, values, strict=True))
    every = torch.cat([values[0] for values in wanted])
    assert torch.equal(shuffled[0], every[[5, 0, 3, 0]])
    assert len(files_in(own.folder)) == 6


@pytest.mark.parametrize('kind', ['features', 'classes'])
def test_loss__is_that_of_the_teacher_itself(tmp_path, build_distiller, images, kind):
    cfg = SEEDED if kind == 'features' else TOKENIZER['teachers']['boot']
    objective = dict(region='all') if kind == 'features' else {**TOKENIZER['objective'], 'region': 'hidden'}
    plain = build_distiller(teachers=dict(boot=cfg), objective=objective)
    own = build_distiller(teachers=dict(boot=cached_cfg(tmp_path, cfg)), objective=objective)
    state = {name.replace('boot.', 'boot.teacher.'): value for name, value in plain.state_dict().items()}
    own.load_state_dict(state)
    hidden = given(hidden_masks(visible=4))
    losses = [model.loss(images, hidden)['loss_feature'] for model in (plain, own, own)]
    assert losses[0] == losses[1] == losses[2]
    assert own.teachers['boot'].found == 3


def test_hidden_region__differs_from_all_tokens_by_rounding_only(tmp_path, build_distiller, images):
    plain, own = (build_distiller(teachers=dict(boot=cfg)) for cfg in (SEEDED, cached_cfg(tmp_path)))
    own.load_state_dict(plain.state_dict())
    hidden = given(hidden_masks(visible=4))
    found, wanted = (model.loss(images, hidden)['loss_feature'] for model in (own, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_key__is_weights_config_taps_format_and_pixels(teacher, tmp_path):
    images, first = torch.randn(2, 3, 16, 16), teacher()
    tokens_of(first, images)
    file = tmp_path / 'weights.safetensors'
    save_file(first.teacher.network.state_dict() | dict(first.teacher.network.named_buffers()), file)

    def misses(cfg, images=images, taps=('output', 'block:0')):
        other = teacher(cfg)
        tokens_of(other, images, taps)
        return other.runs

    from_file = {**SEEDED, 'checkpoint': str(file), 'seed': None}
    assert misses(from_file) == 1  # a config that names a file instead of a seed
    assert misses({**from_file, 'checkpoint': str(file.rename(tmp_path / 'elsewhere.safetensors'))}) == 0
    other = {name: value + 1e-3 * ('cls_token' in name) for name, value in first.teacher.network.named_buffers()}
    save_file(other, tmp_path / 'elsewhere.safetensors')
    assert misses({**from_file, 'checkpoint': str(tmp_path / 'elsewhere.safetensors')}) == 1
    assert misses(SEEDED) == 0
    assert misses({**SEEDED, 'seed': 4}) == 1
    assert misses({**SEEDED, 'pixel_std': (1.0, 2.0, 3.0)}) == 1
    assert misses(SEEDED, taps=('output',)) == 1
    assert misses(SEEDED, images + torch.eye(16) * 1e-6) == 1
    with torch.autocast('cpu', torch.bfloat16):
        assert misses(SEEDED) == 1
    assert misses(SEEDED) == 0


def test_bound__is_kept_and_told_once(teacher, tmp_path, monkeypatch):
    told: list[tuple] = []
    monkeypatch.setattr(cached, 'print_log', lambda *args: told.append(args))
    images = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        one = teacher(folder=tmp_path / 'one')
        wanted = tokens_of(one, images[:1])[0]
        size = files_in(tmp_path / 'one')[0].stat().st_size
        own = teacher(gigabytes=3.5 * size / 1e9)
        for _ in range(3):
            found = [tokens_of(own, batch)[0] for batch in images.split(2)]
        assert (
            torch.equal(found[0][:1], tokens_of(own.teacher, images[:2])[0][:1])
            and found[0].shape[1:] == wanted.shape[1:]
        )
        assert len(files_in(own.folder)) == 3 and own.left == 0
        assert sum(path.stat().st_size for path in files_in(own.folder)) <= own.bound
        assert own.found == 2 * 3  # three images in each of two later epochs
        more = teacher(gigabytes=3.5 * size / 1e9)
        tokens_of(more, images[4:])
        assert len(files_in(own.folder)) == 3 and more.left == 0
    reached = f'CachedTeacher writes no more features to {own.folder}: max_gigabytes={own.bound / 1e9:g} is reached.'
    assert told == [(reached, 'current', logging.WARNING)] * 2  # one of each run


def test_bound__is_shared_by_the_processes_of_a_run(teacher, monkeypatch):
    monkeypatch.setattr(cached, 'get_world_size', lambda: 4)
    monkeypatch.setattr(cached, 'all_reduce', lambda *_: None)
    own = teacher()
    tokens_of(own, torch.randn(1, 3, 16, 16))
    assert own.left == 10**9 // 4 - files_in(own.folder)[0].stat().st_size


def test_full_disk__training_goes_on(teacher, tmp_path):
    (tmp_path / 'features').write_text('a file, where the folder should be')
    own = teacher()
    tokens_of(own, torch.randn(2, 3, 16, 16))
    tokens_of(own, torch.randn(2, 3, 16, 16))
    assert own.left == 0 and own.runs == 2


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'empty', 'text'])
def test_damaged_entry__is_computed_again(teacher, damage):
    images, own = torch.randn(2, 3, 16, 16), teacher()
    with torch.no_grad():
        wanted = tokens_of(own, images)
        path = files_in(own.folder)[1]
        content = path.read_bytes()
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        path.write_bytes({'flipped': flipped, 'cut': content[:-40], 'empty': b'', 'text': b'x' * 500}[damage])
        assert all(torch.equal(x, y) for x, y in zip(tokens_of(own, images), wanted, strict=True))
        assert own.runs == 2 and cached.read_entry(path) is not None
        assert all(torch.equal(x, y) for x, y in zip(tokens_of(own, images), wanted, strict=True))
        assert own.runs == 2


def test_writers__of_the_same_entries_do_not_disturb_each_other(teacher, monkeypatch):
    """Threads in place of processes: what tells the temporary files of processes apart is their id."""
    monkeypatch.setattr(os, 'getpid', threading.get_ident)
    images, failures = torch.randn(16, 3, 16, 16), []
    wanted = tokens_of(teacher().teacher, images)

    def read_and_write(own):
        try:
            for _ in range(4):
                for path in files_in(own.folder)[::3]:
                    path.unlink(missing_ok=True)
                assert all(torch.equal(x, y) for x, y in zip(tokens_of(own, images), wanted, strict=True))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read_and_write, args=(teacher(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    tokens_of(teacher(), images)
    assert {path.suffix for path in teacher().folder.rglob('*') if path.is_file()} == {'.safetensors'}
    assert len(files_in(teacher().folder)) == 16


def test_processes__run_the_teacher_together_or_not_at_all(teacher, monkeypatch):
    """A sharded teacher waits for all processes."""
    images, own = torch.randn(2, 3, 16, 16), teacher()
    tokens_of(own, images)
    monkeypatch.setattr(cached, 'get_world_size', lambda: 2)
    others = iter([0, 1])
    monkeypatch.setattr(cached, 'all_reduce', lambda x, op: x.clamp_(min=next(others)))
    tokens_of(own, images)
    assert own.runs == 1
    tokens_of(own, images)
    assert own.runs == 2


def test_report__is_the_share_of_images_that_were_found(teacher, monkeypatch):
    told: list[tuple] = []
    monkeypatch.setattr(cached, 'print_log', lambda *args: told.append(args))
    monkeypatch.setattr(cached, 'REPORT_EVERY', 2)
    own, images = teacher(), torch.randn(4, 3, 16, 16)
    tokens_of(own, images[:3])
    tokens_of(own, images)
    assert told == [(f'CachedTeacher read 42.9% of 7 images from {own.folder}.', 'current')]


def test_trial_step__computes_without_values_and_writes_nothing(teacher, tmp_path):
    own = teacher().to('meta')
    assert tokens_of(own, torch.zeros(2, 3, 16, 16, device='meta'))[0].is_meta
    assert not (tmp_path / 'features').exists()
    model = {**DBOT, 'teachers': dict(boot=cached_cfg(tmp_path, {**SEEDED, 'checkpoint': 'missing.pth', 'seed': None}))}
    trial = without_checkpoints(model, missing_only=True)
    assert trial['teachers']['boot'] == {**SEEDED, 'checkpoint': None, 'seed': 0}
    assert without_checkpoints(model)['teachers']['boot']['type'] == 'CachedTeacher'  # its own options are checked


@pytest.mark.parametrize(
    ('inner', 'options', 'message'),
    [
        (dict(type='MomentumTeacher', momentum=0.9), {}, r'CachedTeacher\(teacher=MomentumTeacher\): .* without CachedTeacher'),
        (dict(type='BootstrappedTeacher'), {}, r'CachedTeacher\(teacher=BootstrappedTeacher\)'),
        (dict(SEEDED, sees='visible'), {}, 'depend on the mask'),
        (SEEDED, dict(gigabytes=0), 'max_gigabytes=0: it must be positive'),
    ],
)  # fmt: skip
def test_wrong_teacher__is_refused(teacher, inner, options, message):
    with pytest.raises(ValueError, match=message):
        teacher(inner, **options)


def test_tap_spec__is_the_teachers_and_refuses_relations(teacher):
    own = teacher()
    assert isinstance(own, CachedTeacher) and own.tap_spec('output') == own.teacher.tap_spec('output')
    assert own.tap_spec('output').channels == ARCH['width']
    with pytest.raises(ValueError, match="keeps tokens, but 'relation:0' is relation"):
        own.tap_spec('relation:0')


def test_several_masks__share_the_features(tmp_path, build_distiller, images):
    masking = dict(type='DisjointMasks', parts=2)
    model = build_distiller(teachers=dict(boot=cached_cfg(tmp_path)), masking=masking, objective=dict(region='hidden'))
    for _ in range(2):
        assert model.loss(images)['loss_feature'].isfinite()
    assert model.teachers['boot'].found == 3 and isinstance(model.masking(images, None), TokenMask)


def test_run__ends_with_the_weights_of_the_uncached_run(tmp_path, tiny_run, train):
    """Two epochs of `Runner.train` on views that stay the same: the second one never runs the teacher."""
    frozen = {**SEEDED, 'arch': dict(width=16, depth=2, num_heads=2), 'patch_size': 8}
    found = []
    for name, teacher in (('plain', frozen), ('cached', cached_cfg(tmp_path / 'features', frozen))):
        cfg = tiny_run(tmp_path / name, train_cfg=dict(max_epochs=2))
        cfg.model.teachers = dict(frozen=teacher)
        cfg.model.objectives.feature.update(teacher='frozen', tap='output', region='all+cls')
        crop = cfg.train_dataloader.dataset.pipeline[1]
        assert crop.type == 'RandomResizedCrop'
        cfg.train_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=crop.scale)
        found.append(train(cfg).model)
    plain, own = (model.state_dict() for model in found)
    assert plain.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in plain.items())
    teacher = found[1].teachers['frozen']
    assert (teacher.images, teacher.found) == (
        2 * len(files_in(tmp_path / 'features')),
        len(files_in(tmp_path / 'features')),
    )
