"""mkd features: one array for each layer and pooling, in the order of the names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.labelled_files import write_images, write_student
from safetensors.numpy import load_file

from mkd_cli import features
from mkd_plugin.evaluation import Feature, FeatureStore, Preprocessing, open_images
from mkd_plugin.evaluation import features as evaluation
from mkd_plugin.interop.open_model import open_models


def test_features__are_those_of_the_evaluation(tmp_path, capsys):
    folder, model = write_images(tmp_path, 'images'), write_student(tmp_path, 'a.pth')
    out = tmp_path / 'new' / 'features.npz'
    arguments = [str(model), str(folder), '--out', str(out), '--batch-size', '5', '--resize', '16']
    assert features.main(arguments) == 0
    assert '12 images' in capsys.readouterr().out
    found = np.load(out)
    assert set(found.files) == {'block:-1_cls', 'block:-1_mean', 'names', 'labels', 'classes'}
    assert (
        found['classes'].tolist() == ['ant', 'bee', 'cat'] and found['labels'].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    assert found['names'][4] == 'bee/0.png'
    (subject,) = open_models([str(model)], known={}, device='cpu')
    images, wanted = open_images(folder, Preprocessing((16, 16), 16)), Feature('block:-1', 'mean')
    stored = FeatureStore(tmp_path / 'cache').features(subject, images, [wanted])
    np.testing.assert_allclose(found['block:-1_mean'], stored.values[wanted].numpy(), rtol=1e-5, atol=1e-6)


def test_features__the_three_kinds_of_files_hold_the_same(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    folder, model = write_images(tmp_path, 'images'), write_student(tmp_path, 'a.pth')
    for kind in ('npz', 'parquet', 'safetensors'):
        out = ['--out', str(tmp_path / f'features.{kind}'), '--tap', 'block:0', '--pool', 'none,mean']
        assert features.main([str(model), str(folder), *out]) == 0
    arrays = np.load(tmp_path / 'features.npz')
    table = parquet.read_table(tmp_path / 'features.parquet')
    tensors = load_file(tmp_path / 'features.safetensors')
    shape = json.loads(table.schema.metadata[b'shapes'])['block:0_none']
    assert arrays['block:0_none'].shape == (12, *shape) and len(shape) == 2
    for name in ('block:0_none', 'block:0_mean'):
        np.testing.assert_array_equal(tensors[name], arrays[name])
        np.testing.assert_array_equal(np.stack(table[name].to_numpy()), arrays[name].reshape(12, -1))
    assert table['name'].to_pylist() == arrays['names'].tolist()
    assert not list(tmp_path.glob('*.partial')) and not list(tmp_path.glob('.*'))


def test_features__of_any_folder_and_after_an_interruption(tmp_path, capsys, monkeypatch):
    """Images beside class folders have no labels; what was computed is not computed again."""
    folder, model = write_images(tmp_path, 'images'), write_student(tmp_path, 'a.pth')
    (folder / 'ant' / '0.png').rename(folder / 'loose.png')
    arguments = [str(model), str(folder), '--out', str(tmp_path / 'f.npz'), '--batch-size', '1']
    calls = []

    def counted(*given):
        calls.append(len(given[1]))
        if len(calls) == 10:
            raise KeyboardInterrupt
        return compute(*given)

    compute = evaluation.compute
    monkeypatch.setattr(evaluation, 'compute', counted)
    assert features.main(arguments) == 130
    assert features.main(arguments) == 0
    assert calls == [1] * 14 and set(np.load(tmp_path / 'f.npz')['labels'].tolist()) == {0}


def test_features__wants_a_known_kind_of_file(tmp_path, capsys):
    assert features.main(['a.pth', 'images', '--out', 'features.txt']) == 2
    wanted = 'error: --out features.txt: give a file that ends in .npz, .parquet, .safetensors.\n'
    assert capsys.readouterr().err == wanted
