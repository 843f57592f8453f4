"""Runs recorded by Weights & Biases and MLflow, both offline, through the hosts' own backends."""

from __future__ import annotations

import json
import struct
import sys

import pytest

from mkd_cli.main import main
from mkd_plugin.preflight.tracking import add_wandb


def losses(work_dir):
    """The losses that mmengine's own local backend wrote, by iteration."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = map(json.loads, path.read_text().splitlines())
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def wandb_records(path):
    """The messages of a .wandb file: a header of 7 bytes, then blocks of 32 KiB with parts of (checksum, length, kind)."""
    data, place, message = path.read_bytes(), 7, b''
    assert data[:4] == b':W&B'
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # a block's end is left empty
            place += left
            continue
        _, length, kind = struct.unpack_from('<IHB', data, place)
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b''


def test_wandb__records_losses_and_config_offline(tmp_path, tiny_run, train, monkeypatch):
    wandb = pytest.importorskip('wandb', reason='wandb is not installed (requirements/optional.txt)')
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    work_dir = tmp_path / 'digits'
    cfg = tiny_run(work_dir)
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    add_wandb(cfg, 'photos')
    train(cfg)
    wandb.finish()
    (path,) = work_dir.rglob('*.wandb')
    recorded, run = [], None
    for data in wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField('run'):
            run = record.run
        items = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
        recorded += [json.loads(items['loss'])] if 'loss' in items else []
    assert (run.project, run.display_name) == ('photos', 'digits')
    assert recorded == pytest.approx(list(losses(work_dir).values()), rel=1e-4)


def test_mlflow__records_losses_and_config_in_files(tmp_path, tiny_run, train, monkeypatch):
    mlflow = pytest.importorskip('mlflow', reason='mlflow is not installed (requirements/optional.txt)')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')  # a database needs more than mlflow-skinny brings
    store = f'file://{tmp_path}/mlruns'
    work_dir = tmp_path / 'digits'
    cfg = tiny_run(work_dir)
    backend = dict(type='MLflowVisBackend', exp_name='photos', tracking_uri=store, tracked_config_keys=['train_cfg'])
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), backend])
    monkeypatch.chdir(tmp_path)
    train(cfg)
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name('photos').experiment_id])
    found = {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, 'loss')}
    assert found == pytest.approx(losses(work_dir)) and len(found) > 2


def test_wandb__that_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('mkd_plugin.preflight.tracking.find_spec', lambda name: None)
    monkeypatch.chdir(tmp_path)
    for command in (['train', 'dbot/dbot_digits', '--wandb', 'photos'], ['pretrain', 'nowhere', '--wandb', 'photos']):
        assert main(command) == 2
        assert capsys.readouterr().err == 'error: --wandb needs wandb, which is not installed: pip install wandb.\n'
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('mode', 'key', 'accepted'), [('online', None, False), ('online', 'secret', True), ('offline', None, True)]
)
def test_wandb__needs_a_login_or_offline(tmp_path, tiny_run, monkeypatch, mode, key, accepted):
    class Wandb:
        """Stands for wandb: this check reads its settings only."""

        class setup:  # noqa: N801
            class settings:  # noqa: N801
                base_url = 'https://api.wandb.ai'

    Wandb.setup.settings.mode, Wandb.setup.settings.api_key = mode, key
    monkeypatch.setattr(Wandb, 'setup', lambda stands=Wandb.setup: stands)
    monkeypatch.setitem(sys.modules, 'wandb', Wandb)
    monkeypatch.setattr('mkd_plugin.preflight.tracking.find_spec', lambda name: name)
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = tiny_run(tmp_path / 'digits')
    if not accepted:
        with pytest.raises(ValueError, match='wandb is not logged in. Run `wandb login`, or set WANDB_MODE=offline'):
            add_wandb(cfg, 'photos')
        return
    add_wandb(cfg, 'photos')
    assert cfg.visualizer.vis_backends[-1] == dict(
        type='WandbVisBackend', init_kwargs=dict(project='photos', name='digits')
    )
