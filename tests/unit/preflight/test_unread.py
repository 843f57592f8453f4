"""Options that do nothing: refused where nothing reads them, let through where a config file uses them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from mkd_cli.main import main
from mkd_plugin.preflight.config import apply_training_options, load_config, read_config
from mkd_plugin.preflight.unread import READ, check_keys, check_saving

DIGITS = 'dbot/dbot_digits'
UPERNET = 'downstream/mmseg/vit-digits_upernet_digit-scenes'
ROOT = Path(__file__).resolve().parents[3]

OPTIONS = {
    'train_cfgg.max_epochs': r"train_cfgg\.max_epochs=1: nothing reads 'train_cfgg'\. Did you mean 'train_cfg'\?",
    'nonsense': r"nothing reads 'nonsense'\.",
    'run_hooks.metrics.type': r"nothing reads 'run_hooks'\. It is a variable, which had its effect when the file was read",
    'env_cfg.cudnn_benchmrk': r"no such key\. Did you mean 'env_cfg\.cudnn_benchmark'\?",
    'env_cfg.other': r'env_cfg\.other: nothing reads this key\..* env_cfg has \[',
    'auto_scale_lr.enabled': r'nothing reads this key|no such key',
    'default_hooks.checkpont.interval': r"default_hooks\.checkpont=.*a hook needs a type.* Did you mean 'checkpoint'\?",
    'default_hooks.exact_resum.allow_changed_config': r"a hook needs a type.* Did you mean 'exact_resume'\?",
}


@pytest.mark.parametrize(('option', 'message'), OPTIONS.items(), ids=OPTIONS)
def test_read_config__an_option_that_nothing_reads(option, message):
    with pytest.raises(ValueError, match=message):
        read_config(DIGITS, {option: 1})


def test_read_config__a_key_of_a_part_that_no_class_checks():
    """``model.test_cfg`` of the hosts' models is read key by key."""
    with pytest.raises(ValueError, match=r"model\.test_cfg\.moed=slide: .* Did you mean 'model\.test_cfg\.mode'\?"):
        read_config(UPERNET, {'model.test_cfg.moed': 'slide'})
    assert read_config(UPERNET, {'model.test_cfg.stride': [4, 4]}).model.test_cfg.stride == [4, 4]


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        *(('load_from', 'file.pth'), ('compile', True), ('find_unused_parameters', True), ('resume', True)),
        *(('custom_hooks', []), ('randomness.seed', 1), ('sync_bn', 'torch')),
    ],
)
def test_read_config__every_option_that_is_read(option, value):
    read_config(DIGITS, {option: value})


FILES = {
    'train_cfgg = dict(max_epochs=1)': r"train_cfgg: nothing reads this key of the config\. Did you mean 'train_cfg'\?",
    'optim_wraper = dict()': "Did you mean 'optim_wrapper'",
    'mdoel = dict()': "Did you mean 'model'",
    'trian_dataloader = None': "Did you mean 'train_dataloader'",
    'val_evalutor = None': "Did you mean 'val_evaluator'",
    'find_unused_parameter = True': "Did you mean 'find_unused_parameters'",
    'env_cfg = dict(mpcfg=dict())': r"env_cfg\.mpcfg: nothing reads this key\. Did you mean 'mp_cfg'\?",
    'auto_scale_lr = dict(enabled=True)': r"auto_scale_lr\.enabled: nothing reads this key\. Did you mean 'enable'\?",
    'default_hooks = dict(loger=None)': r"default_hooks\.loger=None: .*None removes only .* Did you mean 'logger'\?",
    "default_hooks = dict(checkpoints=dict(type='CheckpointHook'))": "adds a hook beside 'checkpoint'. Did you mean",
    "default_hooks = dict(checkpoint=dict(type='CheckpointHook', intervall=1))": r"checkpoint\.intervall: .* 'interval'\?",
}


@pytest.mark.parametrize(('text', 'message'), FILES.items(), ids=FILES)
def test_check_keys__misspelt_in_a_file(tmp_path, text, message):
    (tmp_path / 'c.py').write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(str(tmp_path / 'c.py'))


def test_check_keys__variables_are_the_authors(tmp_path):
    (tmp_path / 'c.py').write_text(
        "dataset_type = 'CustomDataset'\nimg_norm_cfg = dict(mean=[0.0])\nbackend_args = None\nmax_epochs = 3\n"
        'val_evaluator1 = dict(prefix=dataset_type)\nval_evaluator = [val_evaluator1]\n'  # resembles an option, and is used
        "default_hooks = dict(timer=None, mine=dict(type='X'))\n"
    )
    assert read_config(str(tmp_path / 'c.py'), {}).val_evaluator[0].prefix == 'CustomDataset'


def test_check_keys__no_variable_of_a_config_of_ours_or_of_the_hosts():
    """Names alone, of all files; the slow test reads the files."""
    pytest.importorskip('mmdet')
    names = {}
    for file in all_configs():
        for statement in ast.parse(file.read_text()).body:
            for target in statement.targets if isinstance(statement, ast.Assign) else ():
                if isinstance(target, ast.Name):
                    names[target.id] = file
    assert len(names) > 250
    check_keys(Config({name: None for name in names if name not in READ}))


def all_configs() -> list[Path]:
    import mmdet
    import mmpretrain
    import mmseg

    folders = [Path(host.__path__[0], '.mim', 'configs') for host in (mmpretrain, mmdet, mmseg)]
    return sorted(file for folder in (ROOT / 'configs', *folders) for file in folder.rglob('*.py'))


