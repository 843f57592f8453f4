"""Curvature of a fine-tuned classifier's own loss, over the checkpoints of a real run."""

from __future__ import annotations

import json
import shutil
from html import unescape

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import mkd_plugin
from mkd_plugin.datasets import draw_labelled, write_digits
from mkd_plugin.evaluation.classifier import load_classifier
from mkd_plugin.reporting.analysis import Settings, analyze, curvature
from mkd_plugin.reporting.analysis.measure import ImageSet

IMAGES = 20


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Digits, and the work folder of a real fine-tuning of a tiny network with a checkpoint for each of two iterations."""
    root = tmp_path_factory.mktemp('classifier')
    write_digits(root / 'digits')
    cfg = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    listed = str(draw_labelled(root / 'digits', 2, 0).relative_to(root / 'digits'))
    cfg.train_dataloader.dataset.update(data_root=str(root / 'digits'), ann_file=listed)
    cfg.model.backbone.update(arch=dict(width=4, depth=1, num_heads=1), drop_path_rate=0.5)
    cfg.model.head.in_channels = 4
    cfg.model.head.init_cfg = dict(type='TruncNormal', layer='Linear', std=1.0)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.default_hooks.checkpoint.update(interval=1, by_epoch=False, max_keep_ckpts=-1)
    cfg.train_cfg = dict(by_epoch=False, max_iters=2)
    cfg.param_scheduler, cfg.log_level, cfg.work_dir = None, 'ERROR', str(root / 'ft')
    cfg.optim_wrapper.optimizer.lr = 0.1
    Runner.from_cfg(cfg).train()
    return root


def dense_hessian(model, images, labels):
    """Loss and Hessian of mmpretrain's own classifier in float64, one column after the other."""
    model = model.double()
    weights = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(images, mode='tensor'), labels)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])
        rows = [torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True) for value in gradient]
    return loss.item(), torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def test_analyze__loss_and_hessian_are_those_of_the_host_classifier(run, tmp_path, monkeypatch):
    """Against the dense Hessian of mmpretrain's ImageClassifier: plain cross entropy in evaluation mode, all weights."""
    monkeypatch.setattr(curvature, 'EIGENVALUES', 1)
    monkeypatch.setattr(curvature, 'LANCZOS_STEPS', 5)
    settings = Settings(only=['hessian', 'landscape'], images=IMAGES, batch=16, landscape_size=3)
    report = analyze([str(run / 'ft/iter_2.pth')], data=run / 'digits/val', out=tmp_path, settings=settings)
    found = report.results['iter_2']['hessian']
    model = load_classifier(run / 'ft/dbot-ft_digits.py', run / 'ft/iter_2.pth')
    images = ImageSet(run / 'digits/val', IMAGES)
    pixels = images.read(range(IMAGES), (24, 24)).double() * 255
    prepared = (pixels - model.data_preprocessor.mean) / model.data_preprocessor.std
    loss, matrix = dense_hessian(model, prepared, torch.tensor(images.labels))
    assert found['loss'] == pytest.approx(loss, rel=1e-5)
    assert found['parameters'] == len(matrix) == sum(w.numel() for w in model.parameters())
    wanted = torch.linalg.eigvalsh(matrix)
    largest = wanted[wanted.abs().argmax()]
    assert found['eigenvalues'][0] == pytest.approx(largest.item(), rel=0.02)
    assert abs(found['trace'] - matrix.trace().item()) < 5 * found['trace_standard_error']
    losses = np.array(report.results['iter_2']['landscape']['losses'])
    assert losses[1, 1] == pytest.approx(loss, rel=1e-5)
    assert "The loss of iter_2 is the fine-tuned classifier's own" in unescape((tmp_path / 'index.html').read_text())


def test_analyze__numbers_over_the_steps_of_a_run(run, tmp_path):
    settings = Settings(only=['variance', 'landscape'], images=20, landscape_size=3)
    files = [str(run / f'ft/iter_{step}.pth') for step in (2, 1)]
    report = analyze(files, data=run / 'digits/val', out=tmp_path, settings=settings)
    numbers = {name: of['variance']['block:0'] for name, of in report.results.items()}
    page = unescape((tmp_path / 'index.html').read_text())
    assert f'feature variance over training: ft from {numbers["iter_1"]:.3g} to {numbers["iter_2"]:.3g}.' in page
    assert 'rise of the loss over training: ft from ' in page
    alone = analyze(files[:1], data=run / 'digits/val', out=tmp_path, settings=settings)
    assert alone.results['iter_2'] == report.results['iter_2']
    assert 'Over training' not in (tmp_path / 'index.html').read_text()


def test_analyze__classes_are_found_by_their_names(run, tmp_path):
    """A file whose outputs are in another order has the same loss; folders of other classes are refused."""
    checkpoint = torch.load(run / 'ft/iter_2.pth')
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    for part in ('weight', 'bias'):
        checkpoint['state_dict'][f'head.fc.{part}'] = checkpoint['state_dict'][f'head.fc.{part}'][order]
    checkpoint['meta']['dataset_meta'] = dict(classes=[str(number) for number in order.tolist()])
    torch.save(checkpoint, tmp_path / 'permuted.pth')
    files = [str(run / 'ft/iter_2.pth'), str(tmp_path / 'permuted.pth')]
    settings = Settings(only=['landscape'], images=20, landscape_size=1)
    report = analyze(files, data=run / 'digits/val', out=tmp_path / 'out', settings=settings)
    first, second = (results['landscape']['losses'][0][0] for results in report.results.values())
    assert first == pytest.approx(second, rel=1e-6)
    other = tmp_path / 'other'
    for folder, name in (('0', 'ant'), ('1', 'bee')):
        shutil.copytree(run / 'digits/val' / folder, other / name)
    report = analyze(files[:1], data=other, out=tmp_path / 'out', settings=settings)
    assert 'the class folders ant, bee, which are not the 10 classes of iter_2' in report.failed['iter_2']['landscape']


def test_analyze__other_heads_are_replaced_by_a_fitted_one(run, tmp_path):
    """A classifier with its linear layer on the cls token: the page says that its own head was not used."""
    checkpoint = torch.load(run / 'ft/iter_2.pth')
    for part in ('weight', 'bias'):
        checkpoint['state_dict'][f'backbone.ln1.{part}'] = checkpoint['state_dict'].pop(f'backbone.ln2.{part}')
    torch.save(checkpoint, tmp_path / 'cls.pth')
    settings = Settings(only=['landscape'], images=20, landscape_size=1)
    files = [str(run / 'ft/iter_2.pth'), str(tmp_path / 'cls.pth')]
    report = analyze(files, data=run / 'digits/val', out=tmp_path / 'out', settings=settings)
    assert [of['landscape']['head'] for of in report.results.values()] == ['own', 'fitted']
    page = unescape((tmp_path / 'out/index.html').read_text())
    assert 'The loss of cls is the cross entropy of a logistic regression' in page and 'Over training' not in page
    assert json.loads((tmp_path / 'out/report.json').read_text())['results']['cls']['landscape']['head'] == 'fitted'
