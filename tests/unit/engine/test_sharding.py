"""FSDP2 in a group of one process, and folders of shares."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import threading

import pytest
import timm
import torch
import torch.distributed as dist
from helpers.networks import VIT
from helpers.networks_modern import DINOV3, EVA02
from mmengine.fileio import LocalBackend
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from mkd_plugin.checkpoint.read import CheckpointError, read_checkpoint
from mkd_plugin.engine import sharding
from mkd_plugin.engine.checkpoints import newest_checkpoint
from mkd_plugin.engine.shard_files import INDEX, begin_shards, check_pieces, read_shards


@pytest.fixture
def group():
    """A gloo group of this process alone."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model, images, types=None):
    """Loss of one step, and the gradients by name."""
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16, enabled=types is not None):
        loss = sum(value for name, value in model(images, mode='loss').items() if name.startswith('loss_'))
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {
        name: grad.full_tensor() if sharding.is_share(grad) else grad for name, grad in grads.items()
    }


@pytest.mark.parametrize('tap', ['block:-1', 'relation:-1', 'attention:0'])
def test_shard_trained__same_step_also_with_taps_inside_blocks(group, build_distiller, images, tap):
    """Of the relations' last block only queries and keys are computed, without calling the block."""
    head = {} if tap == 'block:-1' else dict(head=None)
    objective = dict(tap=tap, student=tap, region='visible', normalize=None, **head)
    model = build_distiller(objective=objective)
    sharded = copy.deepcopy(model)
    options = sharding.shard_options(None)
    sharding.shard_trained(sharded, options)
    sharding.shard_teachers(sharded, options)
    assert all(sharding.is_share(p) for p in sharded.parameters())
    assert {name for name, _ in sharded.teachers.named_parameters()} >= {'boot.network.layers.0.attn.qkv.weight'}
    torch.testing.assert_close(gradients(sharded, images), gradients(model, images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('cached', [False, True])
@pytest.mark.parametrize('model', ['vit_tiny_patch16_224', 'eva02_tiny_patch14_224', 'resnet18'])
def test_shard_teachers__blocks_of_timms(group, tmp_path, build_distiller, images, model, cached):
    sizes = dict(depth=2, embed_dim=32, num_heads=2, patch_size=4)
    cfg = dict(
        type='TimmTeacher', model=model, seed=0, resample='bilinear', options={} if model == 'resnet18' else sizes
    )
    if cached:
        cfg = dict(type='CachedTeacher', teacher=cfg, folder=str(tmp_path), max_gigabytes=1)
    head = dict(head=dict(type='TransformerDecoder', depth=1, width=16, num_heads=2), region='hidden')
    whole = build_distiller(teachers=dict(boot=cfg), objective=dict(tap='output', **head))
    sharded = copy.deepcopy(whole)
    options = sharding.shard_options(None)
    sharding.shard_trained(sharded, options)
    sharding.shard_teachers(sharded, options)
    held = [p for name, p in sharded.teachers.named_parameters() if '.blocks.' in name]
    assert all(sharding.is_share(p) for p in held)
    own = timm.create_model(model, num_classes=0, **cfg.get('teacher', cfg)['options'])
    blocks = getattr(own, 'blocks', torch.nn.ModuleList())
    assert sum(p.numel() for p in held) == sum(p.numel() for p in blocks.parameters())
    torch.testing.assert_close(gradients(sharded, images), gradients(whole, images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('parts', [DINOV3, dict(EVA02, inner_norm='both')], ids=['dinov3', 'eva02'])
def test_shard_trained__same_step_with_rotary_positions_and_gates(group, build_distiller, images, parts):
    objective = dict(tap='block:-1', student='block:-1', normalize=None)
    model = build_distiller(
        objective=objective, backbone=dict(type='VisibleViT', **VIT, **{**parts, 'activation': 'swiglu'})
    )
    sharded = copy.deepcopy(model)
    options = sharding.shard_options(None)
    sharding.shard_trained(sharded, options)
    sharding.shard_teachers(sharded, options)
    torch.testing.assert_close(gradients(sharded, images), gradients(model, images), rtol=1e-12, atol=1e-12)


def test_shard_options__half_precision_is_gathered_and_shares_stay_float32(group, build_distiller, images):
    model = build_distiller().float()
    for module in (model.backbone, *model.objectives.feature.heads):  # LayerNorm takes one type on a CPU; CUDA casts
        module.pos_embed = module.pos_embed.bfloat16()
    sharded = copy.deepcopy(model)
    sharding.shard_trained(sharded, sharding.shard_options('bfloat16'))
    seen = []
    sharded.backbone.layers[0].ln1.register_forward_pre_hook(lambda module, args: seen.append(module.weight.dtype))
    loss, grads = gradients(sharded, images.float(), 'bfloat16')
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in sharded.parameters()} | {grad.dtype for grad in grads.values()} == {torch.float32}
    torch.testing.assert_close(loss, gradients(model, images.float(), 'bfloat16')[0], rtol=0.02, atol=0)


def test_whole_parameters__keeps_what_is_written(group, build_distiller):
    model = build_distiller()
    sharding.shard_trained(model, sharding.shard_options(None))
    with sharding.whole_parameters(model.backbone):
        assert not any(sharding.is_share(p) for p in model.backbone.parameters())
        torch.nn.init.constant_(model.backbone.cls_token, 7.0)
    assert all(sharding.is_share(p) for p in model.parameters())
    assert (model.backbone.cls_token.full_tensor() == 7).all()


@pytest.fixture
def shares(tmp_path, group):
    """A run's folder with one sharded checkpoint."""
    rest = dict(meta=dict(iter=3, epoch=1), optimizer={}, message_hub={})
    begin_shards(tmp_path / 'epoch_1.pth', {'model.a': torch.arange(6.0), 'model.n': torch.tensor(2)}, rest)()
    return tmp_path / 'epoch_1.pth'


def test_read_shards__gives_what_was_written(shares):
    tensors = {'model.a': torch.zeros(6), 'model.n': torch.tensor(0)}
    read_shards(shares, tensors)
    assert tensors['model.a'].tolist() == [0, 1, 2, 3, 4, 5] and tensors['model.n'] == 2
    assert read_checkpoint(shares / 'run.pth')['meta'] == dict(iter=3, epoch=1)
    assert newest_checkpoint(shares.parent) == str(shares)


def test_begin_shards__copies_before_it_returns_and_writes_beside(tmp_path, group, build_distiller, monkeypatch):
    """On a CPU the weights that are saved are those that are trained."""
    release, write = threading.Event(), FileSystemWriter.write_data

    def held(self, *args):
        release.wait(20)
        return write(self, *args)

    monkeypatch.setattr(FileSystemWriter, 'write_data', held)
    model = build_distiller()
    sharding.shard_trained(model, sharding.shard_options(None))
    weights = {'w': model.backbone.cls_token, 'n': torch.tensor(2)}
    before, rest = weights['w'].detach().full_tensor().clone(), dict(meta=dict(iter=3))
    finish = begin_shards(tmp_path / 'x.pth', {name: value.detach() for name, value in weights.items()}, rest)
    assert not (tmp_path / 'x.pth' / '.metadata').exists()
    with torch.no_grad():
        weights['w'].add_(1)
        weights['n'] += 1
    rest['meta']['iter'] = 4
    release.set()
    finish()
    found = {'w': torch.zeros_like(before), 'n': torch.tensor(0)}
    read_shards(tmp_path / 'x.pth', found)
    assert torch.equal(found['w'], before) and found['n'] == 2
    assert read_checkpoint(tmp_path / 'x.pth/run.pth')['meta']['iter'] == 3


def test_begin_shards__a_disk_that_is_full_is_an_os_error(tmp_path, group, monkeypatch):
    def fail(self, *args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(FileSystemWriter, 'write_data', fail)
    finish = begin_shards(tmp_path / 'x.pth', {'w': torch.zeros(3)}, {})
    with pytest.raises(OSError, match='No space left'):
        finish()
    monkeypatch.undo()
    finish = begin_shards(tmp_path / 'y.pth', {'w': torch.zeros(3)}, {})
    monkeypatch.setattr(LocalBackend, 'put', fail)  # for run.pth
    with pytest.raises(OSError, match='No space left'):
        finish()


def test_newest_checkpoint__passes_over_a_folder_whose_description_is_no_dict(shares):
    torch.save([1], shutil.copytree(shares, shares.with_name('epoch_2.pth')) / 'run.pth')
    assert newest_checkpoint(shares.parent) == str(shares)


@pytest.mark.parametrize('piece', ['run.pth', '.metadata', '__0_0.distcp'])
def test_check_pieces__names_a_missing_or_short_one(shares, piece):
    os.truncate(shares / piece, 0)
    with pytest.raises(CheckpointError, match='run.pth' if piece == 'run.pth' else f'its piece {piece} has 0 of'):
        check_pieces(shares)
    (shares / piece).unlink()
    with pytest.raises(CheckpointError, match=f'its piece {piece} is missing. Copy the whole folder again'):
        check_pieces(shares)
    with pytest.raises(ValueError, match="none of the checkpoints of .* can be read: .'epoch_1.pth'. are damaged"):
        newest_checkpoint(shares.parent)


def test_read_shards__runs_no_code_of_the_index(shares, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)

    (shares / INDEX).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=r'its piece .metadata is damaged or no index \(posix.mkdir is refused'):
        read_shards(shares, {'model.a': torch.zeros(6)})
    assert not (tmp_path / 'ran').exists()


def test_read_checkpoint__says_what_a_folder_of_shares_is(shares):
    with pytest.raises(CheckpointError, match='holds the shares of a run under ShardedStrategy'):
        read_checkpoint(shares)
