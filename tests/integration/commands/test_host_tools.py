"""Using the hosts' own tools and configs: the script runner, bases, flat configs, missing data."""

from __future__ import annotations

import io
import sys

import pytest
from helpers.tiny_dense import read
from mmengine.config import Config
from rich.console import Console

from mkd_cli import print_config
from mkd_plugin.__main__ import main
from mkd_plugin.compat.hosts import HOSTS
from mkd_plugin.preflight.checks import check_data, missing_tree
from mkd_plugin.preflight.config import move_data_root
from mkd_plugin.preflight.dry_run import dry_run
from mkd_plugin.preflight.plan import stages_of

COCO = 'downstream/mmdet/vit-base-p16_cascade-mask-rcnn_1x_coco'
ADE = 'downstream/mmseg/vit-base-p16_upernet_160k_ade20k-512'
DETECTOR = 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes'
SEGMENTOR = 'downstream/mmseg/vit-digits_upernet_digit-scenes'


def test_main__runs_a_script_as_python_would(tmp_path, monkeypatch, capsys):
    (tmp_path / 'beside.py').write_text('NAME = "found"\n')
    script = tmp_path / 'train.py'
    script.write_text('import sys, beside\nprint(__name__, sys.argv, beside.NAME)\n')
    monkeypatch.setattr(sys, 'argv', ['as it was'])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    main([str(script), 'config.py', '--resume'])
    assert capsys.readouterr().out == f"__main__ ['{script}', 'config.py', '--resume'] found\n"


def test_main__says_what_it_wants(tmp_path):
    for arguments, message in (
        ([], 'No script was given'),
        ([str(tmp_path / 'none.py')], "there is no script '.*none.py'"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)


def test_print_config__inherits_nothing_and_is_the_same_config(tmp_path, capsys):
    """A base of mmseg's resolves here, on onedl too, and need not be there when the written file is read."""
    mmseg = next(host for host in HOSTS if host.module == 'mmseg')
    if not mmseg.installed():
        pytest.skip('mmseg is not installed')
    short = tmp_path / 'short.py'
    short.write_text("_base_ = ['mmseg::_base_/schedules/schedule_20k.py']\nstep = 1\n")
    out = ['--out', str(tmp_path / 'new' / 'flat.py'), '--cfg-options', 'train_cfg.val_interval=7']
    assert print_config.main([str(short), *out]) == 0
    text = (tmp_path / 'new' / 'flat.py').read_text()
    assert 'mmseg::' not in text and '_base_' not in text
    flat = Config.fromfile(tmp_path / 'new' / 'flat.py')
    assert flat.step == 1 and flat.train_cfg.val_interval == 7 and flat.train_cfg.max_iters == 20000
    capsys.readouterr()
    assert print_config.main([str(short)]) == 0 and 'max_iters=20000' in capsys.readouterr().out


@pytest.mark.parametrize(
    'name, expected, source',
    [
        (
            COCO,
            ['annotations/instances_train2017.json', 'train2017/', 'annotations/instances_val2017.json'],
            'cocodataset',
        ),
        (ADE, ['images/training', 'annotations/training', 'images/validation'], 'ADEChallengeData2016.zip'),
    ],
)
def test_check_data__shows_the_tree_that_is_expected(tmp_path, name, expected, source):
    cfg = read(name)
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader].dataset.data_root = f'{tmp_path}/{"coco" if name == COCO else "ade"}/'
    there = tmp_path / ('coco/val2017' if name == COCO else 'ade/images/validation')
    there.mkdir(parents=True)
    with pytest.raises(ValueError, match='Data of this config are missing') as caught:
        check_data(cfg, ('train_dataloader', 'val_dataloader'))
    lines = str(caught.value).splitlines()
    rows = {line.split()[0]: line.endswith('missing') for line in lines if line.startswith(' ' * 8)}
    assert set(expected) <= set(rows) and all(rows[part] for part in expected if part != 'images/validation')
    assert [part for part, missing in rows.items() if not missing] == [
        there.relative_to(tmp_path).as_posix().partition('/')[2] + '/' * (name == COCO)
    ]
    assert source in str(caught.value) and '--cfg-options data_root=DIR/' in lines[-1]


def test_missing_tree__leaves_hosts_alone_that_fetch_their_data(tmp_path):
    loader = dict(dataset=dict(type='CIFAR10', data_prefix=str(tmp_path / 'none')))
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=loader))
    assert missing_tree(cfg, ['train_dataloader']) is None


@pytest.mark.parametrize('name, loss', [(DETECTOR, 'loss_mask'), (SEGMENTOR, 'decode.loss_ce')])
def test_dry_run__of_a_detector_and_a_segmentor_takes_a_step_on_made_up_objects(tmp_path, name, loss):
    cfg = read(name)
    move_data_root(cfg, f'{tmp_path}/digit_scenes/')
    cfg.data_root = f'{tmp_path}/digit_scenes/'
    cfg.merge_from_dict({'launcher': 'none', 'work_dir': str(tmp_path)})
    text = io.StringIO()
    code = dry_run(cfg, processes=8, images=2, console=Console(file=text, width=120))
    shown = text.getvalue()
    problems = [line for line in shown.splitlines() if line.startswith('problem')]
    assert code == 1 and all('missing: ' in line and 'each class' not in line for line in problems), shown
    assert 'Data of this config are missing' in shown and 'make_digit_scenes.py' in shown
    assert loss in shown and 'step: ' in shown


def test_stages_of__warm_up_counted_in_iterations_of_a_run_counted_in_epochs():
    """mmdet's 1x schedule: how many epochs 500 iterations are depends on the data; the steps after it do not."""
    warm_up = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
    steps = dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)
    cfg = Config(dict(train_cfg=dict(max_epochs=12), param_scheduler=[warm_up, steps]))
    (stage,) = stages_of(cfg, 0.1)
    assert (stage.length, stage.unit, stage.peak) == (12, 'epochs', 0.1) and stage.final == pytest.approx(0.001)
