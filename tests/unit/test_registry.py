"""The plugin in the hosts: scopes, plain names, clashes, and the four ways to drive it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import mmpretrain
import pytest
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from mkd_plugin import registry

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_prefixed_name__resolves_from_the_scope_of_a_host(scope):
    """In a new process that has not imported the plugin, as with a config without custom_imports."""
    if scope != 'mmpretrain':
        pytest.importorskip({'mmdet': 'mmdet.registry', 'mmseg': 'mmseg.registry'}[scope])
    done = python(f"""
        from {scope}.registry import HOOKS, MODELS
        import sys
        assert 'mkd_plugin' not in sys.modules
        try:
            import {scope}.models
        except ModuleNotFoundError:  # mmcv's compiled ops, which the look-up does not need
            HOOKS._imported = MODELS._imported = True
        backbone = MODELS.build(dict(
            type='mkd_plugin.VisibleViT', arch=dict(width=8, depth=1, num_heads=1), img_size=8, patch_size=4))
        print(type(backbone).__module__, HOOKS.get('mkd_plugin.TeacherUpdateHook').__module__)
    """)
    assert done.stdout.split()[-2:] == ['mkd_plugin.models.students', 'mkd_plugin.engine.teacher_updates'], done.stderr


@pytest.mark.parametrize('look_up_first', [False, True])
def test_plain_name__resolves_in_mmpretrain_after_one_import(look_up_first):
    """Also if mmpretrain has already imported its own members."""
    done = python(f"""
        from mmpretrain.registry import HOOKS, MODELS
        if {look_up_first}:
            assert MODELS.get('VisionTransformer') and MODELS.get('MaskedDistiller') is None
        import mkd_plugin
        members = ['MaskedDistiller', 'VisibleViT', 'RandomMasking', 'BootstrappedTeacher', 'TransformerDecoder']
        print(all(MODELS.get(name).__module__.startswith('mkd_plugin.') for name in members))
        print(all(name in MODELS.module_dict for name in members), HOOKS.get('TeacherUpdateHook').__name__)
    """)
    assert done.stdout.split()[-3:] == ['True', 'True', 'TeacherUpdateHook'], done.stderr


def test_mirrored_registry__name_clash_is_an_error_that_names_both():
    host = Registry('host model', parent=MMENGINE_MODELS, scope='some_host')
    root = Registry('another root', scope='another')  # mmengine's root already has a child of our scope
    ours = registry.MirroredRegistry('our model', parent=root, locations=[])
    ours.mirror_into(host)

    @host.register_module(name='Taken')
    class Theirs:
        pass

    with pytest.raises(ValueError, match=r"registers 'Taken', but some_host already has .*Theirs"):

        @ours.register_module(name='Taken')
        class Ours:
            pass


def test_build__misspelt_option_is_named_with_the_right_one():
    with pytest.raises(ValueError, match=r"RandomMasking has no option \['ration'\]. Did you mean \['ratio'\]\?"):
        registry.build(dict(type='RandomMasking', ration=0.75), student=None)
    with pytest.raises(ValueError, match=r"MaskTokenViT has no option \['archh'\].*'patch_size'"):
        registry.build(dict(type='MaskTokenViT', archh='b'))  # an option of the parent class


def test_build__unknown_component_lists_ours():
    with pytest.raises(ValueError, match="no component 'RandomMaskin' in mkd_plugin or mmpretrain.*RandomMasking"):
        registry.build(dict(type='RandomMaskin'))
    with pytest.raises(ValueError, match="needs a 'type'"):
        registry.build(dict(ratio=0.5))


def test_build__finds_mmpretrains_classes_by_their_plain_name():
    from mmpretrain.models import HOGGenerator

    assert isinstance(registry.build(dict(type='HOGGenerator')), HOGGenerator)


SMALL_RUN = [
    'model.backbone.arch.depth=1',
    'model.backbone.patch_size=8',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.indices=8',
    'train_cfg.max_epochs=2',
    'param_scheduler=[]',
]


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    from mkd_plugin.datasets import write_digits

    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.mark.parametrize('tool', ['ours', "mmpretrain's"])
def test_tools_train__runs_two_stages(tool, digits, tmp_path):
    tools = {'ours': ROOT / 'tools', "mmpretrain's": Path(mmpretrain.__file__).parent / '.mim' / 'tools'}
    command = [sys.executable, tools[tool] / 'train.py', ROOT / 'configs/dbot/dbot_digits.py', '--work-dir', tmp_path]
    options = [*SMALL_RUN, f'train_dataloader.dataset.data_root={digits}']
    done = subprocess.run([*command, '--cfg-options', *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / 'stage_2.pth').is_file(), done.stderr[-2000:]


def test_tools_train__resumes_a_finished_run_and_runs_an_ablation_row(digits, tmp_path):
    def train(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, ROOT / 'tools/train.py', *arguments, '--work-dir', tmp_path]
        done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-2000:]
        return done.stdout + done.stderr

    options = ['--cfg-options', *SMALL_RUN, f'train_dataloader.dataset.data_root={digits}']
    train('configs/dbot/dbot_digits.py', *options)
    assert 'resumed epoch: 2' in train('configs/dbot/dbot_digits.py', '--resume', *options)
    assert "no ablation 'nothing' of 'dbot'" in train('dbot:nothing', code=2)


def test_plain_python__trains_without_a_runner():
    """The algorithm is a plain module: build it, call loss, step, and tell it the progress."""
    import torch

    import mkd_plugin
    from mkd_plugin.models.protocols import Progress
    from mkd_plugin.registry import MODELS

    cfg = mkd_plugin.get_config('dbot/dbot_digits')
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images = torch.randn(8, 3, 24, 24)
    losses = []
    model.begin_training(Progress(0, 20))
    for step in range(1, 21):
        loss = model.loss(images)['loss_feature']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(Progress(step, 20))
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
