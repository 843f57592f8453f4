"""Write a page per method: its README, what its config expands to, and its ablations with the paper's numbers."""

from __future__ import annotations

from typing import Any

import yaml
from generated import table, write_pages
from mmengine.config import Config
from repository_links import ROOT, rewrite

from mkd_plugin.utils.configs import get_config

FOLDER = ROOT / 'docs' / 'methods'
# Folder of configs → the config that its page expands.
METHODS = {
    'dbot': 'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k',
    'maskdistill': 'maskdistill/maskdistill_vit-base-p16_8xb256-300e_in1k',
    'dmae': 'dmae/dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k',
    'hybrid_distill': 'hybrid_distill/hybrid_vit-base-p16_mae-deit_8xb128-300e_in1k',
    'mae': 'mae/mae_vit-base-p16_8xb512-1600e_in1k',
    'fd': 'fd/fd_vit-base-p16_teacher-clip-base_8xb256-300e_in1k',
    'crossmae': 'crossmae/crossmae_vit-base-p16_8xb512-800e_in1k',
    'caev2': 'caev2/caev2_vit-base-p16_8xb256-300e_in1k',
    'ijepa': 'ijepa/ijepa_vit-huge-p14_8xb256-300e_in1k',
    'data2vec2': 'data2vec2/data2vec2_vit-base-p16_8xb32-75e_in1k',
    'gram': 'gram/gram_vit-base-p16_8xb256-64e_in1k',
    'proteus': 'proteus/proteus_vit-base-p14_teacher-dinov2-large_8xb64-300e_in1k',
    'tinymim': 'tinymim/tinymim_vit-base-p16_teacher-mae-large_8xb512-300e_in1k',
    'multi_teacher': 'multi_teacher/radio_vit-base-p16_teachers-dinov3-siglip2-sam_8xb128-300e_in1k',
    'unified_view': 'unified_view/data2vec_vit-base-p16_8xb256-300e_in1k',
}
FIELDS = ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg')
SCORES = {'paper': 'paper', 'miou': 'mIoU'}


def expanded(name: str) -> str:
    """Format what a config builds and how it is trained, with everything it inherits."""
    cfg = get_config(name)
    return Config({field: cfg[field] for field in FIELDS if field in cfg}).pretty_text.strip()


def ablation_table(method: str) -> str:
    """Format the rows of `ablations.yml`, or nothing if the method has none."""
    path = ROOT / 'configs' / method / 'ablations.yml'
    if not path.is_file():
        return ''
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    rows = content['rows']
    scores = [key for key in SCORES if any(row.get(key) is not None for row in rows.values())]
    lines = [
        [
            f'`{name}`',
            '; '.join(f'`{key} = {value}`' for key, value in row['options'].items()) or 'nothing',
            *('–' if row.get(key) is None else str(row[key]) for key in scores),
            str(row.get('source') or ''),
        ]
        for name, row in rows.items()
    ]
    head = ['row', 'what it changes', *(SCORES[key] for key in scores), 'where it is printed, or why']
    return (
        f'## Ablation rows\n\nTrain a row with `python tools/train.py {method}:ROW`. **The numbers are published by the paper, '
        f'not reproduced here** ({content["metric"]}; –: not printed, or not known to us).\n\n{table(head, lines)}\n'
    )


def method_page(method: str, config: str) -> str:
    """Return the Markdown of one method's page."""
    readme = (ROOT / 'configs' / method / 'README.md').read_text(encoding='utf-8').rstrip()
    text = rewrite(readme, f'methods/{method}.md', f'configs/{method}/README.md')
    parts = [
        text,
        f'## The config as it expands\n\n`{config}.py` with everything it inherits, without data and runtime. '
        f'`python tools/print_config.py configs/{config}.py` prints all of it.\n\n'
        f'```{{code-block}} python\n:class: expanded\n\n{expanded(config)}\n```\n',
        ablation_table(method),
    ]
    return '\n\n'.join(part for part in parts if part)


def write(app: Any) -> None:
    """Write all pages before Sphinx looks for documents."""
    write_pages(FOLDER, {method: method_page(method, config) for method, config in METHODS.items()})


def setup(app: Any) -> dict[str, Any]:
    """Register the generator."""
    app.connect('builder-inited', write)
    return dict(parallel_read_safe=True)
