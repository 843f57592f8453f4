"""Curvature of a loss around the weights of a network. The loss needs labels, and a head that is fitted here."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.analysis import (
    Hessian,
    MeanLoss,
    direction_of,
    hutchinson_trace,
    loss_landscape,
    random_direction,
    spectral_density,
    top_eigenpairs,
)
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.reporting.analysis.measure import Probe

EIGENVALUES = 5
LANCZOS_STEPS = 100


class LinearClassifier(nn.Module):
    """A network with a linear layer on the mean patch token of its last block. The head is not trainable."""

    def __init__(self, network: VisionTransformer, head: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.head = head.requires_grad_(False)  # curvature is measured with respect to the network only

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Mean patch tokens, (B, D)."""
        tokens_BND: Tensor = self.network(images_BCHW, taps=('block:-1',)).tokens('block:-1')
        return tokens_BND[:, self.network.num_prefix :].mean(dim=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        return self.head(self.features(images_BCHW))


def fitted_classifier(probe: Probe) -> tuple[LinearClassifier, list[tuple[Tensor, Tensor]]]:
    """Fit a logistic regression (scikit-learn, C = 1) to the standardised features; also return the labelled batches."""
    labels = probe.images.labels
    if labels is None:
        raise ValueError(
            f'{probe.images.root} has no labels: a loss needs at least two sub-folders, one per class. Give such a folder, or '
            'leave out hessian and landscape.'
        )
    batches = list(probe.images.batches(probe.subject, probe.settings.batch))
    network = probe.subject.network
    model = LinearClassifier(network, nn.Linear(network.arch.width, max(labels) + 1)).to(batches[0].device)
    with torch.no_grad():
        features = torch.cat([model.features(batch) for batch in batches]).double().cpu().numpy()
    if not np.isfinite(features).all():
        raise ValueError(f'{probe.subject.name}: the features are NaN or infinite, so no classifier can be fitted.')
    scaler = StandardScaler().fit(features)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # any head will do: its loss is in the report
        fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(features), labels)
    weights, biases = fitted.coef_, fitted.intercept_
    if len(weights) == 1:  # two classes: scikit-learn has one row, for the second
        weights, biases = np.concatenate([0 * weights, weights]), np.concatenate([0 * biases, biases])
    weights = weights / scaler.scale_
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weights))
        model.head.bias.copy_(torch.from_numpy(biases - weights @ scaler.mean_))
    targets = torch.split(torch.tensor(labels, device=batches[0].device), probe.settings.batch)
    return model, list(zip(batches, targets, strict=True))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of every image, (B,)."""
    images_BCHW, labels_B = batch
    return F.cross_entropy(model(images_BCHW), labels_B, reduction='none')


def measure_hessian(probe: Probe) -> dict[str, Any]:
    """Top eigenvalues, trace and spectral density of the Hessian of the loss."""
    model, batches = fitted_classifier(probe)
    loss = MeanLoss(model, batches, cross_entropy)
    matrix = Hessian(loss, on_product=probe.tick)
    top = top_eigenpairs(matrix, EIGENVALUES)
    trace = hutchinson_trace(matrix)
    density = spectral_density(matrix, steps=LANCZOS_STEPS)
    at_P, density_P = density.smooth(points=400)
    return {
        'loss': loss.value(),
        'parameters': matrix.like_N.numel(),
        'eigenvalues': top.values_K,
        'eigenvalues_converged': top.converged,
        'trace': trace.value,
        'trace_standard_error': trace.standard_error,
        'trace_samples': trace.samples,
        'nodes': density.nodes_M,
        'weights': density.weights_M,
        'curve': {'at': at_P, 'density': density_P},
    }


def measure_landscape(probe: Probe) -> dict[str, Any]:
    """The loss on a plane through the network's weights."""
    model, batches = fitted_classifier(probe)
    loss = MeanLoss(model, batches, cross_entropy)
    if probe.settings.directions == 'hessian':
        pairs = top_eigenpairs(Hessian(loss, on_product=probe.tick), 2)
        first, second = (direction_of(vector_N, loss.parameters) for vector_N in pairs.vectors_KN)
    else:
        first, second = (random_direction(loss.parameters, seed=seed) for seed in (0, 1))
    found = loss_landscape(loss, first, second, size=probe.settings.landscape_size, on_point=probe.tick)
    return {'directions': probe.settings.directions, 'steps': found.steps_S, 'losses': found.losses_SS}
