"""nms and roi_align as mmcv calls them, against plain Python, torchvision, and mmcv's compiled ops where there are any."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torchvision

from mkd_plugin.compat.ops import ext as ours
from mkd_plugin.compat.patches import STAND_IN, OpsFinder, serve_missing_ops

mmcv_ops = pytest.importorskip('mmcv.ops')
COMPILED = find_spec('mmcv._ext').origin != str(STAND_IN)
needs_compiled = pytest.mark.skipif(not COMPILED, reason='mmcv has no compiled ops here: nothing to compare with')


def random_boxes(count: int, side: float, seed: int = 0) -> torch.Tensor:
    """(count, 4) float32 boxes, some beyond an image of this side."""
    numbers = np.random.default_rng(seed)
    corner, size = numbers.uniform(-0.2 * side, side, (count, 2)), numbers.uniform(0.05 * side, 0.6 * side, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + size], 1)).float()


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, offset: int) -> list[int]:
    """Every box against every better one that was kept; the first of equal scores is the better one."""
    kept: list[int] = []
    areas = [(x2 - x1 + offset) * (y2 - y1 + offset) for x1, y1, x2, y2 in boxes.tolist()]
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        x1, y1, x2, y2 = boxes[index].tolist()
        for other in kept:
            a1, b1, a2, b2 = boxes[other].tolist()
            wide, high = min(x2, a2) - max(x1, a1) + offset, min(y2, b2) - max(y1, b1) + offset
            shared = max(wide, 0) * max(high, 0)
            if shared / (areas[index] + areas[other] - shared) > threshold:
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('ties', [False, True])
def test_nms__is_what_plain_python_keeps(offset, ties):
    for seed in range(5):
        boxes = random_boxes(60, 20.0, seed)
        scores = torch.rand(60, generator=torch.Generator().manual_seed(seed))
        scores = (scores * 4).round() / 4 if ties else scores
        for threshold in (0.2, 0.5):
            wanted = plain_nms(boxes, scores, threshold, offset)
            assert ours.nms(boxes, scores, iou_threshold=threshold, offset=offset).tolist() == wanted
            if offset == 0:
                assert torchvision.ops.nms(boxes, scores, threshold).tolist() == wanted
            if not (COMPILED and ties):  # mmcv's own order among equal scores is another one
                dets, kept = mmcv_ops.nms(boxes, scores, threshold, offset=offset)
                assert kept.tolist() == wanted and torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[wanted])


def test_nms__offset_counts_the_last_pixel():
    """10 × 10 pixels and the 5 rows below, one row shared: 10 of 150 pixels, against 5 % of the edges."""
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [0, 9, 9, 14]]), torch.tensor([0.9, 0.8])
    assert ours.nms(boxes, scores, iou_threshold=0.05, offset=0).tolist() == [0, 1]
    assert ours.nms(boxes, scores, iou_threshold=0.05, offset=1).tolist() == [0]


def test_nms__of_nothing_and_of_one():
    assert ours.nms(torch.zeros(0, 4), torch.zeros(0), iou_threshold=0.5, offset=0).shape == (0,)
    dets, kept = mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.dtype == torch.int64
    assert ours.nms(torch.ones(1, 4), torch.ones(1), iou_threshold=0.5, offset=1).tolist() == [0]


def test_nms__scores_of_half_precision():
    """Under autocast a head's scores are of half precision, its boxes are not."""
    boxes, scores = random_boxes(40, 20.0), torch.rand(40)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = scores.to(dtype)
        wanted = plain_nms(boxes, rounded.float(), 0.4, 0)
        assert ours.nms(boxes, rounded, iou_threshold=0.4, offset=0).tolist() == wanted


