"""Training steps of ours and of the official code in turn, on a CPU: seconds a step, and the ratio pair by pair.

    python benchmarks/official_time.py --dbot ../dbot --dmae ../DMAE [--batch-size 16] [--pairs 5] [--json FILE]

The folders are checkouts of github.com/liuxingbin/dbot and github.com/UCSC-VLAA/DMAE; without one, its rows are left out. Both
sides take whole images that are already in memory; ours also normalise them. Networks are ViT-B/16, DMAE's teacher ViT-L/16.
``amp`` is autocast in bfloat16 on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_benchmark_contestants import Contestant, Official, Ours
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from timing import pairwise, run_rounds
from torch import Tensor

import mkd_plugin

CONFIGS = {
    'dBOT': 'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k',
    'DMAE': 'dmae/dmae_vit-base-p16_teacher-vit-large_8xb512-100e_in1k',
}
CPU = torch.device('cpu')
WARM_UP = 2


class OfficialDMAE(Contestant):
    """DMAE's networks with the options of its pretrain.sh, driven as its training loop does.

    Args:
        folder: Its checkout.
        batch_size: Images of a step.
        dtype: Of autocast; float32 for none.
    """

    def __init__(self, folder: Path, batch_size: int, dtype: torch.dtype) -> None:
        self.device, self.dtype = CPU, dtype
        networks = official_networks(folder)
        options = dict(norm_pix_loss=True, embedding_distillation_func='L1')
        self.model = networks.mae_vit_base_patch16_dec512d8b(
            **options, aligned_blks_indices=[8], student_reconstruction_target='original_img',
            aligned_feature_projection_mode='fc-1layer', aligned_feature_projection_dim=[768, 1024],
        )  # fmt: skip
        self.teacher = networks.mae_vit_large_patch16_dec512d8b(**options, aligned_blks_indices=[17]).eval()
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [dict(params=others, weight_decay=0.0), dict(params=decayed, weight_decay=0.05)]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.95))
        self.images = torch.randn(batch_size, 3, 224, 224)

    def step(self) -> Tensor:
        """Take one step; return the loss."""
        with torch.autocast('cpu', self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                latents, mask, restore, keep = self.teacher.forward_encoder_customized(self.images, 0.75)
                predicted = self.teacher.forward_decoder(latents[-1], restore)
            loss, aligned, _, _ = self.model(self.images, keep, restore, mask, predicted, None, latents)
            loss = loss + sum(aligned.values())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def official_networks(folder: Path) -> Any:
    """Import DMAE's networks, which pass timm's block an argument that it no longer has."""
    sys.path.insert(0, str(folder))
    import models_mae_distill

    block = models_mae_distill.Block
    models_mae_distill.Block = lambda *args, qk_scale=None, **options: block(*args, **options)
    return models_mae_distill


class OnCPU(Ours):
    """A model of ours, in float32 or under autocast in bfloat16, which ``mkd train --amp`` uses on GPUs only."""

    def __init__(self, method: str, batch_size: int, dtype: torch.dtype) -> None:
        super().__init__(mkd_plugin.get_config(CONFIGS[method]), batch_size, CPU, crops=False)
        self.dtype = dtype

    def step(self) -> Tensor:
        with torch.autocast('cpu', self.dtype, enabled=self.dtype != torch.float32):
            return super().step()


def official_dbot(folder: Path, batch_size: int, dtype: torch.dtype) -> Contestant:
    """dBOT's official networks, of the sizes of our config."""
    cfg = mkd_plugin.get_config(CONFIGS['dBOT'])
    student = Ours(cfg, 1, CPU, crops=False).model.backbone
    return Official(folder, student, cfg.model.objectives.feature.head, batch_size, CPU, dtype)


def compare(
    name: str, theirs: Callable[[torch.dtype], Contestant], batch_size: int, pairs: int
) -> list[dict[str, Any]]:
    """Time ours and theirs in float32 and under autocast, all four in turn."""
    dtypes = {'float32': torch.float32, 'amp': torch.bfloat16}
    ours = [OnCPU(name, batch_size, dtype) for dtype in dtypes.values()]
    contestants = [*ours, *(theirs(dtype) for dtype in dtypes.values())]
    for contestant in contestants * WARM_UP:
        contestant.step()
    rounds = run_rounds(contestants, pairs, CPU, torch.float32)
    kept = sorted(rounds, key=lambda one: -one.quiet)[:pairs]
    columns = [[one.timings[index].seconds for one in kept] for index in range(4)]
    rows = []
    for label, mine, other in (('float32', 0, 2), ('amp', 1, 3), ('amp / float32', 1, 2)):
        ratio = pairwise(columns[mine], columns[other])
        row = dict(
            method=name, precision=label, ours=median(columns[mine]), official=median(columns[other]), ratio=ratio
        )
        rows.append({**row, 'quietest': min(one.quiet for one in kept), 'pairs': len(kept)})
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Rows as a table."""
    result = Table(
        'method', 'precision, ours / official', 's per step', 'ratio (quartiles)', 'least share of its cores'
    )
    for row in rows:
        ratio = '{median:.3f} ({low:.3f} – {high:.3f})'.format(**row['ratio'])
        seconds = f'{row["ours"]:.2f} / {row["official"]:.2f}'
        result.add_row(row['method'], row['precision'], seconds, ratio, f'{row["quietest"]:.2f}')
    return result


def main() -> None:
    """Compare with the official codes that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dbot', type=Path, help='checkout of the official dBOT')
    parser.add_argument('--dmae', type=Path, help='checkout of the official DMAE')
    parser.add_argument('--batch-size', type=int, default=16, help='images of a step (default: %(default)s)')
    parser.add_argument('--pairs', type=int, default=5, help='undisturbed rounds to take (default: %(default)s)')
    parser.add_argument('--json', type=Path, help='also write the rows here')
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')  # not a line for every parameter group
    theirs = {'dBOT': (args.dbot, official_dbot), 'DMAE': (args.dmae, OfficialDMAE)}
    rows = []
    for name, (folder, build) in theirs.items():
        if folder is not None:
            rows += compare(name, partial(build, folder, args.batch_size), args.batch_size, args.pairs)
    Console().print(table(rows))
    about = dict(
        cores=os.cpu_count(), threads=torch.get_num_threads(), machine=platform.machine(), torch=torch.__version__
    )
    if args.json:
        args.json.write_text(json.dumps(dict(about=about, batch_size=args.batch_size, rows=rows), indent=1) + '\n')


if __name__ == '__main__':
    main()
