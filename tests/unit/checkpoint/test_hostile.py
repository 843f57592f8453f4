"""Hostile checkpoints are refused with a message, at a cost that their size bounds."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from helpers.hostile_files import (
    MIB,
    WEIGHTS,
    archive,
    call,
    cost_of,
    doubled,
    many,
    meta,
    name,
    new,
    number,
    numpy_dtype,
    old_format,
    storage,
    tensor,
    text,
)

from mkd_plugin.checkpoint.read import CheckpointError, read_checkpoint, weights_of
from mkd_plugin.checkpoint.scan import MAX_DEPTH

PRIME = 2**61 - 1  # Python's hash of an integer is its remainder
SET_OF_KEYS = b'(' + b''.join(number(PRIME * (index + 1)) + b'N' for index in range(4000)) + b'u'
NO_FIELDS = (number(3), text('<'), b'N', b'N', b'N', number(-1), number(-1), number(0))


def forged(index: int, value: bytes) -> bytes:
    """Push the state of a dtype with one entry changed."""
    return many(*NO_FIELDS[:index], value, *NO_FIELDS[index + 1 :])


BOMBS = {
    'a key of 2^26 values': b'\x80\x02}' + doubled(26) + b'Ns.',
    'the text of 2^24 values in a message': meta(call('builtins.getattr', doubled(24), text('x'))),
    'a value of 2^60 values': meta(doubled(60)),
    'a list of 2^60 values': meta(b']q\x00' + b''.join(b']q%ch%ch%c\x86a' % (i, i - 1, i - 1) for i in range(1, 60))),
    'a set of 2^20 values': meta(call('builtins.set', b']' + doubled(20) + b'a')),
    'keys of the same hash': meta(b'}' + SET_OF_KEYS),
    '100 GB of zeros': meta(call('builtins.bytearray', number(10**11))),
    'a tensor by its size': meta(call('torch.FloatTensor', number(10**11))),
    'a storage by its size': meta(call('torch.storage.UntypedStorage', number(10**11))),
    'an array by its size': meta(new('numpy.ndarray', many(number(10**11)))),
    'another encoding': meta(call('_codecs.encode', text('a' * 10000), text('idna'))),
    '2 GB of copies of a text': meta(
        many(text('x' * 10**6), b'q\x01', *[call('_codecs.encode', b'h\x01', text('latin1'))] * 2000)
    ),
    'levels without end': meta(b']' * 10**5 + b'a' * (10**5 - 1)),
    'a list in itself': meta(b']q\x00h\x00a'),
    'a dict in itself': meta(b'}q\x00' + text('me') + b'h\x00s'),
    'two million sets': meta(b'(' + b'\x8f' * 2 * 10**6 + b't'),
    'two million marks': meta(b'(' * 2 * 10**6),
    'a stack that is empty': b'\x80\x02s.',
    'a pickle without an end': b'\x80\x02}',
    'a memo that is empty': b'\x80\x02h\x07.',
    'hooks of a parameter': meta(
        call('torch._utils._rebuild_parameter', b'N', b'N', call('collections.OrderedDict') + text('a') + b'Ns')
    ),
    'methods replaced': meta(call('collections.OrderedDict') + b'}' + text('items') + b'Nsb'),
    'state of a class': meta(name('argparse.Namespace') + b'}b'),
    'a dtype with fields': meta(numpy_dtype(forged(4, b'}'))),
    'a dtype with names': meta(numpy_dtype(forged(3, many(text('x'))))),
    'a dtype with a subarray': meta(numpy_dtype(forged(2, many(numpy_dtype(), many(number(99)))))),
    'a dtype of another length': meta(numpy_dtype(forged(5, number(800)))),
    'a dtype with flags of objects': meta(numpy_dtype(forged(7, number(63)))),
    "numpy's own dtype, changed": meta(numpy_dtype(many(*NO_FIELDS), copied=0)),
    'a dtype of objects': meta(numpy_dtype(spec=text('O'))),
    'a dtype of a list': meta(numpy_dtype(spec=b']' + many(text('x'), text('O')) + b'a')),
    'a dtype of a tuple': meta(numpy_dtype(spec=many(text('f8'), many(number(100))))),
    'an array larger than its content': meta(
        call('numpy._core.multiarray._reconstruct', name('numpy.ndarray'), many(number(0)), text('b'))
        + many(
            number(1), many(number(10**6)), numpy_dtype(), b'\x89', call('_codecs.encode', text('x'), text('latin1'))
        )
        + b'b'
    ),
    'a number larger than its content': meta(
        call('numpy._core.multiarray.scalar', numpy_dtype(), call('_codecs.encode', text('x'), text('latin1')))
    ),
}


@pytest.mark.parametrize('content', BOMBS.values(), ids=BOMBS)
def test_read_checkpoint__bomb(tmp_path, content):
    """Each alone would take seconds, gigabytes or memory that is not its own."""
    with pytest.raises(CheckpointError, match=r'bomb\.pth (cannot be read|was refused)') as error:
        read_checkpoint(archive(tmp_path / 'bomb.pth', content))
    assert len(str(error.value)) < 700


ONE = dict(one=np.arange(4, dtype='f4').tobytes())
TENSORS = {
    'a storage that is not there': tensor(storage('two', 4), (4,), (1,)),
    'a storage larger than its record': tensor(storage('one', 64), (64,), (1,)),
    'more elements than its storage': tensor(storage('one', 4), (5,), (1,)),
    'an offset beyond its storage': tensor(storage('one', 4), (2,), (1,), offset=3),
    'a negative stride': tensor(storage('one', 4), (2,), (-1,), offset=1),
    'one element 10^12 times': tensor(storage('one', 4), (10**6, 10**6), (0, 0)),
    'overlapping rows': tensor(storage('one', 4), (10**9, 4), (0, 1)),
    'fewer strides than sizes': tensor(storage('one', 4), (2, 2), (1,)),
    'a storage of an unknown type': tensor(storage('one', 4, 'torch.OddStorage'), (4,), (1,)),
    'no storage': tensor(b'N', (4,), (1,)),
    'a thousand copies of 1 MB': many(*[tensor(storage('big', MIB // 4), (MIB // 4,), (1,))] * 1000),
}


@pytest.mark.parametrize('content', TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize('kind', ['read', 'mapped', 'script'])
def test_read_checkpoint__tensor_beyond_its_storage(tmp_path, content, kind):
    """Mapped from the file, these would be bytes of something else."""
    path = archive(tmp_path / 'file.pth', meta(content), {**ONE, 'big': bytes(MIB)})
    if kind == 'script':
        with zipfile.ZipFile(path, 'a') as file:
            file.writestr('file/constants.pkl', pickle.dumps(()))
    with pytest.raises(CheckpointError, match=r'file\.pth (cannot be read|was refused)'):
        read_checkpoint(path, lazy=kind == 'mapped')


@pytest.mark.parametrize(
    'content',
    [tensor(storage('one', 2**34), (2**34,), (1,)), tensor(storage('one', 1), (2**34,), (1,))],
    ids=['storage', 'tensor'],
)
def test_read_checkpoint__sizes_in_the_old_format(tmp_path, content):
    """There, torch would allocate what the pickle claims."""
    with pytest.raises(CheckpointError, match='storage|tensor'):
        read_checkpoint(old_format(tmp_path / 'file.pth', meta(content), bytes(100)))


def test_read_checkpoint__memo_of_an_archive(tmp_path):
    """Python's unpickler would allocate a memo of the stated length."""
    path = archive(tmp_path / 'file.pt', b'\x80\x02}r\xff\xff\xff\xff.')
    with zipfile.ZipFile(path, 'a') as file:
        file.writestr('file/constants.pkl', pickle.dumps(()))
    with pytest.raises(CheckpointError, match='a memo larger than the file'):
        read_checkpoint(path)


