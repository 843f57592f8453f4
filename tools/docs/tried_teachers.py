"""Try timm's models as teachers with random weights: ``python tools/docs/tried_teachers.py`` writes docs/teachers/tried.json.

Every model is built for a student of 14 × 14 patches of 224 px. Its taps must equal timm's own ``forward_features`` and
``forward_head`` exactly. ``seconds`` is processor time an image on one thread. tools/docs/teachers.py makes the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from rich.progress import track

from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.models.students import PlainViT
from mkd_plugin.models.teachers import TimmTeacher
from mkd_plugin.models.teachers.vit import IMAGENET_MEAN, IMAGENET_STD

FILE = Path(__file__).resolve().parents[2] / 'docs/teachers/tried.json'
MODELS = """
    vit_base_patch16_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_base_patch14_dinov2
    vit_small_patch16_dinov3 vit_base_patch16_dinov3 vit_large_patch16_dinov3 convnext_tiny.dinov3_lvd1689m
    vit_base_patch16_siglip_224.webli vit_base_patch16_siglip_224.v2_webli vit_so400m_patch14_siglip_224.webli
    naflexvit_base_patch16_siglip vit_base_patch16_clip_224.openai vit_base_patch16_clip_224.metaclip_400m
    vit_pe_core_base_patch16_224 vit_pe_spatial_base_patch16_512 vit_base_patch16_radio_v3 eva02_base_patch14_224
    eva02_base_patch16_clip_224 aimv2_large_patch14_224 beitv2_base_patch16_224 beit3_base_patch16_224
    vit_base_patch16_224.mae vit_base_patch16_224.dino deit3_base_patch16_224 deit_base_distilled_patch16_224
    vit_base_patch16_rope_mixed_224 samvit_base_patch16 hiera_base_224.mae hiera_tiny_224 hieradet_small vitamin_small_224
    gemma4_vit_167m cait_xxs24_224 xcit_nano_12_p16_224 mvitv2_tiny volo_d1_224 twins_svt_small twins_pcpvt_small
    levit_128s tnt_s_patch16_224 mixer_s16_224 gmlp_s16_224 resmlp_12_224 crossvit_tiny_240 pit_ti_224 pvt_v2_b0 coat_tiny
    coat_lite_tiny convit_tiny swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 coatnet_0_224
    maxvit_tiny_tf_224 nest_tiny davit_tiny gcvit_xxtiny focalnet_tiny_srf tiny_vit_5m_224 efficientvit_b0
    efficientformer_l1 caformer_s18 poolformer_s12 fastvit_t8 repvit_m0_9 mobilevit_xs mobilenetv4_conv_small edgenext_xx_small
    convnextv2_tiny resnet50 resnetv2_50 regnety_002 efficientnet_b0 densenet121 cspdarknet53 mambaout_femto starnet_s1
"""
STUDENT = PlainViT(arch=dict(width=8, depth=1, num_heads=1), img_size=224, patch_size=16)
IMAGES = 2


def difference(teacher: TimmTeacher, tap: str, tokens_BND: torch.Tensor, images_BCHW: torch.Tensor) -> float:
    """Compare a tap with what timm computes by itself, before it is brought to the student's grid."""
    final = teacher.network.forward_features(teacher.view(images_BCHW))
    if tap == 'pooled':
        return float((teacher.network.forward_head(final, pre_logits=True) - tokens_BND[:, 0]).abs().max())
    map_BDhw = teacher._features(teacher.view(images_BCHW), (tap,))[tap][1]
    assert map_BDhw is not None
    if final.dim() == 3:
        patches_BLD = map_BDhw.flatten(2).transpose(1, 2)
        return float((final[:, -patches_BLD.shape[1] :] - patches_BLD).abs().max())
    same = final if final.shape == map_BDhw.shape else final.permute(0, 3, 1, 2)
    return float((same - map_BDhw).abs().max())


def seconds(teacher: TimmTeacher, images_BCHW: torch.Tensor) -> float:
    """Shortest of three runs, in processor seconds."""
    found = []
    for _ in range(3):
        began = time.process_time()
        teacher(images_BCHW, None, ('block:-1',))
        found.append(time.process_time() - began)
    return min(found)


@torch.no_grad()
def try_model(model: str) -> dict[str, Any]:
    """Build a teacher and read its taps; a refusal is an entry too."""
    context = StudentContext(STUDENT, IMAGENET_MEAN, IMAGENET_STD)
    images_BCHW = torch.randn(IMAGES, 3, 224, 224)
    try:
        teacher = TimmTeacher(student=context, model=model, seed=0, resample='bilinear')
    except ValueError as error:
        return dict(model=model, refused=str(error))
    entry: dict[str, Any] = dict(model=model, size=list(teacher.view.image_hw), taps={}, refused={})
    for tap in ('output', 'block:-1', 'pooled'):
        try:
            spec = teacher.tap_spec(tap)
        except ValueError as error:
            entry['refused'][tap] = str(error)
            continue
        tokens_BND = teacher(images_BCHW, None, (tap,)).tokens(tap)
        entry['taps'][tap] = spec.channels
        if tap != 'block:-1' and (gap := difference(teacher, tap, tokens_BND, images_BCHW)):
            raise AssertionError(f"{model}: '{tap}' differs from timm by {gap}")
    cfg = teacher.network.pretrained_cfg
    entry.update(blocks=teacher.num_intermediates, prefix=teacher.num_prefix, cls=teacher.has_cls)
    entry.update(mean=list(cfg['mean']), std=list(cfg['std']), licence=cfg.get('license') or 'unknown')
    return {**entry, 'seconds': round(seconds(teacher, images_BCHW) / IMAGES, 4)}


def main() -> None:
    """Try all models and write the file; this takes a quarter of an hour on one core."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings('ignore')
    entries = []
    for model in track(MODELS.split(), 'models', disable=not sys.stderr.isatty()):
        entries.append(try_model(model))
        gc.collect()
    FILE.parent.mkdir(exist_ok=True)
    text = json.dumps(dict(timm=timm.__version__, models=entries), indent=1)
    FILE.write_text(text + '\n')


if __name__ == '__main__':
    main()
