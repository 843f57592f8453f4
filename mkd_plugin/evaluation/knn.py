"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.analysis.checks import check_finite

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
ENTRIES = 2**25  # similarities held at once: 128 MiB


def knn_predict(
    train_ND: Tensor,
    labels_N: Tensor,
    queries_MD: Tensor,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, Tensor]:
    """The class with the greatest sum of weights exp(cosine / temperature) among the k most similar images, for each k.

    The protocol of Wu et al. (2018), as DINO's evaluation. Of equal sums the smaller id wins; which of equally similar
    images count at the edge is open.

    Args:
        train_ND: Features whose labels are known; their device computes.
        labels_N: Class ids from 0.
        queries_MD: Features to classify, of the same dtype.
        ks: Numbers of neighbours.
        temperature: 0.07.

    Returns:
        k → ids, (M,).

    Raises:
        ValueError: k is not within 1 … N, or features are not finite.
    """
    check_ks(ks, len(train_ND))
    check_finite(train_ND, 'training features')
    check_finite(queries_MD, 'features of queries')
    device = train_ND.device
    keys_DN = F.normalize(train_ND, dim=1).T
    labels_N = labels_N.to(device)
    num_classes = int(labels_N.max()) + 1
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for chunk_QD in torch.split(queries_MD, max(1, ENTRIES // len(train_ND))):
        similar_QN = F.normalize(chunk_QD.to(device), dim=1) @ keys_DN
        similar_QK, nearest_QK = similar_QN.topk(max(ks), dim=1)
        # minus the greatest, which changes no order, so that no weight overflows
        weights_QK = ((similar_QK - similar_QK[:, :1]) / temperature).exp()
        classes_QK = labels_N[nearest_QK]
        for k in ks:
            votes_QC = weights_QK.new_zeros(len(chunk_QD), num_classes)
            votes_QC.scatter_add_(1, classes_QK[:, :k], weights_QK[:, :k])
            found[k].append(votes_QC.argmax(dim=1).cpu())
    return {k: torch.cat(parts) for k, parts in found.items()}


def knn_accuracy(
    train_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, wanted_M: Tensor, *, ks: Sequence[int] = KS
) -> dict[int, float]:
    """Top-1, per cent, for each k; see :func:`knn_predict`."""
    found = knn_predict(train_ND, labels_N, queries_MD, ks=ks)
    return {k: 100 * (ids_M == wanted_M.cpu()).double().mean().item() for k, ids_M in found.items()}


def check_ks(ks: Sequence[int], images: int) -> None:
    """Raise ValueError unless there are so many neighbours."""
    wrong = [k for k in ks if not 1 <= k <= images]
    if wrong or not ks:
        raise ValueError(
            f'k={wrong}: with {images} training images k can be 1 … {images}. Give smaller numbers, or more images.'
        )
