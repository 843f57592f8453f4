"""mkd features: one array for each layer and pooling, in the order of the names."""

from __future__ import annotations

import numpy as np
from helpers.labelled_files import write_images, write_student

from mkd_cli import features
from mkd_plugin.evaluation import Feature, FeatureStore, Preprocessing, open_images
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


def test_features__wants_an_npz_file(tmp_path, capsys):
    assert features.main(['a.pth', 'images', '--out', 'features.txt']) == 2
    assert capsys.readouterr().err == 'error: --out features.txt: give a file that ends in .npz.\n'
