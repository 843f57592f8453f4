"""Write the manifests in this folder: names and shapes of the tensors in official releases.

python tests/manifests/make_manifests.py            # all except Hugging Face's
python tests/manifests/make_manifests.py --hf       # Hugging Face's, with the installed transformers 4 or 5

`class` in the head of a manifest is the class that gave the names on the meta device. If no package has such a class, the
names are taken from the repository's public code and the head says `unverified`: no released file was available.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
Shapes = dict[str, tuple[int, ...]]
SIZES = {'b': (768, 12, 12), 'l': (1024, 24, 16), 'h': (1280, 32, 16)}


def shapes_of(network: torch.nn.Module) -> Shapes:
    """Names and shapes of a network's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def timm_vit(arch: str, patch: int = 16, *, name: str = 'VisionTransformer', **options) -> Shapes:
    """timm's plain ViT, or another class of its `vision_transformer` and `deit` modules."""
    import timm

    width, depth, heads = SIZES[arch]
    with torch.device('meta'):
        network = getattr(timm.models, name)(
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=options.pop('classes', 0),
            **options,
        )
    return shapes_of(network)


def under(prefix: str, shapes: Shapes) -> Shapes:
    """The same names in a module."""
    return {prefix + name: shape for name, shape in shapes.items()}


def linear(name: str, inside: int, outside: int) -> Shapes:
    """A linear layer."""
    return {f'{name}.weight': (outside, inside), f'{name}.bias': (outside,)}


