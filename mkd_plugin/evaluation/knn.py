"""Weighted k-nearest-neighbour classification of frozen features.

Not scikit-learn's classifier: that needs one search per k, runs on the CPU only and is slower there (see docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.analysis.streaming import check_finite

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
CHUNK = 2**25  # similarities held at a time: 128 MiB in float32


def knn_predict(
    train_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, *, ks: Sequence[int] = KS, temperature: float = TEMPERATURE
) -> dict[int, Tensor]:
    """Classify by a weighted vote of the k most similar training images; return k → predicted ids, (M,), on the CPU.

    A neighbour's vote has the weight exp(cosine similarity / temperature), as in Wu et al. (2018) and DINO. One search
    serves all k, on the device of ``train_ND``. Ties between classes go to the smaller id; which of several equally similar
    images is the k-th neighbour is undefined. Raises ValueError if a k is not in 1 … N, or features are not finite.
    """
    images = len(train_ND)
    wrong = [k for k in ks if not 1 <= k <= images]
    if wrong or not ks:
        raise ValueError(
            f'k={wrong}: with {images} training images k can be 1 … {images}. Give smaller numbers, or more images.'
        )
    check_finite(train_ND, 'training features')
    check_finite(queries_MD, 'features of queries')
    device = train_ND.device
    keys_DN = F.normalize(train_ND, dim=1).T
    labels_N = labels_N.to(device)
    num_classes = int(labels_N.max()) + 1
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    for chunk_QD in torch.split(queries_MD, max(1, CHUNK // images)):
        similarity_QN = F.normalize(chunk_QD.to(device), dim=1) @ keys_DN
        similarity_QK, nearest_QK = similarity_QN.topk(max(ks), dim=1)
        # subtract the maximum, so that no weight overflows
        weights_QK = ((similarity_QK - similarity_QK[:, :1]) / temperature).exp()
        classes_QK = labels_N[nearest_QK]
        for k in ks:
            votes_QC = weights_QK.new_zeros(len(chunk_QD), num_classes)
            votes_QC.scatter_add_(1, classes_QK[:, :k], weights_QK[:, :k])
            predicted[k].append(votes_QC.argmax(dim=1).cpu())
    return {k: torch.cat(parts) for k, parts in predicted.items()}


def knn_accuracy(
    train_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, targets_M: Tensor, *, ks: Sequence[int] = KS
) -> dict[int, float]:
    """Return the top-1 accuracy in per cent for each k; see :func:`knn_predict`."""
    predicted = knn_predict(train_ND, labels_N, queries_MD, ks=ks)
    return {k: 100 * (ids_M == targets_M.cpu()).double().mean().item() for k, ids_M in predicted.items()}
