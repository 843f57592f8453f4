"""Process groups without a GPU, and the runner that a config names."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import torch.distributed
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mkd_plugin.preflight.config import has_accelerator

# What each launcher calls rank, number of processes and rank in the node.
VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def processes_from_environment(launcher: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (rank, number of processes) as the launcher set them. Raises ValueError if it did not start this process."""
    if launcher == 'none':
        return 0, 1
    rank, size, _ = VARIABLES[launcher]
    if rank not in environment or size not in environment:
        raise ValueError(
            f'--launcher {launcher}: the variables {rank} and {size} are not set, so this process was not started by it. '
            'Use tools/dist_train.sh CONFIG GPUS (which calls torchrun), tools/slurm_train.sh, or leave --launcher out.'
        )
    return int(environment[rank]), int(environment[size])


def build_runner(cfg: Config) -> Any:
    """Start the process group if that is needed, and build the runner that the config names."""
    start_process_group(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def start_process_group(cfg: Config) -> None:
    """Start the process group before the Runner does, so that processes can agree before anything is written.

    mmengine's ``init_dist`` selects a GPU for any backend, and raises where there is no driver.
    """
    rank, size = processes_from_environment(cfg.launcher)
    if cfg.launcher == 'none' or torch.distributed.is_initialized():
        return
    if has_accelerator():
        init_dist(cfg.launcher, **((cfg.get('env_cfg') or {}).get('dist_cfg') or {}))
        return
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    local_rank = os.environ.get(VARIABLES[cfg.launcher][2])
    if local_rank is not None:
        os.environ['LOCAL_RANK'] = local_rank
    os.environ.setdefault('MASTER_PORT', '29500')
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodes = ['scontrol', 'show', 'hostnames', os.environ['SLURM_JOB_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.run(nodes, check=True, capture_output=True, text=True).stdout.split()[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout) if timeout else None)