# What cannot be read at all: a base that is not in the wheel, or of another kind of config.
BROKEN = (
    'replknet/',
    'swinv2-base-w12_8xb128_in21k',
    'swinv2-large-w12_8xb128_in21k',
    'mot17test',
    'mot17train',
    'mot20',
)


@pytest.mark.slow
def test_read_config__every_config_of_ours_and_of_the_hosts():
    read = 0
    for file in all_configs():
        if '_base_' in file.parts or any(part in str(file) for part in BROKEN):
            continue
        apply_training_options(read_config(str(file), {}))
        read += 1
    assert read > 2000


BASE = "data_root = 'data/base/'\ntrain_dataloader = dict(dataset=dict(type='X', data_root=data_root))\n"


def test_data_root__of_a_child_does_not_reach_the_datasets_of_its_base(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'c.py').write_text("_base_ = 'base.py'\ndata_root = '/my'\n")
    with pytest.raises(
        ValueError, match=r"data_root='/my' reaches no dataset: theirs is 'data/base/'.*data_root=/my\."
    ):
        read_config(str(tmp_path / 'c.py'), {})
    cfg = read_config(str(tmp_path / 'c.py'), {'data_root': '/my'})  # as the message says
    assert cfg.train_dataloader.dataset.data_root == '/my'


def test_data_root__that_no_dataset_takes(tmp_path):
    (tmp_path / 'c.py').write_text("train_dataloader = dict(dataset=dict(type='X', ann_file='a'))")
    with pytest.raises(ValueError, match=r'data_root=/my: it reaches no dataset .*none of them has a data_root'):
        read_config(str(tmp_path / 'c.py'), {'data_root': '/my'})
    several = (
        "\nval_dataloader = dict(dataset=dict(data_root='b'))\ntest_dataloader = dict(dataset=dict(data_root='c'))"
    )
    (tmp_path / 'c.py').write_text("data_root = 'a'" + several)
    with pytest.raises(ValueError, match=r"it reaches no dataset of the config, theirs are \['b', 'c'\]"):
        read_config(str(tmp_path / 'c.py'), {'data_root': '/my'})


def test_data_root__an_option_of_one_dataset_wins(tmp_path):
    (tmp_path / 'c.py').write_text(BASE + 'val_dataloader = dict(dataset=dict(data_root=data_root))\n')
    options = {'data_root': '/my', 'val_dataloader.dataset.data_root': '/other'}
    cfg = read_config(str(tmp_path / 'c.py'), options)
    assert cfg.train_dataloader.dataset.data_root == '/my' and cfg.val_dataloader.dataset.data_root == '/other'


@pytest.mark.parametrize('interval', [0, -2, 1.5, True, '3', None])
def test_check_saving__an_interval_that_is_none(interval):
    cfg = load_config(DIGITS, options={'default_hooks.checkpoint.interval': interval})
    with pytest.raises(ValueError, match=r'default_hooks\.checkpoint\.interval=.*at least 1; or −1 to save at the end'):
        apply_training_options(cfg)


SAVING = {
    'at the end': (dict(type=CheckpointHook), {}, 'saves no checkpoint before its end'),
    'never': (dict(interval=-1, save_last=False), {}, 'saves no checkpoint at all'),
    'no hook': (None, {}, 'saves no checkpoint at all'),
    'the best': (dict(interval=-1, save_last=False, save_best='auto'), {}, 'saves no checkpoint before its end'),
    'another hook': (None, dict(custom_hooks=[dict(type='mkd_plugin.AtomicCheckpointHook', interval=1)]), None),
    'usual': (dict(interval=1), {}, None),
}


@pytest.mark.parametrize(('hook', 'other', 'message'), SAVING.values(), ids=SAVING)
def test_check_saving__says_what_will_not_be_saved(monkeypatch, hook, other, message):
    said = []
    monkeypatch.setattr('mkd_plugin.preflight.unread.print_log', lambda text, **_: said.append(text))
    check_saving(Config(dict(default_hooks=dict(checkpoint=hook), **other)))
    check_saving(Config(dict(default_hooks=dict(timer=None))))  # mmengine's own saves every epoch
    assert [message in text for text in said] == [True] * (message is not None)


def test_train__refuses_before_anything_is_written(tmp_path, capfd):
    command = ['train', DIGITS, '--work-dir', str(tmp_path / 'run'), '--cfg-options']
    for option in ('train_cfgg.max_epochs=1', 'default_hooks.checkpoint.interval=0', 'data_roots=x'):
        assert main([*command, option]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert lines[0].startswith('error: ') and len(lines) <= 12
    assert not (tmp_path / 'run').exists()


def test_dry_run__reports_a_checkpoint_of_another_network(tmp_path, written_digits, capfd):
    torch.save(dict(state_dict={'encoder.weight': torch.ones(2)}), tmp_path / 'other.pth')
    options = [f'data_root={written_digits}', f'load_from={tmp_path / "other.pth"}']
    assert main(['train', DIGITS, '--dry-run', '1', '--work-dir', str(tmp_path), '--cfg-options', *options]) == 1
    printed = ' '.join(capfd.readouterr().out.split())
    assert (
        'problem model: CheckpointError:' in printed
        and 'is of another network than MaskedDistiller: no tensor' in printed
    )
