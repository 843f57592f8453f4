"""Speed of a step: nothing unused is computed, nothing synchronises with the device, nothing is compiled twice."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.networks import ARCH, DBOT, hidden_masks
from mmpretrain.structures import DataSample
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from mkd_plugin.models.students import MaskTokenViT, VisibleViT
from mkd_plugin.structures import Region, TokenMask

MIM = dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=5)
MOMENTUM = dict(type='MomentumTeacher', momentum=0.9)
FEATURE = DBOT['objectives']['feature']
LINEAR = dict(type='LinearHead')
SYMMETRIC = dict(type='MaskTokenViT', arch=ARCH, img_size=16, patch_size=4)
RELATION = dict(
    teacher='mim', tap='relation:-1', student='relation:-1', loss=dict(type='SmoothL1Loss'), region='visible+cls'
)
HYBRID = dict(
    masking=dict(type='RedundancyMasking', teacher='mim', drop=0.3, at=(0, 1, 2)),
    teachers=dict(semantic=dict(MIM, seed=6), mim=MIM),
    objectives=dict(
        feature=dict(FEATURE, teacher='semantic', head=LINEAR, region='visible+cls'), relation=RELATION
    ),
)  # fmt: skip
METHODS = {
    'dbot': {},
    'dbot, vit teacher': dict(teachers=dict(boot=MIM)),
    'dbot, momentum': dict(teachers=dict(boot=MOMENTUM)),
    'symmetric': dict(backbone=SYMMETRIC, objectives=dict(feature=dict(FEATURE, head=LINEAR, region='hidden'))),
    'mae': dict(base='mae'),
    'dmae': dict(
        teachers=dict(boot=dict(MIM, sees='visible')),
        objectives=dict(feature=dict(FEATURE, tap='block:1', student='block:1', head=LINEAR, region='visible+cls')),
    ),
    'hybrid': HYBRID,
    'no masking': dict(
        masking=dict(type='NoMasking'), objectives=dict(feature=dict(FEATURE, head=LINEAR, region='all+cls'))
    ),
}
PAIRS = list(itertools.combinations_with_replacement(['hidden', 'hidden+cls', 'visible', 'visible+cls', 'all+cls'], 2))


def objective(region, **changes):
    """Build dBOT's objective for another region, with a linear head if the student sees it."""
    return dict(FEATURE, **({'head': LINEAR} if region.startswith('visible') else {}), region=region, **changes)


def rows_of_last_blocks(model):
    """Record, per teacher, the number of rows that its deepest block computes in the next step."""
    rows = {}
    for name, teacher in model.teachers.items():
        last = teacher.network.layers[-1]
        last.register_forward_hook(lambda _, args, result, name=name: rows.update({name: result[0].shape[1]}))
    return rows


# --- Nothing unused is computed


@pytest.mark.parametrize('taps', [('block:-1',), ('output',), ('output', 'block:-1'), ('block:0',)])
@pytest.mark.parametrize('network', [VisibleViT, MaskTokenViT])
@pytest.mark.parametrize('region', ['hidden', 'hidden+cls', 'visible', 'visible+cls', 'all', 'all+cls'])
def test_forward__a_region_has_the_values_of_the_whole(network, region, taps, images, vit_options):
    network, mask = network(**vit_options).double().eval(), TokenMask.from_hidden(hidden_masks(), 4)
    asked = Region.parse(region).tokens(mask)
    found, wanted = network(images, taps=taps, region=asked), network(images, taps=taps)
    for tap in taps:
        torch.testing.assert_close(found.select(tap, asked), wanted.select(tap, asked), rtol=1e-12, atol=1e-12)
        within = Region(asked.patches, False).tokens(mask)  # the same patches without cls
        torch.testing.assert_close(found.select(tap, within), wanted.select(tap, within), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'taps',
    [('input:0',), ('relation:-1',), ('block:-1', 'relation:-1'), ('block:0', 'output'), ('block:1', 'relation:2')],
)
def test_forward__taps_that_need_every_token_get_them(taps, images, vit_options):
    """The region is ignored for relations, embeddings, and taps at several depths."""
    network, mask = VisibleViT(**vit_options).double().eval(), TokenMask.from_hidden(hidden_masks(), 4)
    found = network(images, taps=taps, region=Region('hidden', True).tokens(mask))
    wanted = network(images, taps=taps)
    for tap in taps:
        assert torch.equal(found.tokens(tap), wanted.tokens(tap))


def test_forward__another_region_than_was_computed(images, vit_options):
    mask = TokenMask.from_hidden(hidden_masks(), 4)
    features = VisibleViT(**vit_options).double()(images, region=Region('hidden', False).tokens(mask))
    for region in (Region('visible', False), Region('all', False), Region('hidden', True)):
        with pytest.raises(AssertionError, match='the requested region was not computed'):
            features.select('output', region.tokens(mask))
    with pytest.raises(AssertionError, match='only the features of a region'):
        features.tokens('output')


