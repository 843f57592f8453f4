"""Write docs/teachers.md from the table of releases: ``python tools/docs/teachers.py``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mkd_plugin.checkpoint.releases import RELEASES, Release
from mkd_plugin.models.teachers.vit import CLIP_NETWORK

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'teachers.md'
TRIED = PAGE.parent / 'teachers/tried.json'
PIXELS = {
    (0.485, 0.456, 0.406, 0.229, 0.224, 0.225): 'ImageNet',
    (0.48145466, 0.4578275, 0.40821073, 0.26862954, 0.26130258, 0.27577711): 'CLIP',
}

HEAD = """<!-- Made by tools/docs/teachers.py from mkd_plugin/checkpoint/releases.yml: change those, not this page. -->
# Teachers

A teacher is a few lines of a config. It brings its own pixel statistics and input size: the student's batch is
renormalised, and resized with antialiasing where the sizes differ, on the device. It is frozen and stays in eval mode, out of
the optimizer, out of DDP and (when it came from a file) out of our checkpoints. It computes no further than the last tap that
an objective reads.

No weights are published here. Download the file from its authors and put its path into `checkpoint=`. The formats below are
recognised from the names of the tensors, and a file that does not cover the network stops the run with a table of what is
missing. `seed=0` instead of `checkpoint=…` draws random weights, as for dBOT's first teacher.

## Taps: places to read

| tap | features |
|---|---|
| `output` | tokens after the last block and the final norm |
| `projected` | the same after the network's projection (CLIP) |
| `block:i`, `input:i` | raw output of block i, its input; `i` from 0, negative from the end |
| `mean:last-k` | mean of the raw outputs of the last k blocks |
| `attention:i` | output of block i's attention (MSA), before the residual sum |
| `qkv:i` | queries, keys and values of block i |
| `relation:i`, `logit:i` | Q·Kᵀ per head of block i: unscaled, and divided by √d (d channels per head) |
| `value:i` | V·Vᵀ / √d per head of block i |

`ViTTeacher` and `CLIPTeacher` have all of them, the others `output`. `TimmTeacher` has `output` and `block:i`, and two taps of
one vector an image, for objectives with `region='cls'`: `pooled` is what timm's classifier would read (the cls token, a mean,
or SigLIP's attention pooling), `prefix:j` is the j-th token before the patches, such as a register or a summary of C-RADIO.

## Released files

"""

MODERN = """
## DINOv3, SigLIP and EVA-02 as the one ViT

