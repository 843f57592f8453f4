"""Overlaps, soft NMS, groups of NMS and RoIPool as mmcv calls them: figures of mmcv's own tests, and plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import mkd_plugin  # noqa: F401 - lets mmcv.ops be imported

mmcv_ops = pytest.importorskip('mmcv.ops')

# mmcv's tests/test_ops/test_nms.py
BOXES = torch.tensor([[6.0, 3, 8, 7], [3, 6, 9, 11], [3, 7, 10, 12], [1, 4, 13, 7]])
SCORES = torch.tensor([0.6, 0.9, 0.7, 0.2])
SOFT = {
    'linear': ([1, 0, 2, 3], [0.9, 0.6, 0.29024392, 0.2]),
    'gaussian': ([1, 0, 2, 3], [0.9, 0.59630775, 0.35275510, 0.18650459]),
    'naive': ([1, 0, 3], [0.9, 0.6, 0.2]),
}
GROUPED = [[49.1, 32.4, 51.0, 35.9, 0.9], [49.3, 32.9, 51.0, 35.3, 0.9],
           [35.3, 11.5, 39.9, 14.5, 0.4], [35.2, 11.7, 39.7, 15.7, 0.3]]  # fmt: skip


def crowd(count: int, ties: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes that overlap much, and their scores; with many equal ones if ``ties``."""
    numbers = np.random.default_rng(seed)
    corner, size = numbers.uniform(0, 12, (count, 2)), numbers.uniform(2, 10, (count, 2))
    scores = numbers.integers(1, 5, count) / 8 if ties else numbers.uniform(0.05, 1, count)
    return torch.from_numpy(np.concatenate([corner, corner + size], 1)).float(), torch.from_numpy(scores).float()


def plain_overlap(a: list[float], b: list[float], offset: int) -> float:
    shared = math.prod(max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset) for i in (0, 1))
    both = sum(math.prod(box[i + 2] - box[i] + offset for i in (0, 1)) for box in (a, b))
    return shared / (both - shared)


@pytest.mark.parametrize('method', SOFT)
def test_soft_nms__gives_the_figures_of_mmcv(method):
    kept, scores = SOFT[method]
    dets, indices = mmcv_ops.soft_nms(BOXES, SCORES, iou_threshold=0.3, sigma=0.5, min_score=0.01, method=method)
    assert indices.tolist() == kept and torch.equal(dets[:, :4], BOXES[kept])
    torch.testing.assert_close(dets[:, 4], torch.tensor(scores))


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', SOFT)
def test_soft_nms__is_what_plain_python_gives(method, offset, ties):
    """With rows that a program moves about as mmcv's does, which decides between equal scores."""
    boxes, scores = crowd(60, ties)
    dets, indices = mmcv_ops.soft_nms(boxes, scores, 0.4, 0.5, 0.15, method, offset)
    rows = [
        [number, box, score] for number, (box, score) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True))
    ]
    place = 0
    while place < len(rows):
        best = max(range(place, len(rows)), key=lambda at: (rows[at][2], -at))
        rows[place], rows[best] = rows[best], rows[place]
        other = place + 1
        while other < len(rows):
            overlap = plain_overlap(rows[place][1], rows[other][1], offset)
            if method == 'gaussian':
                rows[other][2] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.4:
                rows[other][2] *= 0 if method == 'naive' else 1 - overlap
            if rows[other][2] < 0.15:
                rows[other] = rows[-1]
                rows.pop()
            else:
                other += 1
        place += 1
    assert 5 < len(rows) < 60
    assert indices.tolist() == [number for number, _, _ in rows]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, _, score in rows]), rtol=1e-5, atol=1e-6)


def test_soft_nms__of_nothing_and_in_batches():
    dets, indices = mmcv_ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and indices.shape == (0,)
    boxes, scores = crowd(50, ties=False)
    classes = torch.arange(50) % 3
    together = mmcv_ops.batched_nms(boxes, scores, classes, dict(type='soft_nms', iou_threshold=0.5))
    apart = mmcv_ops.batched_nms(boxes, scores, classes, dict(type='soft_nms', iou_threshold=0.5, split_thr=10))
    assert torch.equal(together[1], apart[1])
    torch.testing.assert_close(together[0], apart[0], rtol=1e-4, atol=1e-5)


def test_nms_match__groups_what_nms_suppresses():
    groups = [group.tolist() for group in mmcv_ops.nms_match(torch.tensor(GROUPED), 0.6)]
    assert groups == [[0, 1], [2, 3]]
    boxes, scores = crowd(80, ties=False)
    groups = mmcv_ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.3)
    assert sorted(int(number) for group in groups for number in group) == list(range(80))
    assert [int(group[0]) for group in groups] == mmcv_ops.nms(boxes, scores, 0.3)[1].tolist()
    for first, *others in (group.tolist() for group in groups):
        assert all(plain_overlap(boxes[first].tolist(), boxes[other].tolist(), 0) >= 0.3 for other in others)
        assert scores[[first, *others]].tolist() == sorted(scores[[first, *others]].tolist(), reverse=True)