@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_loss__is_the_same_if_teachers_compute_every_token(build_distiller, images, method, monkeypatch):
    model = build_distiller(**method)
    torch.manual_seed(1)
    skipped = model.loss(images)
    for teacher in model.teachers.values():
        forward = teacher.forward
        monkeypatch.setattr(teacher, 'forward', lambda *args, forward=forward: forward(*args[:3]))
    torch.manual_seed(1)
    whole = model.loss(images)
    assert skipped.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(skipped[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ('method', 'rows'),
    [
        ({}, dict(boot=13)),  # 12 hidden patches and cls of 17 tokens
        (dict(teachers=dict(boot=MIM)), dict(boot=13)),
        (dict(teachers=dict(boot=MOMENTUM)), dict(boot=13)),
        (dict(teachers=dict(boot=dict(type='BootstrappedTeacher', start=MIM))), dict()),  # `first` runs, see below
        (dict(objectives=dict(feature=objective('hidden'))), dict(boot=12)),
        (dict(objectives=dict(feature=objective('visible+cls'))), dict(boot=5)),
        (HYBRID, dict(semantic=None, mim=None)),
    ],
)
def test_loss__last_block_of_a_teacher_computes_what_is_read(build_distiller, images, method, rows):
    model = build_distiller(**method)
    found = rows_of_last_blocks(model)
    model.loss(images)
    if 'mim' in rows:  # only queries and keys of the last block are read, so it never runs
        kept = round(16 * 0.7**3)
        rows = dict(semantic=kept + 1)
    assert found == rows


def test_loss__last_block_of_teacher_0_computes_what_is_read(build_distiller, images):
    model = build_distiller(teachers=dict(boot=dict(type='BootstrappedTeacher', start=MIM)))
    rows = []
    model.teachers['boot'].first.network.layers[-1].register_forward_hook(
        lambda *call: rows.append(call[2][0].shape[1])
    )
    model.loss(images)
    assert rows == [13]


@pytest.mark.parametrize(('first', 'second'), PAIRS, ids='/'.join)
def test_loss__objectives_of_several_regions_share_a_teacher(build_distiller, images, first, second):
    """The teacher computes all their taps once, and each objective has the same loss as alone."""
    objectives = dict(first=objective(first), second=objective(second))
    model = build_distiller(objectives=objectives)
    found = rows_of_last_blocks(model)
    samples = [DataSample().set_mask(row) for row in hidden_masks()]
    both = model.loss(images, samples)
    regions = {first.partition('+')[0], second.partition('+')[0]}
    patches = dict(hidden=12, visible=4).get(regions.pop(), 16) if len(regions) == 1 else 16
    assert found['boot'] == (17 if patches == 16 else patches + ('cls' in first + second))
    for name, cfg in objectives.items():
        alone = build_distiller(objectives={name: cfg})
        state = model.state_dict()
        alone.load_state_dict({key: state[key] for key in alone.state_dict()}, strict=True)
        wanted = alone.loss(images, samples)[f'loss_{name}']
        torch.testing.assert_close(both[f'loss_{name}'], wanted, rtol=1e-12, atol=1e-12)


# --- Nothing synchronises with the device


@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_train_step__reads_nothing_back_from_the_device(build_distiller, method):
    """Tensors on the meta device have no values, so reading one (item, bool, tolist, nonzero, copy) raises."""
    model = build_distiller(**method).train().to('meta')
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    results = model.loss(torch.empty(3, 3, 16, 16, dtype=torch.float64, device='meta'))
    total, _ = model.parse_losses(results)
    total.backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in model.backbone.layers[0].parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):
        total.item()


# --- Nothing is compiled twice


@pytest.mark.parametrize('method', ['dbot', 'symmetric', 'dmae', 'hybrid'])
def test_compile__student_and_teachers_are_one_graph_each(build_distiller, method):
    """``fullgraph`` raises at a graph break; several masks, in training mode with drop path."""
    torch._dynamo.reset()
    counters.clear()
    overrides = dict(METHODS[method])
    overrides['backbone'] = dict(overrides.get('backbone', DBOT['backbone']), drop_path_rate=0.2)
    model = build_distiller(**overrides).train()
    compiled = {'student': CompileCounter()}
    model.backbone.compile(backend=compiled['student'], fullgraph=True)
    for name, teacher in model.teachers.items():
        compiled[name] = CompileCounter()
        teacher.compile(backend=compiled[name], fullgraph=True)
    for _ in range(4):
        images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
        results = model.loss(images)
        sum(value for name, value in results.items() if name.startswith('loss_')).backward()
    assert {name: backend.frame_count for name, backend in compiled.items()} == dict.fromkeys(compiled, 1)
    assert not counters['graph_break']


def test_compile__a_promotion_compiles_the_teacher_once_more(build_distiller):
    torch._dynamo.reset()
    model, backend = build_distiller().train(), CompileCounter()
    model.teachers['boot'].compile(backend=backend, fullgraph=True)
    for promote in (False, False, True, False):
        if promote:
            model.teachers['boot'].promote(model.backbone)
        model.loss(torch.randn(3, 3, 16, 16, dtype=torch.float64))
    assert 1 <= backend.frame_count <= 2
