"""Write docs/unified_view.md from the configs: ``python tools/docs/unified_view.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkd_plugin.utils.configs import get_config

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'unified_view.md'


@dataclass(frozen=True)
class Row:
    """A row of MaskDistill's Table 1.

    Attributes:
        method: Its name.
        paper: Teacher, student, head, normalisation and loss as the table prints them.
        config: Our config, or None.
        reason: Why there is none.
    """

    method: str
    paper: tuple[str, str, str, str, str]
    config: str | None = None
    reason: str = ''


def unified(name: str, student: str = 'vit-base-p16') -> str:
    """Config of a row that has no folder of its own."""
    return f'unified_view/{name}_{student}_8xb256-300e_in1k'


def own(name: str, rest: str) -> str:
    """Config of a method that has a folder of its own."""
    return f'{name}/{name}_{rest}_in1k'


ROWS = (
    Row('ViT (masked patch prediction)', ('pixel', 'ViT', 'FC', '-', '-'), unified('vit-mpp')),
    Row('MAE', ('pixel', 'ViT', 'decoder', 'per-patch LN', 'L2'), own('mae', 'vit-base-p16_8xb512-1600e')),
    Row('SimMIM', ('pixel', 'Swin', 'FC', '-', 'L1'), unified('simmim', 'swin-base-p32')),
    Row('MaskFeat (HOG)', ('HOG', 'ViT', 'FC', '-', 'L2'), unified('maskfeat-hog')),
    Row('Ge2-AE', ('pixel + frequency', 'ViT', 'decoders', '-', 'L2'), unified('ge2-ae')),
    Row('ConvMAE', ('pixel', 'hybrid ViT', 'decoder', 'LN', 'L2'), unified('convmae', 'vit-base-r50-p16')),
    Row('HiViT', ('pixel', 'HiViT', 'decoder', 'LN', 'L2'), unified('hivit', 'hivit-base-p16')),
    Row('GreenMIM', ('pixel', 'Swin', 'decoder', 'LN', 'L2'), unified('greenmim', 'swin-base-p32')),
    Row('BEiT', ('dVAE tokens', 'ViT', 'FC', '-', 'cross entropy'), unified('beit')),
    Row('CAE', ('dVAE', 'ViT', 'decoder', '-', 'CE'), unified('cae')),
    Row('SplitMask', ('dVAE', 'ViT', 'decoder', '-', 'InfoNCE + CE'), unified('splitmask')),
    Row('PeCo', ('VQGAN', 'ViT', 'FC', '-', 'CE'), unified('peco')),
    Row('BEiT v2', ('VQ-KD tokens', 'ViT', 'FC', '-', 'CE'), unified('beitv2')),
    Row('MaskFeat (DINO)', ('DINO', 'ViT', 'FC', 'l2', 'cosine'), unified('maskfeat-dino')),
    Row('MVP', ('CLIP', 'ViT', 'FC', 'l2', 'cosine'), unified('mvp')),
    Row('MILAN', ('CLIP', 'ViT', 'decoder', 'l2', 'L2'), unified('milan')),
    Row('MimCo', ('MoCo v3', 'ViT', 'FC', '-', 'InfoNCE'), unified('mimco')),
    Row('data2vec', ('EMA', 'ViT', 'FC', 'LN', 'smooth L1'), unified('data2vec')),
    Row('MSN', ('EMA', 'ViT', 'FC', '-', 'CE'), unified('msn')),
    Row('SIM', ('EMA', 'ViT', 'decoder', 'BN', 'UniGrad'), unified('sim')),
    Row('SdAE', ('EMA', 'ViT', 'decoder', 'LN', 'cosine'), unified('sdae')),
    Row('ConMIM', ('EMA', 'ViT', 'FC', 'BN', 'InfoNCE'), unified('conmim')),
    Row('ExtreMA', ('EMA', 'ViT', 'cross-attention', 'LN', 'cosine'), unified('extrema')),
    Row('BootMAE', ('EMA + pixel', 'ViT', 'decoders', 'LN', 'L2'), unified('bootmae')),
    Row(
        '**MaskDistill**',
        ('CLIP', 'ViT', 'FC', 'LN (no affine)', 'smooth L1'),
        own('maskdistill', 'vit-base-p16_8xb256-300e'),
    ),
)

BESIDE = (
    Row('EVA', ('EVA-CLIP', 'ViT-g', 'FC', '-', 'cosine'), unified('eva')),
    Row(
        'FD',
        ('CLIP', 'ViT, no mask', 'FC', 'LN (no affine)', 'smooth L1'),
        own('fd', 'vit-base-p16_teacher-clip-base_8xb256-300e'),
    ),
    Row(
        'CrossMAE',
        ('pixel', 'ViT', 'cross-attention decoder', 'per-patch LN', 'L2'),
        own('crossmae', 'vit-base-p16_8xb512-800e'),
    ),
    Row(
        'CAE v2',
        ('CLIP', 'ViT', 'cross-attention regressor', '-', 'cosine'),
        own('caev2', 'vit-base-p16_8xb256-300e'),
    ),
    Row(
        'I-JEPA',
        ('EMA', 'ViT', 'predictor', 'LN (no affine)', 'smooth L1'),
        own('ijepa', 'vit-huge-p14_8xb256-300e'),
    ),
    Row(
        'data2vec 2.0',
        ('EMA, averaged layers', 'ViT', 'convolutions; none for cls', '-', 'L2'),
        own('data2vec2', 'vit-base-p16_8xb32-75e'),
    ),
    Row(
        'Gram anchoring (beside data2vec)',
        ('EMA + an old copy', 'ViT', 'FC; none', 'LN; none', 'smooth L1 + Gram'),
        own('gram', 'vit-base-p16_8xb256-64e'),
    ),
    Row(
        'Proteus',
        ('DINOv2', 'ViT, also without mask', 'FC', '-', 'L2'),
        own('proteus', 'vit-base-p14_teacher-dinov2-large_8xb64-300e'),
    ),
    Row(
        'TinyMIM',
        ('MAE', 'ViT, no mask', 'regrouped heads', '-', 'KL of relations'),
        own('tinymim', 'vit-base-p16_teacher-mae-large_8xb512-300e'),
    ),
    Row('dBOT', ('previous student', 'ViT', 'decoder', 'LN', 'smooth L1'), own('dbot', 'vit-base-p16_8xb512-2x800e')),
)

HEAD = """<!-- Made by tools/docs/unified_view.py from the configs: change those, not this page. -->
# The unified view

    loss = L( N( T(image) ),  H( S(masked image) ) )          (MaskDistill, eq. 1)