COSTLY = [
    'a key of 2^26 values',
    'the text of 2^24 values in a message',
    '2 GB of copies of a text',
    'two million sets',
]


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
@pytest.mark.parametrize('case', [*COSTLY, 'many records', 'many steps', 'many numbers', 'a long header'])
def test_read_checkpoint__refusal_costs_little(tmp_path, case):
    """At most 8 times the size of the file and 256 MB; ``cost_of`` ends a reader that hangs."""
    path = tmp_path / 'file.pth'
    if case == 'many records':
        names = [f'file/data/{index}'.encode() for index in range(130_000)]
        form = zipfile.structCentralDir  # of records of no bytes
        entries = [struct.pack(form, b'PK\1\2', *[0] * 11, len(each), *[0] * 6) + each for each in names]
        directory = b''.join(entries)
        path.write_bytes(
            b'PK\3\4' + directory + struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 65535, 65535, len(directory), 4, 0)
        )
    elif case == 'a long header':
        header = json.dumps(
            {f'{index:06}': dict(dtype='F32', shape=[0], data_offsets=[0, 0]) for index in range(300_000)}
        )
        path.write_bytes(len(header).to_bytes(8, 'little') + header.encode())
    else:
        steps = {
            'many steps': meta(b'(' + b'K\x01\x85' * 3 * 10**6 + b't'),
            'many numbers': meta(b'(' + b'N' * 10**7 + b't'),
        }
        archive(path, {**BOMBS, **steps}[case])
    told, seconds, growth = cost_of(lambda: read_checkpoint(path))
    assert told.startswith('CheckpointError') and str(path) in told, told[:500]
    print(f'{case}: {path.stat().st_size:,} bytes, {seconds:.2f} s, {growth / MIB:.0f} MB')
    assert growth < 8 * path.stat().st_size + 256 * MIB


