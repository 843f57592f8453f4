"""A hook that writes down what every process of a run saw in every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mkd_plugin.engine.run_utils import bare_model


@HOOKS.register_module()
class Witness(Hook):
    """Writes a line per step: the mean loss of all processes, and file, sum of pixels and mask of each own image."""

    def before_train(self, runner: Any) -> None:
        self.path = Path(runner.work_dir, f'seen_{runner.rank}_of_{runner.world_size}.jsonl')
        bare_model(runner).masking.register_forward_hook(self.look)

    def look(self, masking: Any, inputs: Any, mask: Any) -> None:
        hidden = [''.join(map(str, row)) for row in mask.hidden_BL.int().tolist()]
        self.rows = list(zip(inputs[0].double().flatten(1).sum(1).tolist(), hidden, strict=True))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, 'mean')
        files = [Path(sample.img_path).name for sample in data_batch['data_samples']]
        rows = [[name, *row] for name, row in zip(files, self.rows, strict=True)]
        with self.path.open('a') as file:
            print(json.dumps(dict(step=runner.iter, loss=loss.item(), rows=rows)), file=file)


def seen(folder: Path, ranks: int) -> dict[int, tuple[float, list[Any]]]:
    """Loss and rows of the global batch by step, from what all processes wrote."""
    texts = [(folder / f'seen_{rank}_of_{ranks}.jsonl').read_text().splitlines() for rank in range(ranks)]
    steps = {}
    for lines in zip(*texts, strict=True):
        parts = [json.loads(line) for line in lines]
        rows = [row for turn in zip(*(part['rows'] for part in parts), strict=True) for row in turn]
        steps[parts[0]['step']] = parts[0]['loss'], rows
    return steps
