"""Curvature of a loss around the weights of a network: of a fine-tuned classifier's own loss, or of one with a fitted head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
from mkd_plugin.checkpoint.formats import strip_compile_prefix
from mkd_plugin.checkpoint.read import read_checkpoint, weights_of
from mkd_plugin.checkpoint.report import shorten
from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.reporting.analysis.measure import Probe

EIGENVALUES = 5
LANCZOS_STEPS = 100
# Norm and linear layer in a classifier's file: of mmpretrain's ImageClassifier with ClassifierViT, and of MAE and timm.
HEADS = (('backbone.ln2', 'head.fc'), ('fc_norm', 'head'))
NORM_EPS = 1e-6  # in all of them


class MeanTokenClassifier(nn.Module):
    """A network with a head on the mean patch token of its last block."""

    def __init__(self, network: VisionTransformer, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Mean patch tokens, (B, D)."""
        tokens_BND: Tensor = self.network(images_BCHW, taps=('block:-1',)).tokens('block:-1')
        return tokens_BND[:, self.network.num_prefix :].mean(dim=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        logits_BC: Tensor = self.head(self.features(images_BCHW))
        return logits_BC


def own_head(subject: OpenedModel) -> nn.Sequential | None:
    """Norm and linear layer on the mean patch token, if the file of a network is that of a fine-tuned classifier."""
    path, width = subject.source.partition('#')[0], subject.network.arch.width
    weights = strip_compile_prefix(weights_of(read_checkpoint(path, lazy=True), path))
    for names in HEADS:
        found = [weights[name] for part in names for name in (f'{part}.weight', f'{part}.bias') if name in weights]
        shapes = [tuple(tensor.shape) for tensor in found]
        if shapes[:2] == [(width,)] * 2 and shapes[2:] == [(len(found[-1]), width), (len(found[-1]),)]:
            head = nn.Sequential(nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, len(found[-1])))
            head.load_state_dict(dict(zip(head.state_dict(), found, strict=True)))
            return head
    return None


def own_classes(probe: Probe, outputs: int) -> list[int]:
    """The output of a classifier for each folder of images: by the names that its file lists, or else in sorted order."""
    folders, path = probe.images.classes, probe.subject.source.partition('#')[0]
    meta: Any = read_checkpoint(path, lazy=True)
    for key in ('meta', 'dataset_meta', 'classes'):
        meta = meta.get(key) if isinstance(meta, dict) else None
    names = list(meta) if isinstance(meta, (list, tuple)) else []
    if len(names) == outputs and all(folder in names for folder in folders):
        return [names.index(folder) for folder in folders]
    if len(folders) == outputs:
        return list(range(outputs))
    raise ValueError(
        f'{probe.images.root} has the class folders {shorten(folders)}, which are not the {outputs} classes of '
        f'{probe.subject.name}. Give a folder of its training classes, or leave out hessian and landscape.'
    )


def fitted_head(
    probe: Probe, model: MeanTokenClassifier, batches: Sequence[Tensor], labels: Sequence[int]
) -> nn.Linear:
    """A logistic regression (scikit-learn, C = 1) fitted to the standardised features."""
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
    head = nn.Linear(*weights.shape[::-1])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights))
        head.bias.copy_(torch.from_numpy(biases - weights @ scaler.mean_))
    return head.requires_grad_(False)  # curvature is measured with respect to the network only


def loss_of(probe: Probe) -> tuple[str, MeanLoss]:
    """Cross entropy of a fine-tuned classifier ('own'), or of a head that is fitted to the network's features ('fitted')."""
    images, network, own = probe.images, probe.subject.network, own_head(probe.subject)
    labels = images.labels
    if labels is None or not (own or len(set(labels)) > 1):
        raise ValueError(
            f'{images.root} has no labels: a loss needs at least two sub-folders, one per class. Give such a folder, or '
            'leave out hessian and landscape.'
        )
    batches = list(images.batches(probe.subject, probe.settings.batch))
    model = MeanTokenClassifier(network, own or nn.Identity())
    if own:
        network.ln1.requires_grad_(False)  # the classifier has no norm for all tokens
        classes = own_classes(probe, len(own.state_dict()['1.bias']))
        labels = [classes[label] for label in labels]
    else:
        labels = np.unique(labels, return_inverse=True)[1].tolist()
        model.head = fitted_head(probe, model, batches, labels)
    device = batches[0].device
    targets = torch.split(torch.tensor(labels, device=device), probe.settings.batch)
    loss = MeanLoss(model.to(device), list(zip(batches, targets, strict=True)), cross_entropy)
    if not np.isfinite(loss.value()):
        raise ValueError(
            f'{probe.subject.name}: the loss is NaN or infinite. Take a checkpoint from before it diverged.'
        )
    return 'own' if own else 'fitted', loss


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of every image, (B,)."""
    images_BCHW, labels_B = batch
    return F.cross_entropy(model(images_BCHW), labels_B, reduction='none')


def measure_hessian(probe: Probe) -> dict[str, Any]:
    """Top eigenvalues, trace and spectral density of the Hessian of the loss."""
    head, loss = loss_of(probe)
    matrix = Hessian(loss, on_product=probe.tick)
    top = top_eigenpairs(matrix, EIGENVALUES)
    trace = hutchinson_trace(matrix)
    density = spectral_density(matrix, steps=LANCZOS_STEPS)
    at_P, density_P = density.smooth(points=400)
    return {
        'head': head,
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
    head, loss = loss_of(probe)
    if probe.settings.directions == 'hessian':
        pairs = top_eigenpairs(Hessian(loss, on_product=probe.tick), 2)
        first, second = (direction_of(vector_N, loss.parameters) for vector_N in pairs.vectors_KN)
    else:
        first, second = (random_direction(loss.parameters, seed=seed) for seed in (0, 1))
    found = loss_landscape(loss, first, second, size=probe.settings.landscape_size, on_point=probe.tick)
    return {'head': head, 'directions': probe.settings.directions, 'steps': found.steps_S, 'losses': found.losses_SS}