The ViT of students and `ViTTeacher` computes these models too, with all taps above. It reads their files in every layout of
[the table below](#foundation-models-through-timm). Teachers and students take the same options:

```python
DINOV3 = dict(position='none', rope='dinov3', layer_scale=1e-5, num_registers=4, norm_eps=1e-5)   # S, B, L
DINOV3_PLUS = dict(DINOV3, activation='swiglu')               # S+, H+: arch=dict(width=1280, depth=32, num_heads=20)
SIGLIP = dict(position='learned', cls_token=False, activation='gelu_tanh')           # 'gelu' where timm's model has it
EVA02_CLIP = dict(position='learned', rope='eva02', activation='swiglu', inner_norm='both')
EVA02 = dict(EVA02_CLIP, inner_norm='mlp', final_norm=False)           # B and L, trained on images alone

eva_b = dict(width=768, depth=12, num_heads=12, mlp_ratio=8 / 3)   # the MLP's width is rounded down
teacher = dict(type='ViTTeacher', arch='b', patch_size=16, network=DINOV3, checkpoint='dinov3_vitb16.pth')
student = dict(type='VisibleViT', arch='b', img_size=224, patch_size=16, **DINOV3,
               init_cfg=dict(type='Pretrained', checkpoint='dinov3_vitb16.pth'))
```

- A file that needs other options is refused with those to set. Only the kind of GELU is in no file: timm's models of SigLIP 2
  differ in it, and `timm:MODEL=FILE` in `mkd evaluate` and `mkd analyze` takes it from timm.
- **Pixels.** `ViTTeacher` converts to ImageNet's statistics, which DINOv3 has. SigLIP needs `pixel_mean=[127.5] * 3,
  pixel_std=[127.5] * 3`, EVA-02 those of `CLIPTeacher`. A student's are in `data_preprocessor`.
- A visible patch keeps the rotation of its place. Under rotary positions keys have no bias: its part of `qkv.bias` stays 0, and
  a file without biases starts those of queries and values at 0.
- Without a cls token there is no `region='…+cls'`, and pooling is the mean of the patches. SigLIP's attention pooling is not
  part of this ViT: use the tap `pooled` of `TimmTeacher`.
- The EVA-02 that was trained on images alone has no norm after its last block: read `block:-1`.
- `MaskTokenViT` needs `allow_missing=['mask_token']` in `init_cfg`: the token is new.
- `mkd convert --to timm` writes them back for timm; mmpretrain's and Hugging Face's classes of the other targets lack these
  parts, which the message names.

"""

TIMM = """
## Foundation models through timm

`TimmTeacher` takes any model of timm that has `forward_intermediates`. Download a file, and name the model:

```python
{lines}
```

The file may be what the authors, Hugging Face, OpenCLIP, big_vision or timm publish; `checkpoint` is the file or Hugging Face's
folder. `mkd inspect FILE` names the network in it and the model of timm that it fits, and so does the message about a file of
another model.

| network | layouts that are read |
|---|---|
| DINOv3 | authors' `.pth`, Hugging Face, timm |
| SigLIP, SigLIP 2 | Hugging Face (a tower or the whole model), OpenCLIP, big_vision's `.npz`, timm |
| SigLIP 2 NaFlex | Hugging Face and big_vision's `.npz`, as `naflexvit_base_patch16_siglip` |
| EVA-02, Perception Encoder, C-RADIO | authors', timm |
| AIMv2 | authors', Hugging Face, timm |
| TIPSv2 | authors' |
| MetaCLIP and other CLIPs, DINOv2, ViT | authors', OpenCLIP, Hugging Face, timm |

- **Equal to the authors'.** Most of timm's SigLIP models have the exact GELU where SigLIP was trained with its approximation
  by tanh: `options=dict(act_layer='gelu_tanh')` gives what Hugging Face and big_vision compute. CLIPs of OpenAI and Meta need a
  model with `quickgelu` in its name. DINOv3's queries and values have biases, which timm found to be 0 in the published files
  and leaves out: a file with others is refused, and needs a model whose name ends in `_qkvb`. timm's `pooled` of a DINOv3 is a
  mean; its cls token is `prefix:0`.
- **As `ViTTeacher` or student.** [Our own ViT](#dinov3-siglip-and-eva-02-as-the-one-vit) loads DINOv3, SigLIP, SigLIP 2 and
  EVA-02 from the same files. It names the teacher to use instead if a file is of another of these networks.
- **Size.** A ViT that takes any size gets the one whose grid is the student's: 196 px for a teacher of 14-px patches and a
  student of 14 × 14 patches. A model that takes one size only gets that, any other the student's; `img_size=` overrides this.
  A grid that still differs needs `resample='bilinear'`, `'bicubic'` or `'nearest'`.
- **Pixels.** Mean and standard deviation are those of timm's config; the student's images are converted on the device.
- **cls.** `region='…+cls'` reads the cls token of the models that have one in the table. The others have `pooled`.
- **Licences** below are what timm names for the weights of the model's default tag. Other tags can have others, and the
  publisher's page decides. A restricted one is printed when its file is loaded.

Tried with timm {version} and random weights: `output` and `pooled` equal timm's own result to the last bit. *Input* is the
side in pixels for a 224-px student of 16-px patches, the numbers of the taps are widths (for blocks also their count), *time*
is the processor time of a forward pass relative to ViT-B/16.
`python tools/docs/tried_teachers.py` repeats it.

"""

# For each network, a config for a local file.
LINES = {
    'DINOv3': "dict(type='TimmTeacher', model='vit_base_patch16_dinov3', checkpoint='dinov3_vitb16_pretrain_lvd1689m.pth')",
    'SigLIP 2': "dict(type='TimmTeacher', model='vit_base_patch16_siglip_224.v2_webli', "
    "options=dict(act_layer='gelu_tanh'), checkpoint='siglip2-base-patch16-224')",
    'Perception Encoder': "dict(type='TimmTeacher', model='vit_pe_core_base_patch16_224', checkpoint='PE-Core-B16-224.pt')",
    'C-RADIO': "dict(type='TimmTeacher', model='vit_base_patch16_radio_v3', checkpoint='C-RADIOv3-B/model.safetensors')",
    'EVA-02': "dict(type='TimmTeacher', model='eva02_base_patch14_224', checkpoint='eva02_B_pt_in21k_p14.pt')",
    'AIMv2': "dict(type='TimmTeacher', model='aimv2_large_patch14_224', checkpoint='aimv2-large-patch14-224')",
    'TIPSv2': "dict(type='TimmTeacher', model='vit_base_patch14_reg1_tipsv2', checkpoint='tipsv2-b14')",
    'MetaCLIP': "dict(type='TimmTeacher', model='vit_base_patch16_clip_quickgelu_224.metaclip_400m', checkpoint='b16_400m.pt')",
}

OWN = """
## Other teachers

| component | teacher |
|---|---|
| `PixelTeacher` | the student's own normalised pixels (MAE, SimMIM) |
| `BootstrappedTeacher` | the student of the stage before (dBOT) |
| `MomentumTeacher` | a moving average of the student (data2vec, BootMAE) |
| `TimmTeacher` | any timm model with `forward_intermediates`; `resample='bilinear'` brings its grid to the student's |
| `GeneratorTeacher` | any target generator of mmpretrain: `generator=dict(type='mmpretrain.HOGGenerator', …)` |
| `SpectrumTeacher` | the Fourier spectrum of the student's pixels, cut like an image (Ge2-AE) |
| `CachedTeacher` | another frozen teacher, whose features are kept in a folder: the next section |

## Features that are written once

`CachedTeacher` reads the features of a frozen teacher from a folder, and runs the teacher only for images that are not in
it:

```python
teachers=dict(clip=dict(
    type='CachedTeacher', folder='features', max_gigabytes=520,
    teacher=dict(type='CLIPTeacher', arch='b', checkpoint='checkpoints/ViT-B-16.pt')))
```

- **Views.** An image is known by its pixels as the teacher gets them, before its own resizing. A pipeline that resizes and
  crops the centre finds every image from the second epoch on. With random crops, flips or jitter it finds next to nothing:
  use the teacher without the cache. The log has the share of images that were found, every 1000 batches.
- **Key.** An entry is used only with the same weights of the teacher (CRC-32 of each tensor, so it does not matter where the
  file lies), its config, the taps, the student's grid and the step's number format. If one of them changes, features are
  computed and written anew.
- **Result.** What is read are the bits that the teacher gave for all tokens. Without the cache a teacher may compute only
  the tokens that a loss reads, which can differ in the last digits. An image that comes back in a batch of another size is
  not computed again, while a GPU may round differently there.
- **Disk.** Float32, all tokens: 605 kB per image and tap for ViT-B at 224 px (775 GB for ImageNet-1k), 403 kB for CLIP-B's
  `projected` (517 GB), 1.6 kB for the dVAE's class numbers. `max_gigabytes` counts all files in the folder. When it is
  reached, or the disk is full, one warning says so; the teacher then runs for the other images. Delete the folder at any
  time.
- **Processes** share the folder, at the same time too. If one of them lacks an image, all run the teacher on their batches,
  because a sharded teacher needs all of them. Damaged files are computed again.
- **Time.** The host copies and hashes the images of every step, for which it waits for the device, then reads 605 kB per
  image: worth it for large teachers. What it gains on a GPU was not measured. The dry run and
  `--find-batch` neither read nor write.

## Large teachers: DINOv3-7B

`vit_7b_patch16_dinov3` has 6,716,030,976 parameters: 26.9 GB in float32, in which teachers are kept. 40 blocks of
167,821,312 hold all of them but 3,178,496. Eight processes under [FSDP2](train.md#sharded-training) need, each:

| | bytes |
|---|---|
| their share of the blocks, float32 | 3.36 GB |
| everything else of the teacher, whole | 0.01 GB |
| the block that is computed and the next one, gathered | 1.34 GB; 0.67 GB with `param_dtype='bfloat16'` |
| instead of, without sharding (DDP, or `shard_teachers=False`) | 26.9 GB |

```python
_base_ = [..., '../_base_/strategies/fsdp.py']
strategy = dict(param_dtype='bfloat16')              # with --amp
model = dict(teachers=dict(dinov3=dict(type='TimmTeacher', model='vit_7b_patch16_dinov3', checkpoint='dinov3_7b.safetensors')))
```

While it is built, every process holds the whole network once in main memory, and once on its GPU before it is divided:
eight processes need 215 GB of main memory, and while the file is read up to twice that. In a step each process receives 7/8
of the blocks, 23.5 GB, or 11.7 GB with `param_dtype='bfloat16'`. The figures are counted, not measured: nothing of this
size was run here. FSDP2 shards our ViTs, and the `blocks` of timm's networks; a timm network without them (ConvNeXt, Swin)
stays whole in every process.

`--amp` computes the products of every teacher in half precision. `precision=dict(teacher='bfloat16')` or `'fp8'` ([what
they change](train.md#memory-precision-and-kernels-of-attention)) is for teachers of `ViTTeacher` and `CLIPTeacher`; it is
refused if there are only others. With fixed views, `CachedTeacher` around a teacher of this size runs it for one epoch
only.

## A network of your own

Register an `nn.Module` that maps normalised images (B, C, H, W) to one vector per patch, (B, L, D) or with a cls token first
(B, 1 + L, D), or to one class number per patch, (B, L), and wrap it:

```python
from mkd_plugin.registry import MODELS

@MODELS.register_module()
class MyNetwork(nn.Module):
    def forward(self, images_BCHW): ...          # → (B, L, D)

teachers = dict(mine=dict(
    type='GeneratorTeacher', generator=dict(type='MyNetwork'), img_size=224,
    pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375]))
