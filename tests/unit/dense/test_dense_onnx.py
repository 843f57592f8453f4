"""The recipe of docs/downstream.md that exports detectors and segmentors to ONNX, run in ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_dense
from helpers.networks import scatter_weights
from torch import nn

onnxruntime = pytest.importorskip('onnxruntime')
PAGE = Path(__file__).resolve().parents[3] / 'docs' / 'downstream.md'
SEGMENTOR = 'dbot/finetune/ade20k/dbot-upernet_vit-base-p16_160k_ade20k-512'  # relative positions
DETECTOR = 'downstream/mmdet/vit-base-p16_vitdet-mask-rcnn_1x_coco'  # windows


def documented_code():
    """The block, with images of the tiny networks' size."""
    code = re.search(r'test_dense_onnx.py runs this -->\n```python\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]
    assert '512, 512' in code
    return code.replace('512, 512', f'{tiny_dense.SIDE}, {tiny_dense.SIDE}')


@pytest.mark.parametrize('name', [SEGMENTOR, DETECTOR], ids=['segmentor', 'detector'])
def test_recipe__equals_torch_at_any_batch(tmp_path, monkeypatch, name):
    pytest.importorskip('mmseg' if name == SEGMENTOR else 'mmdet')
    model = scatter_weights(tiny_dense.build(tiny_dense.shrink(tiny_dense.read(name)))).eval()
    model = model if name == SEGMENTOR else nn.Sequential(model.backbone, model.neck)
    monkeypatch.chdir(tmp_path)
    exec(documented_code(), dict(model=model))
    session = onnxruntime.InferenceSession('network.onnx', providers=['CPUExecutionProvider'])
    for batch in (1, 3):
        images = torch.rand(batch, 3, tiny_dense.SIDE, tiny_dense.SIDE)
        with torch.no_grad():
            wanted = model(images)
        found = session.run(None, {'images': images.numpy()})
        for ours, theirs in zip([wanted] if torch.is_tensor(wanted) else wanted, found, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4 * float(ours.abs().max()))
