"""Files for fuzzing, made by the libraries that make them for users, and pickles that would run code."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from torch import nn

from mkd_plugin.checkpoint.write import write_weights
from mkd_plugin.models.students import VisibleViT

VIT = dict(arch=dict(width=16, depth=1, num_heads=2), img_size=16, patch_size=4)


def student() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and provenance of a tiny network."""
    torch.manual_seed(0)
    network = VisibleViT(**VIT)
    provenance = dict(backbone=network.options, pixel_mean=[127.5] * 3, pixel_std=[60.0] * 3, teachers=[])
    return {f'backbone.{name}': value for name, value in network.state_dict().items()}, provenance


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """A checkpoint of every kind by its name: files, and folders of Hugging Face."""
    folder.mkdir(exist_ok=True)
    weights, provenance = student()
    history = HistoryBuffer()
    history.update(0.5)
    whole = dict(
        state_dict=weights,
        optimizer=dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1, params=[0])]),
        message_hub=dict(log_scalars=dict(loss=history)),
        meta=dict(mkd_plugin=provenance, epoch=1, iter=6, cfg='a = 1\n'),
    )
    found = {name: folder / name for name in ('zip.pth', 'legacy.pth', 'ours.safetensors', 'script.pt')}
    torch.save(whole, found['zip.pth'])
    torch.save(whole, found['legacy.pth'], _use_new_zipfile_serialization=False)
    write_weights(found['ours.safetensors'], weights, provenance)
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8))), found['script.pt'])
    return found


def write_hugging_face(folder: Path) -> Path:
    """A sharded folder of transformers."""
    from transformers import ViTConfig, ViTModel

    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    network = ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes), add_pooling_layer=False)
    network.save_pretrained(folder, max_shard_size='8KB')
    return folder


# Calls that leave a trace if anything makes them; CANARY stands for the path of a file that is not there.
CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    ('os', 'mkdir', ('CANARY',)),
    ('posix', 'system', ('touch CANARY',)),
    ('pathlib', 'Path.touch', ('CANARY',)),
    ('builtins', 'exec', ("open('CANARY', 'w')",)),
    ('builtins', 'eval', ("open('CANARY', 'w')",)),
    ('builtins', 'open', ('CANARY', 'w')),
    ('builtins', 'getattr', ('CANARY', 'join')),
    ('subprocess', 'Popen', (['touch', 'CANARY'],)),
    ('shutil', 'copyfile', ('/dev/null', 'CANARY')),
    ('numpy', 'memmap', ('CANARY', 'uint8', 'w+', 0, (1,))),
    ('torch', 'save', (0, 'CANARY')),
    ('mmengine.fileio', 'dump', ({}, 'CANARY', 'json')),
    ('operator', 'attrgetter', ('__class__',)),
    ('torch.hub', 'download_url_to_file', ('file:///dev/null', 'CANARY')),
    ('torch', 'Tensor.tofile', ('CANARY',)),
    ('logging', 'FileHandler', ('CANARY',)),
]
# Opcodes that make readers do much for few bytes.
BOMBS: dict[str, bytes] = {
    'memo of two gigabytes': b'Nr\xff\xff\xff\x0f0',
    'pairs of pairs': b']' + b'2\x86' * 200_000 + b'0',
    'list in list': b']' * 100_000 + b'a' * 99_999 + b'0',
    'long text': b'\x8d' + (2**40).to_bytes(8, 'little'),
    'long integer': b'\x8b' + (2**31 - 1).to_bytes(4, 'little'),
    'decimal integer': b'L' + b'9' * 400_000 + b'L\n0',
    'bytearray': b'\x96' + (2**38).to_bytes(8, 'little'),
    'many marks': b'(' * 1_000_000 + b't' * 1_000_000 + b'0',
    'doubled text': b'X\x04\0\0\0abcd' + b'2\x86' * 60 + b'0',
    'no end': b'',
    'tensor of many elements': b'ctorch\nzeros\n\x8a\x05\x00\x00\x00\x00\x10\x85R0',
    'doubled dict keys': b'}'
    + b''.join(b'(K\x01\x8a\x04' + n.to_bytes(4, 'little') + b'u' for n in range(20_000))
    + b'0',
}


def call(module: str, name: str, arguments: tuple[Any, ...], canary: Path, *, how: str) -> bytes:
    """Opcodes that call a function and drop the result, in one of the ways that pickle has."""
    filled = [_fill(argument, str(canary)) for argument in arguments]
    pushed = b''.join(pickle.dumps(argument, protocol=2)[2:-1] for argument in filled)
    text = f'{module}\n{name}\n'.encode()
    if how == 'inst':
        return b'(' + pushed + b'i' + text + b'0'
    if how == 'obj':
        return b'(c' + text + pushed + b'o0'
    function = b'c' + text
    if how == 'stack_global':
        function = b''.join(b'X' + len(part).to_bytes(4, 'little') + part.encode() for part in (module, name)) + b'\x93'
    return function + b'(' + pushed + b't' + (b'\x81' if how == 'newobj' else b'R') + b'0'


def _fill(value: Any, canary: str) -> Any:
    if isinstance(value, list):
        return [_fill(part, canary) for part in value]
    return value.replace('CANARY', canary) if isinstance(value, str) else value


WAYS = st.sampled_from(['reduce', 'stack_global', 'newobj', 'obj', 'inst'])


def boundaries(pickled: bytes) -> list[int]:
    """Offsets between two opcodes of a pickle, after those that begin it."""
    return [place for _, _, place in pickletools.genops(pickled) if place is not None and place > 2]


def insert_opcodes(pickled: bytes, opcodes: bytes, number: int) -> bytes:
    """Insert opcodes that leave the stack as it was at one of a pickle's boundaries."""
    places = boundaries(pickled)
    place = places[number % len(places)]
    return pickled[:place] + opcodes + pickled[place:]


def change_pickle(path: Path, opcodes: bytes, number: int) -> bytes:
    """Content of a file of ``torch.save`` or ``torch.jit.save`` with more opcodes, and with right checksums."""
    whole = path.read_bytes()
    if not zipfile.is_zipfile(path):  # the old format: the fourth pickle is the checkpoint
        file = io.BytesIO(whole)
        for _ in range(3):
            pickle.load(file)  # a number, a version, sizes: written by the test itself
        start = file.tell()
        end = start + _length(whole[start:])
        return whole[:start] + insert_opcodes(whole[start:end], opcodes, number) + whole[end:]
    output = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(output, 'w') as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith('/data.pkl'):
                content = insert_opcodes(content, opcodes, number)
            target.writestr(entry.filename, content)
    return output.getvalue()


def _length(pickled: bytes) -> int:
    """Bytes of the first of several pickles."""
    return max(place for _, _, place in pickletools.genops(pickled) if place is not None) + 1


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a nested value, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