def test_batched_nms__suppresses_within_a_class_only():
    boxes, scores, classes = random_boxes(80, 15.0), torch.rand(80), torch.randint(3, (80,))
    dets, kept = mmcv_ops.batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.3))
    wanted: list[int] = []
    for number in range(3):
        of_class = (classes == number).nonzero().flatten()
        wanted += of_class[plain_nms(boxes[of_class], scores[of_class], 0.3, 0)].tolist()
    wanted.sort(key=lambda i: -scores[i].item())
    assert kept.tolist() == wanted and torch.equal(dets[:, :4], boxes[wanted])


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C, H, W) at a point; 0 more than a pixel outside, the border's value nearer to it."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(image))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, below, left] * (1 - dx) + image[:, below, right] * dx
    return upper * (1 - dy) + lower * dy


def plain_roi_align(features, rois, size, scale, ratio, aligned):
    """The mean over each bin's points, one after the other (Mask R-CNN, section 3)."""
    made = np.zeros((len(rois), features.shape[1], *size))
    for roi, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (value * scale - shift for value in (x1, y1, x2, y2))
        least = -np.inf if aligned else 1.0
        sides = max(y2 - y1, least), max(x2 - x1, least)
        points = [ratio or int(np.ceil(side / bins)) for side, bins in zip(sides, size, strict=True)]
        for i in range(size[0]):
            for j in range(size[1]):
                values = [
                    bilinear(
                        features[int(image)].numpy(),
                        y1 + (i + (a + 0.5) / points[0]) * sides[0] / size[0],
                        x1 + (j + (b + 0.5) / points[1]) * sides[1] / size[1],
                    )
                    for a in range(points[0])
                    for b in range(points[1])
                ]
                made[roi, :, i, j] = np.mean(values, axis=0)
    return torch.from_numpy(made)