@pytest.mark.parametrize('change', ['compressed', 'twice', 'comment', 'other case', 'version'])
def test_read_checkpoint__odd_archive(tmp_path, change):
    """Two readers could find different records in it, or torch would map compressed bytes as weights."""
    torch.save(WEIGHTS, tmp_path / 'file.pth')
    whole = zipfile.ZipFile(tmp_path / 'file.pth')
    method = zipfile.ZIP_DEFLATED if change == 'compressed' else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / 'odd.pth', 'w', method) as odd:
        warnings.simplefilter('ignore')  # zipfile's, about the same name twice
        for record in whole.namelist():
            odd.writestr(record, whole.read(record))
        if change == 'comment':
            odd.comment = b'hello'
        if change in ('twice', 'other case'):
            root = whole.namelist()[0].partition('/')[0]
            odd.writestr(f'{root}/data.pkl' if change == 'twice' else f'{root}/DATA.pkl', meta(b'N'))
        if change == 'version':
            odd.writestr('file/.data/version', bytes(200 * MIB), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r'odd\.pth cannot be read as a checkpoint'):
        read_checkpoint(tmp_path / 'odd.pth', lazy=True)


def lying_header(length: int | None = None, **entries) -> bytes:
    """Write a safetensors file of 16 bytes of tensors."""
    header = json.dumps(entries).encode()
    return (len(header) if length is None else length).to_bytes(8, 'little') + header + bytes(16)


def entry(begin: int, end: int, *shape: int) -> dict[str, object]:
    """Describe a tensor as the header of a safetensors file does."""
    return dict(dtype='F32', shape=shape, data_offsets=[begin, end])


HEADERS = {
    'overlapping': lying_header(a=entry(0, 16, 4), b=entry(0, 16, 4)),
    'beyond the file': lying_header(a=entry(0, 4 * 10**9, 10**9)),
    'another shape': lying_header(a=entry(0, 16, 5)),
    'negative': lying_header(a=entry(16, 0, -4)),
    'longer than the file': lying_header(10**18, a={}),
    'nested': (10**5).to_bytes(8, 'little') + b'{"a":' * 20000,
    'a huge shape': lying_header(a=entry(0, 0, 2**62, 2**62, 0)),
    'a gap': lying_header(a=entry(8, 12, 1)),
    'endless provenance': lying_header(a=entry(0, 16, 4), __metadata__=dict(mkd_plugin='[' * 10**5)),
}


