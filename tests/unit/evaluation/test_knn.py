from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mkd_plugin.evaluation import knn
from mkd_plugin.evaluation.knn import knn_accuracy, knn_predict


def clusters(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes, float64."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(7, (images,), generator=generator)
    centres = torch.randn(7, 12, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return centres[labels_N] + 1.5 * torch.randn(images, 12, generator=generator, dtype=torch.float64), labels_N


@pytest.mark.parametrize('entries', [2**25, 1000])  # all at once; three queries at once
def test_knn_predict__equals_scikit_learn(entries, monkeypatch):
    monkeypatch.setattr(knn, 'CHUNK', entries)
    (train_ND, labels_N), (queries_MD, _) = clusters(300, 0), clusters(90, 1)
    found = knn_predict(train_ND, labels_N, queries_MD, ks=(1, 10, 20, 100, 200))
    for k, ids_M in found.items():
        other = KNeighborsClassifier(k, metric='cosine', weights=lambda distance: np.exp((1 - distance) / 0.07))
        assert ids_M.tolist() == other.fit(train_ND.numpy(), labels_N.numpy()).predict(queries_MD.numpy()).tolist()


def test_knn_predict__weights_by_hand():
    """Two neighbours at 60° against one at θ: the one wins if exp(cos θ / 0.07) > 2 exp(0.5 / 0.07)."""
    edge = math.acos(0.5 + 0.07 * math.log(2))
    for angle, wanted in ((edge - 0.01, 1), (edge + 0.01, 0)):
        angles = torch.tensor([math.pi / 3, -math.pi / 3, angle, math.pi], dtype=torch.float64)
        train_ND = 5 * torch.stack([angles.cos(), angles.sin()], dim=1)
        query = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
        assert knn_predict(train_ND, torch.tensor([0, 0, 1, 1]), query, ks=(3,))[3].tolist() == [wanted]


def test_knn_accuracy__per_cent():
    train_ND, labels_N = torch.eye(4), torch.arange(4)
    assert knn_accuracy(train_ND, labels_N, train_ND, torch.tensor([0, 1, 2, 0]), ks=(1,)) == {1: 75.0}


def test_knn_predict__small_temperature_does_not_overflow():
    found = knn_predict(torch.eye(3), torch.arange(3), torch.eye(3), ks=(2,), temperature=1e-3)
    assert found[2].tolist() == [0, 1, 2]


def test_knn_predict__bad_input():
    with pytest.raises(ValueError, match=r'k=\[5\]: with 4 training images'):
        knn_predict(torch.eye(4), torch.arange(4), torch.eye(4), ks=(2, 5))
    with pytest.raises(ValueError, match='training features: 1 of 16 values'):
        knn_predict(
            torch.eye(4).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan)),
            torch.arange(4),
            torch.eye(4),
            ks=(1,),
        )
