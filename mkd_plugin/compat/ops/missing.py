"""Refuse a model with layers that need an op which is not there, before it is trained."""

from __future__ import annotations

import inspect
import re
import sys

from torch import nn

from mkd_plugin.compat.hosts import HOSTS


def check_ops(model: nn.Module) -> None:
    """Raise ValueError if a layer of mmcv in the model needs a compiled op that is not there.

    A dry run on a CPU would not find all of them: some layers call the compiled op on a GPU only. A layer's ops are those that
    its file in ``mmcv.ops`` calls. Where mmcv has compiled ops, nothing is refused.
    """
    served = sys.modules.get('mmcv._ext')  # a second copy of ext.py, or mmcv's own library
    if served is None or not hasattr(served, 'how_to_compile'):
        return
    for name, layer in model.named_modules():
        files = {kind.__module__ for kind in type(layer).__mro__ if kind.__module__.startswith('mmcv.ops.')}
        called = {op for file in files for op in re.findall(r'ext_module\.(\w+)', inspect.getsource(sys.modules[file]))}
        missing = sorted(called - vars(served).keys())
        if getattr(layer, 'pool_mode', 'avg') == 'max' and 'mmcv.ops.roi_align' in files:
            missing = ["roi_align with pool_mode='max'"]
        if missing:
            raise ValueError(
                f'model.{name} is a {type(layer).__name__}, which needs {", ".join(missing)} of the ops that mmcv compiles; '
                f'it was installed without them, and torch has none in their place. Use another layer, or {how_to_compile()}'
            )


def how_to_compile() -> str:
    """Return the commands that install mmcv with its ops."""
    mmcv = next(host for host in HOSTS if host.module == 'mmcv')
    installed = mmcv.installed()
    name = mmcv.onedl if mmcv.onedl in installed else 'mmcv'
    return (
        f'install mmcv with compiled ops: `pip uninstall -y {" ".join(installed) or name}`, then `pip install '
        f'--no-build-isolation --no-binary {name} {name}` (about 16 minutes; torch 2.10 was seen to work, 2.14 not).'
    )