def some_rois(dtype=torch.float64) -> torch.Tensor:
    """(5, 5): ordinary, over the edge, smaller than a pixel, wholly outside, and of the second image."""
    return torch.tensor(
        [[0, 4, 6, 30, 22], [0, -9, 20, 12, 60], [0, 10, 10, 10.6, 10.4], [0, 90, 90, 120, 110], [1, 3, 2, 40, 35]],
        dtype=dtype,
    )


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align__is_what_plain_python_gives(aligned, ratio):
    features = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    made = mmcv_ops.roi_align(features, some_rois(), (3, 2), 0.25, ratio, 'avg', aligned)
    wanted = plain_roi_align(features, some_rois(), (3, 2), 0.25, ratio, aligned)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    assert (made[3] == 0).all() and (made[0] != 0).all()
    theirs = torchvision.ops.roi_align(features, some_rois(), (3, 2), 0.25, ratio, aligned)
    torch.testing.assert_close(made, theirs, rtol=0, atol=0)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align__gradient(aligned, ratio):
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = some_rois() / 2
    assert torch.autograd.gradcheck(
        lambda x: mmcv_ops.roi_align(x, rois, (2, 2), 0.25, ratio, 'avg', aligned), features, atol=1e-7
    )
    made = mmcv_ops.roi_align(features, rois, (2, 2), 0.25, ratio, 'avg', aligned)
    theirs = torchvision.ops.roi_align(features, rois, (2, 2), 0.25, ratio, aligned)
    weights = torch.randn_like(made)
    gradients = [torch.autograd.grad((out * weights).sum(), features)[0] for out in (made, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_roi_align__of_no_boxes():
    features = torch.randn(1, 3, 5, 5, requires_grad=True)
    made = mmcv_ops.roi_align(features, torch.zeros(0, 5), 7, 0.25, 0, 'avg', True)
    made.sum().backward()
    assert made.shape == (0, 3, 7, 7) and (features.grad == 0).all()


@pytest.mark.skipif(COMPILED, reason='this is about the stand-in; the compiled ops have no bfloat16')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align__half_precision_is_single_precision_rounded(dtype):
    features = torch.randn(2, 3, 9, 11).to(dtype).requires_grad_()
    rois = some_rois(dtype)
    made = mmcv_ops.roi_align(features, rois, 3, 0.25, 2, 'avg', True)
    single = features.detach().float().requires_grad_()
    wanted = torchvision.ops.roi_align(single, rois.float(), 3, 0.25, 2, True)
    assert made.dtype == dtype and torch.equal(made, wanted.to(dtype))
    made.sum().backward()
    wanted.sum().backward()
    assert torch.equal(features.grad, single.grad.to(dtype))


@needs_compiled
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_ops__equal_the_compiled_ones(aligned, ratio):
    from mmcv import _ext

    features, rois = torch.randn(2, 3, 9, 11), some_rois(torch.float32)
    options = dict(aligned_height=3, aligned_width=2, spatial_scale=0.25, sampling_ratio=ratio, pool_mode=1)
    made, back = [], []
    for library in (ours, _ext):
        made.append(torch.zeros(5, 3, 3, 2))
        library.roi_align_forward(features, rois, made[-1], torch.zeros(0), torch.zeros(0), aligned=aligned, **options)
        back.append(torch.zeros_like(features))
        library.roi_align_backward(made[0], rois, torch.zeros(0), torch.zeros(0), back[-1], aligned=aligned, **options)
    assert torch.equal(*made) and torch.equal(*back)
    boxes, scores = random_boxes(200, 20.0), torch.randperm(200) / 200
    for offset in (0, 1):
        kept = [library.nms(boxes, scores, iou_threshold=0.4, offset=offset) for library in (ours, _ext)]
        assert torch.equal(*kept)


@pytest.mark.gpu
@pytest.mark.parametrize('deterministic', [True, False])
def test_ops__gpu_is_as_cpu(deterministic):
    if not torch.cuda.is_available():
        pytest.skip('no GPU')
    boxes, scores = random_boxes(300, 20.0), torch.randperm(300) / 300
    kept = [ours.nms(boxes.to(at), scores.to(at), iou_threshold=0.4, offset=1).cpu() for at in ('cpu', 'cuda')]
    assert torch.equal(*kept)
    results = []
    torch.use_deterministic_algorithms(deterministic)
    try:
        for at in ('cpu', 'cuda'):
            features = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)).to(at).requires_grad_()
            made = mmcv_ops.roi_align(features, some_rois(torch.float32).to(at), 3, 0.25, 0, 'avg', True)
            (made**2).sum().backward()
            results.append((made.detach().cpu(), features.grad.cpu()))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_ops__others_say_what_they_are_and_how_to_get_them():
    with pytest.raises(NotImplementedError, match=r'carafe_forward is one of the ops.*--no-build-isolation'):
        ours.carafe_forward(1, kernel_size=2)
    with pytest.raises(AttributeError, match='__path__'):
        ours.__path__  # noqa: B018
    if not COMPILED:
        with pytest.raises(NotImplementedError, match='psamask_forward'):
            mmcv_ops.PSAMask('collect', (3, 3))(torch.ones(1, 9, 4, 4))
        with pytest.raises(NotImplementedError, match=r"pool_mode='max' is not in torchvision.*pool_mode='avg'"):
            mmcv_ops.roi_align(torch.ones(1, 1, 4, 4), torch.ones(1, 5), 2, 1.0, 0, 'max', True)


def test_serve_missing_ops__is_asked_last_and_once():
    before = list(sys.meta_path)
    serve_missing_ops()
    assert sys.meta_path == before and sum(isinstance(finder, OpsFinder) for finder in before) == 1
    assert OpsFinder().find_spec('mmcv._ext.deeper', None) is None and OpsFinder().find_spec('numpy', None) is None


# a folder with another _ext is added to mmcv's, as if that had been compiled
PROCESS = """
import sys
heavy = ('torchvision', 'mmcv.ops', 'mmdet', 'mmseg', 'mkd_plugin.dense', 'mkd_plugin.models')
assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
import mmcv
mmcv.__path__.append(sys.argv[1])
import mmcv._ext
assert mmcv._ext.nms() == 'real', mmcv._ext
print('real one wins')
"""


@pytest.mark.skipif(COMPILED, reason='mmcv._ext is a real one here')
def test_finder__imports_nothing_and_lets_a_real_one_win(tmp_path):
    (tmp_path / '_ext.py').write_text("def nms():\n    return 'real'\n")
    command = [sys.executable, '-W', 'ignore', '-c', PROCESS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert 'real one wins' in done.stdout, done.stderr[-2000:]