@pytest.mark.parametrize('content', HEADERS.values(), ids=HEADERS)
def test_read_checkpoint__safetensors_that_lie(tmp_path, content):
    (tmp_path / 'file.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match=r'file\.safetensors cannot be read'):
        read_checkpoint(tmp_path / 'file.safetensors')


@pytest.mark.parametrize(
    ('index', 'message'),
    [
        ({'weight_map': {'a': 'loop'}}, 'not there'),
        ({'weight_map': {'a': '.'}}, 'outside|not there'),
        ({'weight_map': {'a': 'model.safetensors.index.json'}}, 'cannot be read'),
        ({'weight_map': {'a': 3}}, 'no weight_map'),
        ({'weight_map': ['a']}, 'no weight_map'),
        ({'weight_map': {}}, 'no weight_map'),
        ({}, 'no weight_map'),
        ({'weight_map': {'a': 'one.bin', 'b': 'again.bin'}}, 'one file twice'),
        ({'weight_map': {str(i): f'{i}.bin' for i in range(2000)}}, 'more than 1000 files'),
        ({'weight_map': {'a': 'zero'}}, 'not there'),
        ('[' * 10**5, 'cannot be read as JSON'),
        ('9' * 10**5, 'cannot be read as JSON'),
        (' ' * 17 * MIB, 'has more than'),
    ],
    ids=lambda value: str(value)[:40].strip(),
)
def test_read_checkpoint__index_that_leads_nowhere(tmp_path, index, message):
    """Among others a folder that leads to itself, and a device without an end."""
    (tmp_path / 'loop').symlink_to(tmp_path)
    (tmp_path / 'zero').symlink_to('/dev/zero')
    torch.save(WEIGHTS, tmp_path / 'one.bin')
    (tmp_path / 'again.bin').symlink_to(tmp_path / 'one.bin')
    (tmp_path / 'model.safetensors.index.json').write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_read_checkpoint__what_ordinary_checkpoints_hold(tmp_path):
    """Nothing of this may be taken for an attack."""
    shared = [0.9, 0.95]
    flat = torch.randn(100)
    weights = OrderedDict(a=flat[:60].view(6, 10), b=flat[60:], tied=flat[:60], t=torch.randn(3, 4).t())
    weights['expanded'] = torch.ones(1).expand(5)
    state = {i: dict(step=torch.tensor(1.0), exp_avg=torch.ones(4)) for i in range(3)}
    schedule = dict(
        milestones=Counter([3, 3, 8]), size=torch.Size([2, 3]), device=torch.device('cpu'), dtype=torch.half
    )
    checkpoint = OrderedDict(
        state_dict=weights,
        parameter=torch.nn.Parameter(torch.ones(3)),
        empty=torch.empty(0, 4),
        half=torch.ones(2, dtype=torch.bfloat16),
        complex=torch.ones(2, dtype=torch.complex64),
        optimizer=dict(state=state, param_groups=[dict(betas=shared), dict(betas=shared)]),
        param_schedulers=[schedule],
        history=list(range(100_000)) + [0.5] * 100_000,
        mixed=[*range(60), (1, 2), None, 70000, 2**40, -1],
        numbers={i: i for i in range(200)},
        names=set(map(str, range(50))),
        ids=set(range(200)),
        raw=b'\x00\xff' * 50,
        arrays=[np.arange(6.0).reshape(2, 3), np.array([True]), np.float64(2.5), np.int64(3), np.uint32(7)],
        deep=[[[[[[[[[[1]]]]]]]]]],
        nan=float('nan'),
        text='ä€' * 1000,
    )  # fmt: skip
    for legacy in (True, False):
        if not legacy:  # torch does not read such storages from its old format
            checkpoint['odd'] = torch.ones(2, dtype=torch.uint16)
        torch.save(checkpoint, tmp_path / 'file.pth', _use_new_zipfile_serialization=not legacy)
        found = read_checkpoint(tmp_path / 'file.pth')
        assert found.keys() == checkpoint.keys()
        for key in ('history', 'mixed', 'numbers', 'names', 'ids', 'raw', 'deep', 'text', 'param_schedulers'):
            assert found[key] == checkpoint[key]
        assert all(torch.equal(found['state_dict'][key], value) for key, value in checkpoint['state_dict'].items())
        assert all(np.array_equal(a, b) for a, b in zip(found['arrays'], checkpoint['arrays'], strict=True))
        assert found['parameter'].requires_grad


def test_weights_of__name_that_controls_the_terminal():
    for strange in ('a\x1b]0;title\x07', 'a' * 1000):
        with pytest.raises(CheckpointError, match=r"file: 'a(\\x1b|a+).* is no name of a tensor") as error:
            weights_of({strange: torch.ones(1)}, 'file')
        assert '\x1b' not in str(error.value) and len(str(error.value)) < 300


def test_read_checkpoint__escapes_what_it_quotes(tmp_path):
    with pytest.raises(CheckpointError, match=r'was refused: .*\(\\x1b') as error:
        read_checkpoint(archive(tmp_path / 'file.pth', b'\x80\x02c\x1b[31m\nx\n.'))
    assert '\x1b' not in str(error.value)


def test_read_checkpoint__a_hundred_levels_are_read_and_those_beyond_the_limit_refused(tmp_path):
    def nested(levels):
        return [nested(levels - 1)] if levels else 1

    for levels in (100, MAX_DEPTH):
        torch.save(dict(meta=nested(levels)), tmp_path / 'file.pth')
        assert read_checkpoint(tmp_path / 'file.pth') == dict(meta=nested(levels))
    torch.save(dict(meta=nested(MAX_DEPTH + 1)), tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=rf'file\.pth cannot be read .* or {MAX_DEPTH} levels'):
        read_checkpoint(tmp_path / 'file.pth')
