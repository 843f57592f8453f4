"""Overlaps of boxes, and the suppression of boxes that overlap a better one."""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor

IOU, IOF = 0, 1  # mmcv's numbers: shared area by the area of both boxes, or by that of the first alone
NAIVE, LINEAR, GAUSSIAN = 0, 1, 2  # mmcv's numbers of soft NMS's methods


def overlaps_of(first: Tensor, second: Tensor, offset: int, mode: int = IOU) -> Tensor:
    """Return the overlaps of (…, 4) boxes, x1 y1 x2 y2, whose leading dimensions broadcast; see :func:`nms` for the offset."""
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset
    shared = sides.clamp(min=0).prod(-1)
    area, other = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (first, second))
    whole = area if mode == IOF else area + other - shared
    return shared / whole.clamp(min=offset)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, *, mode: int, aligned: bool, offset: int) -> None:
    """Write the overlaps of (M, 4) with (N, 4) boxes into ``ious``: (M, N), or (M,) of pairs if ``aligned``."""
    dtype = torch.promote_types(bboxes1.dtype, torch.float32)
    first, second = bboxes1.to(dtype), bboxes2.to(dtype)
    ious.copy_(overlaps_of(first if aligned else first[:, None], second, offset, mode))


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression. Among equal scores the earlier box wins.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,), of any floating-point type.
        iou_threshold: Boxes that overlap a better box by more than this are dropped.
        offset: 1 if x2 and y2 are the last pixels inside (a width is x2 − x1 + 1), 0 if they are edges.

    Returns:
        (K,) int64: indices of the kept boxes, by descending score.
    """
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, scores = boxes.to(dtype), scores.to(dtype)  # torchvision needs one type for both
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS (Bodla et al., 2017): boxes that overlap a better one lose score instead of being dropped.

    Args:
        boxes: (N, 4), x1 y1 x2 y2, on the CPU, where mmcv always computes this.
        scores: (N,).
        dets: (N, 5): its first K rows get the kept boxes with their new scores, the best first.
        iou_threshold: Overlap from which a box loses all its score (method 0) or that share of it (method 1).
        sigma: Width of the Gaussian of the overlap by which scores are multiplied (method 2).
        min_score: A box whose score falls below this is dropped.
        method: 0, 1 or 2, see above.
        offset: As for :func:`nms`.

    Returns:
        (K,) int64: indices of the kept boxes, in the order of ``dets``.
    """
    order, scores, place = torch.arange(len(boxes)), scores.clone(), 0
    while place < len(order):
        best = place + int(scores[order[place:]].argmax())
        order[[place, best]] = order[[best, place]]
        chosen, others = order[place], order[place + 1 :]
        dets[place, :4], dets[place, 4] = boxes[chosen], scores[chosen]
        place += 1
        overlaps = overlaps_of(boxes[chosen], boxes[others], offset)
        near = overlaps >= iou_threshold
        factors = {NAIVE: ~near, LINEAR: 1 - overlaps * near, GAUSSIAN: torch.exp(-overlaps.square() / sigma)}
        scores[others] *= factors[method]
        order = torch.cat([order[:place], filled_from_the_end(others, scores[others] < min_score)])
    return order


def filled_from_the_end(values: Tensor, dropped: Tensor) -> Tensor:
    """Drop values; each gap is filled by the last value. Which of two equal scores wins depends on this order in mmcv."""
    count = int((~dropped).sum())
    values = values.clone()
    values[:count][dropped[:count]] = values[count:][~dropped[count:]].flip(0)
    return values[:count]


def nms_match(dets: Tensor, *, iou_threshold: float) -> list[list[int]]:
    """Return groups of indices into (N, 5) boxes with scores: each box that NMS keeps, and those that it suppresses."""
    order, groups = dets[:, 4].argsort(descending=True, stable=True), []
    while len(order):
        near = overlaps_of(dets[order[0], :4], dets[order, :4], 0) >= iou_threshold
        near[0] = True
        groups.append(order[near].tolist())
        order = order[~near]
    return groups