T is the teacher, S the student, H the head, N the normalisation of the target, L the loss. MaskDistill's Table 1 lists 24
published methods beside itself as rows of that equation. Each row below gives the paper's words first, and under them our
config's, read from the config itself. A row's config has what the row says and no more; the first lines of the config name
what else the method has. The configs of `configs/unified_view` share their schedule and, but for the four named below, their
student, so two of them differ only in what the table says; the methods' own schedules differ. Nothing here was trained at
ImageNet scale. A method counts as a config if the config names the teacher, normalisation, kind of student, head and loss of
its row.

SimMIM, ConvMAE, HiViT and GreenMIM have students of their own: [networks of mmpretrain and timm](any_student.md). Of SimMIM
there is also [the row with ViT-B](../configs/unified_view/simmim_vit-base-p16_8xb256-300e_in1k.py).

"""


def describe(config: str) -> tuple[str, str, str, str, str]:
    """T, S, H, N and L of a config."""
    model = get_config(config).model
    terms = list(model.objectives.values())

    def every(values: list[str]) -> str:
        return ' + '.join(dict.fromkeys(values))

    return (
        every([f'{teacher_name(model.teachers[term.teacher])}, {term.tap}' for term in terms]),
        f'{model.backbone.get("network", model.backbone).type}, {model.masking.type}',
        every([term.head.type if term.get('head') else 'none' for term in terms]),
        every([normalisation_name(term.get('normalize')) for term in terms]),
        every([f'{term.loss.type}, {term.region}' for term in terms]),
    )


def teacher_name(cfg: dict[str, Any]) -> str:
    """What a reader calls a teacher."""
    if cfg['type'] == 'GeneratorTeacher':
        return cfg['generator']['type'].removeprefix('mmpretrain.')
    checkpoint = cfg.get('checkpoint')
    return f'{cfg["type"]} ({Path(checkpoint).name})' if checkpoint else cfg['type']


def normalisation_name(cfg: dict[str, Any] | None) -> str:
    """What a reader calls a normalisation."""
    return 'none' if cfg is None else cfg['type']


def lines_of(row: Row) -> list[str]:
    """One row: the paper's cells, then ours."""
    first = f'| {row.method} | ' + ' | '.join(row.paper) + ' | |'
    if row.config is None:
        return [first, f'| | *no config* — {row.reason} | | | | | |']
    cells = ' | '.join(describe(row.config))
    return [first, f'| | {cells} | [config](../configs/{row.config}.py) |']


def table(rows: Sequence[Row]) -> str:
    """A table of rows, with its header."""
    header = [
        '| method | teacher T | student S | head H | normalisation N | loss L | |',
        '|---|---|---|---|---|---|---|',
    ]
    return '\n'.join([*header, *(line for row in rows for line in lines_of(row))]) + '\n'


def page() -> str:
    """The whole page."""
    have = sum(row.config is not None for row in ROWS) - 1  # beside MaskDistill itself
    counted = f'{have} of the 24 have a config.\n\n'
    return HEAD + counted + table(ROWS) + '\n## Beside the table\n\n' + table(BESIDE)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=PAGE, help='page to write (default: %(default)s)')
    out = parser.parse_args().out
    out.write_text(page(), encoding='utf-8')
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