```

It is run on one empty image when the model is built, to learn its width and check that its grid is the student's. For several
taps, or to see the student's mask, subclass `mkd_plugin.models.protocols.Teacher` and implement `tap_spec` and `forward`.
"""


def config_of(entry: Release) -> dict[str, Any]:
    """The teacher's config for a release."""
    if entry.component in ('TimmTeacher', 'GeneratorTeacher'):
        return other_config(entry)
    network = dict(entry.network or {})
    arch, patch_size = network.pop('arch'), network.pop('patch_size')
    del network['img_size']  # follows from the student's grid
    config: dict[str, Any] = dict(type=entry.component, arch=arch, patch_size=patch_size)
    if entry.component == 'CLIPTeacher':
        network = {key: value for key, value in network.items() if key not in (*CLIP_NETWORK, 'projection')}
    elif network.get('position') == 'sincos':
        del network['position']  # the default
    network = {key: value for key, value in network.items() if value != 0}
    if network:
        config['network'] = network
    config['checkpoint'] = '…' if ' ' in entry.file else entry.file  # a description, where there is no name
    if entry.prefix is not None:
        config['prefix'] = entry.prefix
    if entry.component == 'ViTTeacher' and entry.pixel_mean != RELEASES['mae_base'].pixel_mean:
        config.update(pixel_mean=list(entry.pixel_mean), pixel_std=list(entry.pixel_std))
    return config


def other_config(entry: Release) -> dict[str, Any]:
    """The config of a teacher that is not our ViT."""
    pixels = dict(pixel_mean=list(entry.pixel_mean), pixel_std=list(entry.pixel_std))
    if entry.component == 'TimmTeacher':
        return dict(type='TimmTeacher', model=entry.name, checkpoint='resnet50.pth', resample='bilinear')
    pretrained = dict(type='Pretrained', checkpoint=entry.file)
    if entry.name == 'dalle':
        generator = dict(type='mmpretrain.DALL-E', init_cfg=pretrained)
        return dict(type='GeneratorTeacher', generator=generator, num_classes=8192, img_size=112, **pixels)
    encoder = dict(
        arch='base', img_size=224, patch_size=16, in_channels=3, out_indices=-1, drop_rate=0.0, drop_path_rate=0.0,
        norm_cfg=dict(type='LN', eps=1e-6), final_norm=True, out_type='featmap', with_cls_token=True,
        frozen_stages=-1, use_abs_pos_emb=True, use_rel_pos_bias=False, use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.0, interpolate_mode='bicubic', patch_cfg=dict(), layer_cfgs=dict(), init_cfg=None,
    )  # fmt: skip
    generator = dict(type='mmpretrain.VQKD', encoder_config=encoder, init_cfg=pretrained)
    return dict(type='GeneratorTeacher', generator=generator, num_classes=8192, **pixels)


def written(value: Any) -> str:
    """A value as it is written in a config."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={written(item)}" for key, item in value.items())})'
    return repr(value)


def section(entry: Release) -> str:
    """One release."""
    mean, std = (', '.join(f'{number:g}' for number in values) for values in entry.statistics)
    name = entry.file if ' ' in entry.file else f'`{entry.file}`'
    lines = [
        f'### {entry.title}',
        '',
        f'- file: {name} of {entry.publisher}' + (f', format `{entry.format}`' if entry.format else ''),
        f'- pixels: mean ({mean}), std ({std})' + (f'; grid {entry.grid[0]} × {entry.grid[1]}' if entry.grid else ''),
    ]
    if entry.papers:
        lines.append(f'- read by: {", ".join(entry.papers)}')
    if entry.remark:
        lines.append(f'- {entry.remark}')
    return '\n'.join([*lines, '', '```python', written(config_of(entry)), '```', ''])


def tried_table() -> str:
    """Section on timm, with the table of the models that were tried."""
    tried = json.loads(TRIED.read_text(encoding='utf-8'))
    unit = next(entry['seconds'] for entry in tried['models'] if entry['model'] == 'vit_base_patch16_224')
    lines = [
        '| model | input | `output` | `block:i` | `pooled` | cls | pixels | licence of the weights | time |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for entry in tried['models']:
        if 'taps' not in entry:  # refused as a whole
            continue
        taps = entry['taps']
        cells = [
            f'`{entry["model"]}`',
            str(entry['size'][0]),
            str(taps.get('output', '–')),
            f'{entry["blocks"]} × {taps["block:-1"]}',
            str(taps.get('pooled', '–')),
            'yes' if entry['cls'] else '–',
            PIXELS.get((*entry['mean'], *entry['std'])) or f'{entry["mean"][0]:g} ± {entry["std"][0]:g}',
            entry['licence'],
            f'{entry["seconds"] / unit:.2g}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    lines_of = '\n'.join(f'{line}  # {name}' for name, line in LINES.items())
    return TIMM.format(version=tried['timm'], lines=lines_of) + '\n'.join(lines) + '\n'


def page() -> str:
    """The whole page."""
    return HEAD + '\n'.join(section(entry) for entry in RELEASES.values()) + MODERN + tried_table() + OWN


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=PAGE, help='page to write (default: %(default)s)')
    out = parser.parse_args().out
    out.write_text(page(), encoding='utf-8')
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
