"""What converters certify, and what a file may claim about its network before one is built."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.checkpoint_networks import tiny
from torch import nn

from mkd_plugin.checkpoint import CheckpointError, load_backbone
from mkd_plugin.checkpoint.load import load_module
from mkd_plugin.interop.convert import convert_checkpoint
from mkd_plugin.interop.export import build_filled, export_weights, largest_error
from mkd_plugin.interop.inspect import describe_checkpoint
from mkd_plugin.interop.open_model import open_models
from mkd_plugin.interop.student import load_student
from mkd_plugin.models.vit import VisionTransformer

NAME = 'layers.1.attn.qkv.weight'


def save(path, network, change=None, **about):
    """Save a checkpoint as a run writes it, with one weight changed and other statements about the network."""
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    if change is not None:
        state[f'backbone.{NAME}'] = change(state[f'backbone.{NAME}'])
    stated = dict(version='0', backbone=network.options, pixel_mean=[1.0] * 3, pixel_std=[2.0] * 3, teachers=[])
    torch.save(dict(state_dict=state, meta=dict(mkd_plugin={**stated, **about})), path)
    return path


def with_value(value):
    """Return a change of one element."""
    return lambda tensor: tensor.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(value))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('target', ['timm', 'mkd'])
def test_convert_checkpoint__weight_that_is_not_finite(tmp_path, value, target):
    source = save(tmp_path / 'run.pth', tiny(), with_value(value))
    with pytest.raises(ValueError, match=rf"run\.pth: 1 weights hold NaN or infinity: \['{NAME}'\].*--allow-nonfinite"):
        convert_checkpoint(source, tmp_path / 'x.pth', target)
    assert list(tmp_path.iterdir()) == [source]
    done = convert_checkpoint(source, tmp_path / 'x.pth', target, allow_nonfinite=True)
    assert done.nonfinite == [NAME] and all(error is None for _, error in done.checks)
    assert (tmp_path / 'x.pth').is_file()


@pytest.mark.parametrize('flag', [True, False])
def test_convert__prints_equal_only_for_a_number_under_the_bound(tmp_path, capsys, monkeypatch, flag):
    from mkd_cli import convert

    monkeypatch.setenv('COLUMNS', '200')
    source = save(tmp_path / 'run.pth', tiny(), with_value(float('nan')) if flag else None)
    arguments = ['mkd', str(source), str(tmp_path / 'x.pth'), '--to', 'timm', *(['--allow-nonfinite'] if flag else [])]
    monkeypatch.setattr('sys.argv', arguments)
    assert convert.main() == 0
    told = ' '.join(capsys.readouterr().out.split())
    assert ('equal: at most 1e-04 is allowed' in told) == (not flag)
    assert (f'not finite: {NAME}' in told) == flag and ('(equal' in told) == (not flag)


OTHER = {
    'complex64': lambda tensor: tensor.to(torch.complex64),
    'int32': lambda tensor: tensor.to(torch.int32),
    'bool': lambda tensor: tensor > 0,
    'qint8': lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize('kind', OTHER)
@pytest.mark.filterwarnings('ignore::UserWarning')  # torch's, about the storages of quantised tensors
def test_weights__of_another_kind(tmp_path, kind):
    """A copy would drop imaginary parts, scales and fractions without a word."""
    network = tiny()
    source = save(tmp_path / 'run.pth', network, OTHER[kind])
    message = rf'run\.pth holds 1 weights that are no floating-point numbers: {NAME} is {kind}'
    for action in (
        lambda: convert_checkpoint(source, tmp_path / 'x.pth', 'timm'),
        lambda: load_backbone(network, source),
        lambda: open_models([str(source)], known={}, device='cpu'),
        lambda: load_student(source),
    ):
        with pytest.raises(CheckpointError, match=message):
            action()
    torch.save(dict(weight=OTHER[kind](torch.ones(3, 2)), bias=torch.ones(3)), tmp_path / 'module.pth')
    with pytest.raises(CheckpointError, match=f'weight is {kind}'):
        load_module(nn.Linear(2, 3), str(tmp_path / 'module.pth'))
    assert not (tmp_path / 'x.pth').exists()


def test_largest_error__nan_is_no_equality():
    network = tiny()
    foreign, weights, _ = export_weights(network.state_dict(), network.options, 'timm')
    theirs = build_filled(foreign, network.options, weights)
    for changed in (theirs, network):
        with torch.no_grad():
            next(p for name, p in changed.named_parameters() if name.endswith('qkv.weight'))[0, 0] = float('nan')
        assert not largest_error(foreign.library.run, theirs, network) <= 1e9


def test_largest_error__zeros_are_equal():
    network = tiny()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    foreign, weights, _ = export_weights(network.state_dict(), network.options, 'timm')
    assert largest_error(foreign.library.run, build_filled(foreign, network.options, weights), network) == 0


ARCH = tiny().options['arch']
CLAIMS = {
    'width of 51 GB': dict(arch={**ARCH, 'width': 2**15}),
    'a billion blocks': dict(arch={**ARCH, 'depth': 10**9}),
    'a hidden width of 10^9': dict(arch={**ARCH, 'mlp_ratio': 2.0**24}),
    'a huge image': dict(img_size=2**19),
    'a huge image without positions': dict(img_size=[2**19, 2**19], position='none'),
    'another table': dict(img_size=[64, 32]),
    'small patches': dict(patch_size=1),
    'many channels': dict(in_channels=10**9),
    'many registers': dict(num_registers=10**12),
    'a wide projection': dict(projection=10**12),
    'a relative bias': dict(relative_position='per_block'),
    'no patches': dict(patch_size=0),
    'heads without end': dict(arch={**ARCH, 'num_heads': 10**12}),
    'heads that do not divide': dict(arch={**ARCH, 'num_heads': 7}),
    'half a block': dict(arch={**ARCH, 'depth': 2.0}),
    'more of an arch': dict(arch={**ARCH, 'x': 1}),
    'no heads': dict(arch={**ARCH, 'num_heads': 0}),
    'a word for the size': dict(img_size='large'),
    'a name for the network': dict(arch='h'),
    'a list for the network': dict(arch=[1, 2]),
    'three sides': dict(img_size=[32, 32, 32]),
    'an option that does not exist': dict(evil=1),
    'a list for the activation': dict(activation=['gelu']),
    'an unknown position': dict(position='x'),
    'a text for the norm': dict(norm_eps='x'),
    'another norm': dict(pre_norm=True),
    'a text for the width': dict(arch={**ARCH, 'width': '\x1b[31m'}),
}


@pytest.mark.parametrize('claim', CLAIMS.values(), ids=CLAIMS)
def test_claims__are_compared_before_a_network_is_built(tmp_path, monkeypatch, claim):
    """Building any of these would take memory, time, or raise an error of another kind."""
    network = tiny()
    source = save(tmp_path / 'run.pth', network, backbone={**network.options, **claim})
    monkeypatch.setattr(VisionTransformer, '__init__', lambda self, **options: pytest.fail('a network was built'))
    for action in (
        lambda: load_student(source),
        lambda: convert_checkpoint(source, tmp_path / 'x.pth', 'timm'),
        lambda: open_models([str(source)], known={}, device='cpu'),
    ):
        with pytest.raises(CheckpointError, match=r'run\.pth') as error:
            action()
        assert '\x1b' not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    'about', [dict(pixel_mean='abc'), dict(pixel_std=None), dict(pixel_mean=[1, {}]), dict(teachers=5)]
)
def test_claims__of_other_types(tmp_path, about):
    source = save(tmp_path / 'run.pth', tiny(), **about)
    for action in (
        lambda: load_student(source, part='boot'),
        lambda: open_models([f'{source}#boot'], known={}, device='cpu'),
    ):
        with pytest.raises(ValueError, match=r'run\.pth'):
            action()


SHAPES = {
    'patches of two dimensions': {'patch_embed.projection.weight': torch.ones(48, 192)},
    'an MLP of one dimension': {'layers.0.ffn.layers.0.0.weight': torch.ones(192)},
    'no image': {'patch_embed.projection.weight': torch.ones(48, 3, 0, 0)},
    'a billion blocks': {'layers.999999999.ln1.weight': torch.ones(48)},
    'nine thousand blocks': {'layers.9000.ln1.weight': torch.ones(48)},
    'digits without end': {f'layers.{"9" * 400}.ln1.weight': torch.ones(48)},
    'a table of one dimension': {'pos_embed': torch.ones(17)},
    'a table of four dimensions': {'pos_embed': torch.ones(1, 17, 1, 48)},
    'an empty table': {'pos_embed': torch.ones(1, 0, 48)},
    'a table of one': {'pos_embed': torch.ones(1, 1, 48)},
}


NO_BLOCKS = ('a billion blocks', 'digits without end')  # tensors of other names, as a file may have them


@pytest.mark.parametrize('shape', SHAPES)
def test_open_models__shapes_of_no_network(tmp_path, shape):
    network = tiny()
    torch.save({**network.state_dict(), **SHAPES[shape]}, tmp_path / 'file.pth')
    for action in (
        lambda: open_models([str(tmp_path / 'file.pth')], known=dict(num_heads=4), device='cpu'),
        lambda: convert_checkpoint(tmp_path / 'file.pth', tmp_path / 'x.pth', 'timm', options=dict(num_heads=4)),
        lambda: load_backbone(network, tmp_path / 'file.pth'),
    ):
        with nullcontext() if shape in NO_BLOCKS else pytest.raises(ValueError, match=r'file\.pth'):
            action()
    assert describe_checkpoint(tmp_path / 'file.pth')['tensors'] >= 20


def test_find_networks__thousands_in_a_file(tmp_path):
    """Each would be compared with all names."""
    names = {f'{index}.{name}': torch.ones(1) for index in range(200) for name in tiny().state_dict()}
    torch.save(names, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=r'file\.pth: It holds more than 100 networks'):
        load_backbone(tiny(), tmp_path / 'file.pth')
