"""The teachers of the papers as their authors released them: which file, in which format, and the network it is of.

``docs/teachers.md`` and the manifests in ``tests/manifests`` are made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Statistics = tuple[float, float, float]

# Per channel in RGB order, for pixels of 0 … 255.
IMAGENET: tuple[Statistics, Statistics] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF: tuple[Statistics, Statistics] = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
CLIP: tuple[Statistics, Statistics] = (
    (122.7709383, 116.7460125, 104.09373615),
    (68.5005327, 66.6321579, 70.32316305),
)

DBOT, MASKDISTILL, DMAE, HYBRID = 'dBOT', 'MaskDistill', 'DMAE', 'Hybrid Distill'
UNDERSTANDING = 'Towards Understanding Masked Distillation'


@dataclass(frozen=True)
class Release:
    """A released network.

    Attributes:
        name: Key of the table; also the name of its manifest, if it has one.
        title: For people.
        publisher: Repository that released it, as owner/name.
        file: Name of the released file. Where the release has no name of its own, what it is.
        format: Name of the format its tensors are in (``mkd_plugin.checkpoint.formats.FORMATS``); None if this package
            does not read it.
        statistics: Mean and standard deviation of the pixels, per channel, 0 … 255.
        papers: Which of the papers learn from it (or, for their own networks, released it).
        network: Options of ``VisionTransformer`` that the file is of; None if it is no ViT of ours.
        prefix: Where the network is in the file, if the file has two.
        manifest: Whether ``tests/manifests`` has its tensors' names and shapes.
        component: The class of teacher that takes the file.
        remark: What else to know before using it.
    """

    name: str
    title: str
    publisher: str
    file: str
    format: str | None
    statistics: tuple[Statistics, Statistics]
    papers: tuple[str, ...] = ()
    network: Mapping[str, Any] | None = None
    prefix: str | None = None
    manifest: bool = False
    component: str = 'ViTTeacher'
    remark: str = ''

    @property
    def pixel_mean(self) -> Statistics:
        """Per channel, 0 … 255."""
        return self.statistics[0]

    @property
    def pixel_std(self) -> Statistics:
        """Per channel, 0 … 255."""
        return self.statistics[1]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches per column and row of the file's own image size; None for a network that is no ViT of ours."""
        if self.network is None:
            return None
        side = self.network['img_size'] // self.network['patch_size']
        return side, side


def vit(arch: str, patch_size: int = 16, img_size: int = 224, **options: Any) -> dict[str, Any]:
    """Options of a network; a learned position table unless they say otherwise."""
    return {'arch': arch, 'patch_size': patch_size, 'img_size': img_size, 'position': 'learned', **options}


def mae(arch: str, patch_size: int = 16) -> dict[str, Any]:
    """MAE's encoder."""
    return vit(arch, patch_size, position='sincos')


def beit(arch: str, layer_scale: float, relative: str = 'shared') -> dict[str, Any]:
    """BEiT: positions are relative only."""
    return vit(arch, position='none', relative_position=relative, layer_scale=layer_scale)


def clip(arch: str, patch_size: int, projection: int) -> dict[str, Any]:
    """The visual tower of OpenAI's CLIP."""
    return vit(arch, patch_size, activation='quick_gelu', norm_eps=1e-5, pre_norm=True, projection=projection)


def dinov2(arch: str, num_registers: int = 0) -> dict[str, Any]:
    """DINOv2: its table is for 518 px."""
    return vit(arch, 14, 518, layer_scale=1.0, num_registers=num_registers)


@dataclass(frozen=True)
class Source:
    """What the releases of one repository have in common."""

    publisher: str
    format: str | None
    statistics: tuple[Statistics, Statistics] = IMAGENET
    common: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, name: str, title: str, file: str, **more: Any) -> Release:
        return Release(name, title, self.publisher, file, self.format, self.statistics, **{**self.common, **more})


