"""Focal losses as mmcv calls them: figures of mmcv's own tests, gradients, and mmdet's loss on a CPU and as on a GPU."""

from __future__ import annotations

import pytest
import torch

import mkd_plugin  # noqa: F401 - lets mmcv.ops be imported

mmcv_ops = pytest.importorskip('mmcv.ops')
FOCAL = {'sigmoid': mmcv_ops.sigmoid_focal_loss, 'softmax': mmcv_ops.softmax_focal_loss}

# mmcv's tests/test_ops/test_focal_loss.py: logits, targets; loss and gradient of each kind, with gamma 2 and alpha 0.25
INPUTS = [
    ([[1.0, 0], [0, 1]], [0, 1]),
    ([[1.0, 0, -1], [0, 1, 2]], [2, 1]),
    ([[1e-6, 2e-6, 3e-6], [4e-6, 5e-5, 6e-4], [7e-3, 8e-2, 9e-1]], [1, 2, 0]),
]
OUTPUTS = {
    'softmax': [
        (0.00566451, [[-0.00657264, 0.00657264], [0.00657264, -0.00657264]]),
        (0.34956908, [[0.10165970, 0.03739851, -0.13905823], [0.01227554, -0.10298023, 0.09070466]]),
        (
            0.15754992,
            [
                [0.02590877, -0.05181759, 0.02590882],
                [0.02589641, 0.02589760, -0.05179400],
                [-0.07307514, 0.02234372, 0.05073142],
            ],
        ),
    ],
    'sigmoid': [
        (0.13562961, [[-0.00657264, 0.11185755], [0.11185755, -0.00657264]]),
        (1.10251057, [[0.28808805, 0.11185755, -0.09602935], [0.11185755, -0.00657264, 0.40376765]]),
        (
            0.42287254,
            [
                [0.07457182, -0.02485716, 0.07457201],
                [0.07457211, 0.07457669, -0.02483728],
                [-0.02462499, 0.08277918, 0.18050370],
            ],
        ),
    ],
}


@pytest.mark.parametrize('kind', FOCAL)
@pytest.mark.parametrize('number', range(3))
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_focal_loss__gives_the_figures_of_mmcv(kind, number, dtype):
    logits, targets = INPUTS[number]
    wanted, gradient = OUTPUTS[kind][number]
    logits = torch.tensor(logits, dtype=dtype, requires_grad=True)
    loss = FOCAL[kind](logits, torch.tensor(targets), 2.0, 0.25, None, 'mean')
    loss.backward()
    exact = dtype in (torch.float64, torch.float32)
    options = dict(rtol=1e-5, atol=1e-6) if exact else dict(rtol=1e-2 if dtype == torch.float16 else 4e-2, atol=1e-2)
    torch.testing.assert_close(loss.double().item(), wanted, **options)
    torch.testing.assert_close(logits.grad.double(), torch.tensor(gradient).double(), **options)


def plain_rows(kind: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The losses of each row, with gamma 1.7 and alpha 0.3, as Lin et al. state them."""
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        if kind == 'softmax':
            p = row.softmax(0)[label]
            rows.append(-0.3 * (1 - p) ** 1.7 * p.log() * (label >= 0))
        else:
            negatives = -0.7 * row.sigmoid() ** 1.7 * (1 - row.sigmoid()).log()
            positives = -0.3 * (1 - row.sigmoid()) ** 1.7 * row.sigmoid().log()
            rows.append(torch.where(torch.arange(4) == label, positives, negatives).sum())
    return torch.stack(rows)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('kind', FOCAL)
def test_focal_loss__is_what_the_paper_states(kind, weighted):
    """Value and gradient, with a row that is no class; for such a row mmcv's weights by class are undefined."""
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 3, 1, 1, 2 if weighted else {'sigmoid': 4, 'softmax': -1}[kind]])
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    rows = plain_rows(kind, logits, target) * (weight[target] if weighted else 1)
    for reduction, wanted in (('mean', rows.sum() / 5), ('sum', rows.sum())):  # mmcv's mean is over rows
        made = FOCAL[kind](logits, target, 1.7, 0.3, weight, reduction)
        torch.testing.assert_close(made, wanted)
        gradients = [torch.autograd.grad(3 * out, logits, retain_graph=True)[0] for out in (made, wanted)]
        torch.testing.assert_close(*gradients)
    each = FOCAL[kind](logits, target, 1.7, 0.3, weight, 'none')
    torch.testing.assert_close(each.view(5, -1).sum(1), rows)
    if kind == 'sigmoid':  # mmcv's softmax takes no gradient for each row
        assert torch.autograd.gradcheck(lambda x: FOCAL[kind](x, target, 1.7, 0.3, weight, 'none'), logits)


def test_sigmoid_focal_loss__is_right_for_large_logits():
    """1 − p of a logit of 20 is 0 in float32; its logarithm is −20 nevertheless."""
    loss = mmcv_ops.sigmoid_focal_loss(torch.tensor([[20.0], [-100.0]]), torch.tensor([1, 0]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[0.75 * 20], [0.25 * 100]]))


def test_focal_loss_of_mmdet__is_on_a_gpu_what_it_is_on_a_cpu(monkeypatch):
    """mmdet computes it in Python on a CPU and by mmcv's op on a GPU."""
    losses = pytest.importorskip('mmdet.models.losses')
    from mmcv import _ext

    loss, target = losses.FocalLoss(gamma=1.5, alpha=0.4), torch.tensor([0, 3, 7, 2, 7])
    logits, weight = torch.randn(5, 7), torch.rand(5)
    results, calls = [], []
    op = _ext.sigmoid_focal_loss_forward
    monkeypatch.setattr(_ext, 'sigmoid_focal_loss_forward', lambda *a, **b: calls.append(1) or op(*a, **b))
    for on_gpu in (False, True):
        if on_gpu:
            monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
            monkeypatch.setattr(torch.Tensor, 'is_cuda', property(lambda self: True))
        rows = logits.clone().requires_grad_()
        value = loss(rows, target, weight, avg_factor=3)
        value.backward()
        results.append((value.detach(), rows.grad))
        assert len(calls) == on_gpu
    torch.testing.assert_close(*results)