# mmcv's tests/test_ops/test_bbox.py, all with offset=1 but the last
FIRST, SECOND = [[1.0, 1, 3, 4], [2, 2, 3, 4], [7, 7, 8, 8]], [[0.0, 2, 2, 5], [2, 1, 3, 3]]
PAIRS = [
    (FIRST, SECOND, False, 1, [[1 / 3, 0.5], [0.2, 0.5], [0, 0]]),
    (FIRST[:2], SECOND, True, 1, [1 / 3, 0.5]),
    ([[0.0, 0, 3, 3]], [[4.0, 0, 5, 3], [3, 0, 4, 3], [2, 0, 3, 3], [1, 0, 2, 3]], False, 1, [[0, 0.2, 0.5, 0.5]]),
    ([[10.0, 10, 30, 30]], [[20.0, 20, 40, 40]], True, 0, [1 / 7]),
]


@pytest.mark.parametrize(('first', 'second', 'aligned', 'offset', 'wanted'), PAIRS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_bbox_overlaps__gives_the_figures_of_mmcv(first, second, aligned, offset, wanted, dtype):
    made = mmcv_ops.bbox_overlaps(
        torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype), 'iou', aligned, offset
    )
    torch.testing.assert_close(made, torch.tensor(wanted, dtype=dtype), rtol=1e-3, atol=0)


def test_bbox_overlaps__is_what_mmcv_gives_in_python():
    from mmcv.ops.bbox import _bbox_overlaps_cpu

    first, second = crowd(30, False)[0].double(), crowd(30, False, seed=1)[0].double()
    for mode in ('iou', 'iof'):
        for aligned in (False, True):
            for offset in (0, 1):
                made = mmcv_ops.bbox_overlaps(first, second, mode, aligned, offset)
                torch.testing.assert_close(made, _bbox_overlaps_cpu(first, second, mode, aligned, offset))


# mmcv's tests/test_ops/test_roi_pool.py: image, box, output and gradient of the sum
POOLED = [
    ([[[1.0, 2], [3, 4]]], [0.0, 0, 0, 1, 1], [[[1.0, 2], [3, 4]]], [[[1.0, 1], [1, 1]]]),
    (
        [[[1.0, 2], [3, 4]], [[4, 3], [2, 1]]], [0.0, 0, 0, 1, 1],
        [[[1.0, 2], [3, 4]], [[4, 3], [2, 1]]], [[[1.0, 1], [1, 1]], [[1, 1], [1, 1]]],
    ),
    (
        [[[1.0, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]], [0.0, 0, 0, 3, 3],
        [[[4.0, 8], [12, 16]]], [[[0.0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]],
    ),
]  # fmt: skip


@pytest.mark.parametrize(('image', 'box', 'output', 'gradient'), POOLED)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_roi_pool__gives_the_figures_of_mmcv(image, box, output, gradient, dtype):
    features = torch.tensor([image], dtype=dtype, requires_grad=True)
    made = mmcv_ops.roi_pool(features, torch.tensor([box], dtype=dtype), (2, 2), 1.0)
    made.sum().backward()
    assert made.tolist() == [output] and features.grad.tolist() == [gradient]


def features_of(start: float, end: float, bins: int, number: int, side: int) -> range:
    """The features that a bin of a box touches along one side."""
    edges = math.floor(start + number * (end - start) / bins), math.ceil(start + (number + 1) * (end - start) / bins)
    return range(*(min(max(edge, 0), side) for edge in edges))


def test_roi_pool__is_what_plain_python_gives():
    """Boxes between features, over the edge, outside, inverted, and of another image."""
    features = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    rois = [
        [0, 3.2, 4.1, 21.7, 15],
        [0, -9, 10, 12, 60],
        [0, 90, 90, 120, 110],
        [0, 20, 20, 9, 9],
        [1, 2, 1, 33, 26],
    ] * 5
    made = mmcv_ops.roi_pool(features, torch.tensor(rois, dtype=torch.float64), (3, 2), 0.25)
    wanted = torch.zeros_like(made)
    for number, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = box[0] / 4, box[1] / 4, (box[2] + 1) / 4, (box[3] + 1) / 4
        for i, j in itertools.product(range(3), range(2)):
            rows, columns = features_of(y1, y2, 3, i, 7), features_of(x1, x2, 2, j, 9)
            if x2 > x1 and y2 > y1 and len(rows) and len(columns):
                bin_of_box = features.detach()[image, :, rows.start : rows.stop, columns.start : columns.stop]
                wanted[number, :, i, j] = bin_of_box.amax((1, 2))
    assert torch.equal(made, wanted) and (made[2] == 0).all() and (made[3] == 0).all() and (made[0] != 0).all()
    assert torch.autograd.gradcheck(
        lambda x: mmcv_ops.roi_pool(x, torch.tensor(rois[:5], dtype=torch.float64), (3, 2), 0.25), features
    )
    assert mmcv_ops.roi_pool(features, torch.zeros(0, 5).double(), (2, 2), 1.0).shape == (0, 3, 2, 2)