RAW_PIXELS = "DMAE's teacher is another file: an MAE-L trained on raw pixels, which DMAE's README offers."
STUDENT_AND_TEACHER = (
    "dino_vitbase16_pretrain_full_checkpoint.pth has two networks: prefix='teacher.backbone.' or "
    "'student.module.backbone.'."
)
BASE_OR_MOMENTUM = "The file has two encoders: prefix='module.base_encoder.' or 'module.momentum_encoder.'."
TWELVE_HEADS = 'Of the same repository, the small networks have 12 heads of 32 channels.'
PROJECTED = "The tap 'projected' is every token after ln_post and the projection; 'output' stops at ln_post."
PATCH_AGGREGATION = 'The two blocks cls_pt_layers, which serve its pre-training only, are dropped.'
NO_FINAL_NORM = (
    "It has a norm after mean pooling, and none on tokens: read 'block:i', with "
    "allow_missing=('ln1.weight', 'ln1.bias')."
)
DVAE = 'OpenAI released encoder.pkl, a pickled module, which is refused: reading it would run its code.'

MAE = Source('facebookresearch/mae', 'timm')
DBOT_REFERENCE = Source('liuxingbin/dbot', 'dbot', common=dict(papers=(DBOT,), manifest=True))
DINO = Source('facebookresearch/dino', 'timm')
DINOV2 = Source('facebookresearch/dinov2', 'dinov2')
DEIT = Source('facebookresearch/deit', 'timm')
MOCO = Source('facebookresearch/moco-v3', 'timm', common=dict(prefix='module.base_encoder.'))
SLIP = Source('facebookresearch/SLIP', 'slip', common=dict(papers=(MASKDISTILL,), remark=TWELVE_HEADS))
OPENAI = Source('openai/CLIP', 'clip', CLIP, dict(component='CLIPTeacher', remark=PROJECTED))
BEIT = Source('microsoft/unilm (beit)', 'beit', HALF)
BEITV2 = Source('microsoft/unilm (beit2)', 'beit')