def mae_decoder(arch: str, patch: int, predict: str, out: int) -> Shapes:
    """MAE's decoder of 8 blocks, 512 wide."""
    block = {name[len('blocks.0.') :]: shape for name, shape in timm_vit('b').items() if name.startswith('blocks.0.')}
    narrow = {name: tuple(side * 512 // 768 for side in shape) for name, shape in block.items()}
    tokens = (224 // patch) ** 2 + 1
    shapes = {'mask_token': (1, 1, 512), 'decoder_pos_embed': (1, tokens, 512)}
    shapes |= linear('decoder_embed', SIZES[arch][0], 512)
    for index in range(8):
        shapes |= under(f'decoder_blocks.{index}.', narrow)
    return shapes | {'decoder_norm.weight': (512,), 'decoder_norm.bias': (512,)} | linear(predict, 512, out)


def mlp_of_moco(widths: tuple[int, ...]) -> Shapes:
    """MoCo v3's MLP: linear layers without bias, batch norms, the last of them without affine."""
    shapes: Shapes = {}
    for step, (inside, outside) in enumerate(zip(widths, widths[1:], strict=False)):
        shapes[f'{3 * step}.weight'] = (outside, inside)
        norm = {'running_mean': (outside,), 'running_var': (outside,), 'num_batches_tracked': ()}
        if step + 2 < len(widths):
            norm |= {'weight': (outside,), 'bias': (outside,)}
        shapes |= under(f'{3 * step + 1}.', norm)
    return shapes


def moco(arch: str) -> Shapes:
    """Two encoders with a three-layer head each, and a predictor."""
    width = SIZES[arch][0]
    encoder = timm_vit(arch) | under('head.', mlp_of_moco((width, 4096, 4096, 256)))
    both = under('base_encoder.', encoder) | under('momentum_encoder.', encoder)
    return under('module.', both | under('predictor.', mlp_of_moco((256, 4096, 256))))


def image_mlp(width: int) -> Shapes:
    """SLIP's head of its self-supervised half."""
    shapes = linear('layer1', width, 4096) | linear('layer2', 4096, 4096) | linear('layer3', 4096, 256)
    for norm in ('bn1', 'bn2'):
        shapes |= {f'{norm}.{name}': (4096,) for name in ('weight', 'bias', 'running_mean', 'running_var')}
        shapes[f'{norm}.num_batches_tracked'] = ()
    return under('image_mlp.', shapes)


def open_clip(name: str) -> Shapes:
    """A whole CLIP: OpenCLIP's class has OpenAI's names."""
    import open_clip as package

    with torch.device('meta'):
        config = package.get_model_config(name)
        network = package.CLIP(
            embed_dim=config['embed_dim'], vision_cfg=config['vision_cfg'], text_cfg=config['text_cfg']
        )
    return shapes_of(network) | dict.fromkeys(('input_resolution', 'context_length', 'vocab_size'), ())


def slip(arch: str, *, text: bool) -> Shapes:
    """SLIP, or its SimCLR without the text's half."""
    width = SIZES[arch][0]
    shapes = under('visual.', timm_vit(arch)) | image_mlp(width)
    if text:
        clip = {name: shape for name, shape in open_clip('ViT-B-16').items() if not name.startswith('visual.')}
        clip = {name: shape for name, shape in clip.items() if name.split('_')[0] not in ('input', 'context', 'vocab')}
        shapes |= clip | {'image_projection': (width, 512)}
    return under('module.', shapes)


def beit(arch: str, *, blocks_of_cls: int = 0) -> Shapes:
    """BEiT's pre-training network; version 2 has further blocks for cls."""
    width = SIZES[arch][0]
    options = dict(init_values=0.1, use_shared_rel_pos_bias=True, use_abs_pos_emb=False, global_pool='token')
    shapes = timm_vit(arch, name='Beit', **options)
    block = {name[len('blocks.0.') :]: shape for name, shape in shapes.items() if name.startswith('blocks.0.')}
    shapes |= {'mask_token': (1, 1, width), 'rel_pos_bias.relative_position_index': (197, 197)}
    for index in range(blocks_of_cls):
        shapes |= under(f'cls_pt_layers.{index}.', block)
    return shapes | linear('lm_head', width, 8192)


def dinov2(arch: str, registers: int) -> Shapes:
    """DINOv2: a position for cls, none for registers, and a mask token."""
    width = SIZES[arch][0]
    shapes = timm_vit(arch, 14, img_size=518, init_values=1.0) | {'mask_token': (1, width)}
    return shapes | ({'register_tokens': (1, registers, width)} if registers else {})


PLAIN = 'timm VisionTransformer, which the repository builds upon'


def manifests() -> dict[str, tuple[str, str, Shapes]]:
    """Release → (where the names are from, entry of the file, shapes)."""
    found: dict[str, tuple[str, str, Shapes]] = {}
    for name, arch, patch in (('base', 'b', 16), ('large', 'l', 16), ('huge', 'h', 14)):
        found[f'mae_{name}'] = (PLAIN, 'model', timm_vit(arch, patch))
        decoder = mae_decoder(arch, patch, 'decoder_predp', SIZES[arch][0])
        found[f'dbot_{name}'] = ('unverified, after models_mae.py', 'model', timm_vit(arch, patch) | decoder)
    full = timm_vit('b') | mae_decoder('b', 16, 'decoder_pred', 768)
    projector = linear('fc1', 768, 1024) | linear('fc2', 1024, 1024)
    found |= {
        'mae_base_full': ('unverified, after models_mae.py', 'model', full),
        'dmae_base': (
            'unverified, after models_mae_distill.py',
            'model',
            full | under('aligned_feature_projection_heads.0.', projector),
        ),
        'dino_base': (PLAIN, '', timm_vit('b')),
        'dinov2_base': ('unverified, after the public code', '', dinov2('b', 0)),
        'dinov2_base_reg': ('unverified, after the public code', '', dinov2('b', 4)),
        'deit_base': ('timm VisionTransformer', 'model', timm_vit('b', classes=1000)),
        'deit_base_distilled': (
            'timm VisionTransformerDistilled',
            'model',
            timm_vit('b', name='VisionTransformerDistilled', classes=1000),
        ),
        'moco_v3_base': ('unverified, after moco/builder.py and vits.py', 'state_dict', moco('b')),
        'slip_base': ('unverified, after models.py', 'state_dict', slip('b', text=True)),
        'simclr_base': ('unverified, after models.py', 'state_dict', slip('b', text=False)),
        'clip_base': ('open_clip CLIP, and three numbers of the archive', '', open_clip('ViT-B-16')),
        'clip_large': ('open_clip CLIP, and three numbers of the archive', '', open_clip('ViT-L-14')),
        'beit_base': ('unverified, after modeling_pretrain.py', 'model', beit('b')),
        'beitv2_base': ('unverified, after modeling_pretrain.py', 'model', beit('b', blocks_of_cls=2)),
    }
    return found


def hugging_face() -> dict[str, tuple[str, str, Shapes]]:
    """The three classes of ViT-B/16, by the installed transformers."""
    import transformers

    version = transformers.__version__.split('.')[0]
    clip = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, patch_size=16, projection_dim=512)
    with torch.device('meta'):
        networks = {
            'vit': transformers.ViTModel(transformers.ViTConfig()),
            'mae': transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig()),
            'clip': transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**clip)),
        }
    source = {name: type(network).__name__ for name, network in networks.items()}
    return {
        f'hf{version}_{name}_base': (f'transformers {transformers.__version__} {source[name]}', '', shapes_of(network))
        for name, network in networks.items()
    }


def compressed(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line a tensor, ``name shape``; blocks that are alike are one: ``blocks.{0..11}.norm1.weight 768``."""
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for name, shape in shapes.items():
        match = re.match(r'(.*?(?:blocks|layer|layers|resblocks)\.)(\d+)(\..*)', name)
        before, number, after = match.groups() if match else (name, '-1', '')
        numbers.setdefault((before, after, 'x'.join(map(str, shape)) or 'scalar'), []).append(int(number))
    lines = []
    for (before, after, shape), found in numbers.items():
        assert found == list(range(found[0], found[-1] + 1))
        block = '' if found == [-1] else f'{{{found[0]}..{found[-1]}}}'
        lines.append(f'{before}{block}{after} {shape}')
    return lines


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--hf', action='store_true')
    chosen = hugging_face() if parser.parse_args().hf else manifests()
    for name, (source, entry, shapes) in chosen.items():
        head = [
            f'# {name}',
            f'# class: {source}',
            f'# entry: {entry or "none, the dict itself"}',
            f'# tensors: {len(shapes)}',
        ]
        (FOLDER / f'{name}.txt').write_text('\n'.join([*head, *compressed(shapes)]) + '\n')


if __name__ == '__main__':
    main()