RELEASES: dict[str, Release] = {
    entry.name: entry
    for entry in (
        MAE(
            'mae_base',
            'MAE ViT-B/16',
            'mae_pretrain_vit_base.pth',
            network=mae('b'),
            papers=(DBOT, MASKDISTILL, DMAE, HYBRID),
            manifest=True,
        ),
        MAE(
            'mae_large',
            'MAE ViT-L/16',
            'mae_pretrain_vit_large.pth',
            network=mae('l'),
            papers=(DMAE, HYBRID),
            manifest=True,
            remark=RAW_PIXELS,
        ),
        MAE('mae_huge', 'MAE ViT-H/14', 'mae_pretrain_vit_huge.pth', network=mae('h', 14), manifest=True),
        Release(
            'mae_base_full',
            'MAE ViT-B/16 with its decoder',
            MAE.publisher,
            'mae_pretrain_vit_base_full.pth',
            'mae',
            IMAGENET,
            network=mae('b'),
            manifest=True,
        ),
        DBOT_REFERENCE('dbot_base', 'dBOT ViT-B/16', '84.5_dbot_base_pre.pth', network=mae('b')),
        DBOT_REFERENCE('dbot_large', 'dBOT ViT-L/16', '86.6_dbot_large_pre.pth', network=mae('l')),
        DBOT_REFERENCE('dbot_huge', 'dBOT ViT-H/14', '87.4_dbot_huge_pre.pth', network=mae('h', 14)),
        Release(
            'dmae_base',
            'DMAE ViT-B/16',
            'UCSC-VLAA/DMAE',
            'the pre-trained ViT-Base of its README (no name of its own)',
            'dmae',
            IMAGENET,
            papers=(DMAE,),
            network=mae('b'),
            manifest=True,
        ),
        DINO(
            'dino_base',
            'DINO ViT-B/16',
            'dino_vitbase16_pretrain.pth',
            network=vit('b'),
            papers=(DBOT, MASKDISTILL, DMAE, HYBRID, UNDERSTANDING),
            manifest=True,
            remark=STUDENT_AND_TEACHER,
        ),
        DINOV2('dinov2_base', 'DINOv2 ViT-B/14', 'dinov2_vitb14_pretrain.pth', network=dinov2('b'), manifest=True),
        DINOV2(
            'dinov2_base_reg',
            'DINOv2 ViT-B/14 with four registers',
            'dinov2_vitb14_reg4_pretrain.pth',
            network=dinov2('b', num_registers=4),
            manifest=True,
        ),
        DEIT(
            'deit_base',
            'DeiT ViT-B/16',
            'deit_base_patch16_224-b5f2ef4d.pth',
            network=vit('b'),
            papers=(DBOT, HYBRID, UNDERSTANDING),
            manifest=True,
        ),
        DEIT(
            'deit_base_distilled',
            'DeiT ViT-B/16 with its distillation token',
            'deit_base_distilled_patch16_224-df68dfff.pth',
            network=vit('b', distillation_token=True),
            manifest=True,
        ),
        MOCO(
            'moco_v3_base',
            'MoCo v3 ViT-B/16',
            'vit-b-300ep.pth.tar',
            network=mae('b'),
            papers=(DMAE,),
            manifest=True,
            remark=BASE_OR_MOMENTUM,
        ),
        SLIP('slip_base', 'SLIP ViT-B/16', 'slip_base_100ep.pt', network=vit('b', projection=512), manifest=True),
        SLIP('slip_large', 'SLIP ViT-L/16', 'slip_large_100ep.pt', network=vit('l', projection=512)),
        SLIP('simclr_base', "SLIP's SimCLR ViT-B/16", 'simclr_base_25ep.pt', network=vit('b'), manifest=True),
        OPENAI(
            'clip_base',
            'CLIP ViT-B/16',
            'ViT-B-16.pt',
            network=clip('b', 16, 512),
            papers=(DBOT, MASKDISTILL, HYBRID, UNDERSTANDING),
            manifest=True,
        ),
        OPENAI(
            'clip_large',
            'CLIP ViT-L/14',
            'ViT-L-14.pt',
            network=clip('l', 14, 768),
            papers=(DBOT, MASKDISTILL, HYBRID),
            manifest=True,
        ),
        BEIT(
            'beit_base',
            'BEiT ViT-B/16',
            'beit_base_patch16_224_pt22k.pth',
            network=beit('b', 0.1),
            papers=(MASKDISTILL,),
            manifest=True,
        ),
        BEITV2(
            'beitv2_base',
            'BEiT v2 ViT-B/16',
            'beitv2_base_patch16_224_pt1k.pth',
            network=beit('b', 0.1),
            papers=(MASKDISTILL,),
            manifest=True,
            remark=PATCH_AGGREGATION,
        ),
        BEITV2(
            'beitv2_base_ft21k',
            'BEiT v2 ViT-B/16, fine-tuned on ImageNet-21K',
            'beitv2_base_patch16_224_pt1k_ft21k.pth',
            network=beit('b', 0.1, 'per_block'),
            remark=NO_FINAL_NORM,
        ),
        Release(
            'resnet50',
            'ResNet-50',
            'huggingface/pytorch-image-models',
            "timm's resnet50",
            None,
            IMAGENET,
            papers=(MASKDISTILL,),
            component='TimmTeacher',
            remark="timm loads it; its grid is resampled to the student's.",
        ),
        Release(
            'dalle',
            "DALL-E's dVAE, as mmpretrain converted it",
            'open-mmlab/mmpretrain',
            'dalle_encoder.pth',
            None,
            ((-31.875, -31.875, -31.875), (318.75, 318.75, 318.75)),
            papers=(DBOT,),
            component='GeneratorTeacher',
            remark=DVAE,
        ),
        Release(
            'vqkd',
            "BEiT v2's tokenizer (VQ-KD), as mmpretrain converted it",
            'open-mmlab/mmpretrain',
            'vqkd_encoder.pth',
            None,
            HALF,
            papers=(UNDERSTANDING,),
            component='GeneratorTeacher',
        ),
    )
}


def release(name: str) -> Release:
    """An entry of the table.

    Raises:
        ValueError: There is no such release.
    """
    if name not in RELEASES:
        raise ValueError(f"There is no release '{name}' in the table: choose from {sorted(RELEASES)}.")
    return RELEASES[name]
