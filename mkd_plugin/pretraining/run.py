"""Pre-train on a folder of images in one call: choose a recipe, write its config, train it, and report."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.fileio import get
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mkd_plugin.engine.checkpoints import newest_checkpoint
from mkd_plugin.engine.run_folder import files_of_run, resume_command
from mkd_plugin.evaluation.features import Feature, compute
from mkd_plugin.evaluation.images import Preprocessing, class_folders, open_images, spread
from mkd_plugin.evaluation.knn import knn_accuracy
from mkd_plugin.interop.open_model import open_model
from mkd_plugin.interop.specs import parse_specs
from mkd_plugin.preflight.batch import out_of_memory
from mkd_plugin.preflight.checks import check_work_dir
from mkd_plugin.preflight.config import fit_to_device, has_bfloat16
from mkd_plugin.preflight.memory import GIB, memory_free, memory_needed
from mkd_plugin.preflight.plan import MIN_STAGE, build_for_step, fake_batch, run_step
from mkd_plugin.preflight.tracking import check_wandb
from mkd_plugin.pretraining.config import TeacherFile, config_of, schedule_of_method, text_of
from mkd_plugin.pretraining.recipe import METHODS, STUDENTS, Data, Machine, Recipe, Request, choose, fit_to_time, table
from mkd_plugin.utils.files import write_whole

CONFIG = 'pretrain.py'  # in the output folder
MEASURED = 64  # images whose size is read
JUDGED = 2000  # images of the k-NN figure, at most
NEIGHBOURS = 10
CPU_TRIAL = 8  # images of the trial steps on a CPU, at most


@dataclass(frozen=True)
class Images:
    """The user's images: config of the dataset, and what the rules need to know."""

    path: Path
    dataset: dict[str, Any]
    data: Data


def find_images(path: str | Path) -> Images:
    """Look at a folder of images or of tar shards, or a list of paths. Raises ValueError if no image is there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f'{path} does not exist. Give a folder of images or of tar shards, or a list of paths.')
    if path.is_file():
        dataset = dict(type='mkd_plugin.ImageFolder', data_root=str(path.parent.absolute()), ann_file=path.name)
    else:
        kind = 'ShardDataset' if next(path.glob('*.tar'), None) else 'ImageFolder'
        dataset = dict(type=f'mkd_plugin.{kind}', data_root=str(path.absolute()))
    built = DATASETS.build(dict(dataset, pipeline=[]))
    edges: list[int] = []
    first: str | None = None
    for index in spread(len(built), MEASURED):
        try:
            with Image.open(io.BytesIO(get(built.get_data_info(index)['img_path']))) as image:
                edges.append(min(image.size))
        except (OSError, ValueError) as error:  # the run replaces unreadable images, and lists them
            first = first or str(error)
    if not edges:
        raise ValueError(
            f'{path}: none of {min(MEASURED, len(built))} images that were tried can be read; the first: {first}'
        )
    return Images(path, dataset, Data(len(built), int(np.median(edges))))


def find_machine(devices: str) -> Machine:
    """Return what trains. Raises ValueError for devices that are not there."""
    there = torch.cuda.device_count() if get_device() == 'cuda' else 0
    if devices not in ('auto', 'cpu') and not (devices.isdecimal() and 1 <= int(devices) <= max(there, 0)):
        raise ValueError(f"--devices {devices}: give 'auto', 'cpu', or a number of GPUs; this machine has {there}.")
    gpus = there if devices == 'auto' else 0 if devices == 'cpu' else int(devices)
    return Machine(gpus, len(os.sched_getaffinity(0)), gpus > 0 and has_bfloat16())


def open_teachers(texts: Sequence[str]) -> dict[str, TeacherFile]:
    """Open every teacher's file, so that a wrong one is noticed before anything else. Raises ValueError for a wrong file."""
    teachers = {}
    for number, spec in enumerate(parse_specs(texts)):
        if not spec.path.exists():
            raise ValueError(f'--teacher {spec.text}: {spec.path} does not exist.')
        name = spec.name if spec.name.isidentifier() else f'teacher{number}'
        of_timm = spec.timm_model is not None and not spec.timm_model.startswith(('vit_', 'deit_', 'beit'))
        teachers[name] = TeacherFile(spec, None if of_timm else open_model(spec, known={}, device='cpu'))
    return teachers


def try_steps(cfg: Config, recipe: Recipe, machine: Machine) -> None:
    """Run two steps; halve the images at once until they fit in memory, and shorten the run on a CPU."""
    while True:
        images = recipe.images_at_once if machine.gpus else min(recipe.images_at_once, CPU_TRIAL)
        try:
            seconds = time_of_step(cfg, images)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            before = recipe.images_at_once
            recipe.halve()
            print(
                f'{before} images at once do not fit in memory: trying {recipe.images_at_once}, and accumulating '
                f'{recipe.accumulate} steps'
            )
            torch.cuda.empty_cache()
    if not machine.gpus:
        fit_to_time(recipe, seconds * recipe.images_at_once / images)


def time_of_step(cfg: Config, images: int) -> float:
    """Return the seconds of a training step on random images."""
    init_default_scope('mmpretrain')
    if not MMLogger.check_instance_created('pretrain'):  # mmengine logs a line for every tensor without weight decay
        MMLogger.get_instance('pretrain', log_level='WARNING')
    cfg = Config(dict(cfg.to_dict(), launcher='none'))
    fit_to_device(cfg)
    model, optim_wrapper = build_for_step(cfg)
    return run_step(model, optim_wrapper, fake_batch(cfg, images)).seconds


def check_memory(config: Callable[[str], Config], student: str) -> None:
    """Raise ValueError if a step of one image of a student does not fit; ``config`` gives the run's for a student."""
    free = memory_free()
    for size in list(STUDENTS)[list(STUDENTS).index(student) :: -1]:
        kept, saved = memory_needed(config(size), 1)
        total = sum(kept) + saved
        if size == student:
            told = f'--student {student} needs {total / GIB:.1f} GiB for a step of one image, {free / GIB:.1f} GiB are free'
        if total <= free:
            break
    else:
        raise ValueError(f'{told}, and no smaller --student fits: free memory.')
    if size != student:
        raise ValueError(f'{told}. --student {size} fits: {total / GIB:.1f} GiB.')


def train(config: Path, out: Path, machine: Machine, *, resume: bool, wandb: str | None = None) -> int:
    """Run ``mkd train`` on the written file, on every GPU; return its exit code."""
    command = [sys.executable, '-m']
    if machine.processes > 1:
        command += ['mkd_cli.torchrun', f'--nproc_per_node={machine.processes}', '--standalone', '-m']
    command += ['mkd_cli.main', 'train', str(config), '--work-dir', str(out)]
    command += ['--launcher', 'pytorch'] if machine.processes > 1 else []
    command += ['--resume'] if resume else []
    command += [f'--wandb={wandb}'] if wandb else []
    environment = dict(os.environ, **({'CUDA_VISIBLE_DEVICES': ''} if machine.gpus == 0 else {}))
    own_command = resume_command()
    if own_command is not None:  # the trainer names it when it is interrupted
        environment['MKD_COMMAND'] = own_command
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal sent it to the trainer too, which saves
            continue


def knn_figure(model: str, folder: Path) -> str | None:
    """Return k-NN accuracy of frozen features, every fifth image against the others; None without class folders."""
    if not folder.is_dir() or len(class_folders(folder)) < 2:
        return None
    subject = open_model(parse_specs([model])[0], known={}, device=get_device())
    try:
        images = open_images(folder, Preprocessing.standard(subject.network.image_hw))
    except ValueError:  # folders that are not classes
        return None
    chosen = spread(len(images), JUDGED)
    feature = Feature()
    batches = torch.utils.data.DataLoader(torch.utils.data.Subset(images, chosen), batch_size=32)
    values_ND = torch.cat([compute(subject, batch.float() / 255, [feature])[feature].cpu() for batch in batches])
    labels_N = images.labels[chosen]
    queries = torch.arange(len(chosen)) % 5 == 0
    k = min(NEIGHBOURS, int((~queries).sum()))
    found = knn_accuracy(values_ND[~queries], labels_N[~queries], values_ND[queries], labels_N[queries], ks=(k,))
    most = 100 * labels_N[queries].bincount().max().item() / int(queries.sum())
    return (
        f'k-NN (k = {k}) on {int(queries.sum())} images against {int((~queries).sum())}: {found[k]:.1f} %; the most '
        f'frequent class is {most:.1f} %'
    )


def pretrain(
    images: str | Path,
    *,
    method: str | None = None,
    student: str | None = None,
    teachers: Sequence[str] = (),
    size: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    out: str | Path | None = None,
    devices: str = 'auto',
    resume: bool = False,
    plan_only: bool = False,
    wandb: str | None = None,
) -> Path | None:
    """Pre-train a ViT on images without labels; ``mkd pretrain`` in Python.

    Args:
        images: Folder of images or of tar shards, or a list of paths.
        method: 'dbot', 'mae', 'maskdistill', 'dmae' or 'hybrid'; by default chosen by the number of teachers.
        student: 'ti', 's', 'b' or 'l'.
        teachers: Files, as ``[NAME=][NETWORK=]FILE[#PART]``.
        size: Side of the crops, pixels.
        epochs: Epochs of the whole run.
        batch: Images of an update.
        out: Folder of the config, the logs and the checkpoints; ``work_dirs/pretrain_<images>`` by default.
        devices: 'auto', 'cpu', or a number of GPUs.
        resume: Continue the run in ``out``.
        plan_only: Write the config and stop.
        wandb: Project of Weights & Biases to record the run in.

    Returns:
        The last checkpoint; None with ``plan_only``.

    Raises:
        ValueError: An input is wrong; nothing has been written.
        RuntimeError: Training failed; its message is above.
    """
    out = Path(out or Path('work_dirs', f'pretrain_{Path(images).absolute().stem}'))
    config, machine = out / CONFIG, find_machine(devices)
    if wandb:
        check_wandb()
    if resume:
        if not config.is_file():
            raise ValueError(f'--resume: {out} has no {CONFIG}. Give the --out of the run to continue.')
    else:
        if files_of_run(out):
            raise ValueError(f'--out {out} holds a run already. Add --resume to continue it, or name another folder.')
        found = find_images(images)
        opened = open_teachers(teachers)
        request = Request(method, len(opened), student, size, epochs, batch)
        text = plan(found, opened, request, machine, out)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(config, text)
        print(f'written: {config}. It also runs alone: mkd train {config} --work-dir {out}')
    if plan_only:
        return None
    code = train(config, out, machine, resume=resume, wandb=wandb)
    if code:
        raise TrainingStopped(code)
    checkpoint = newest_checkpoint(out)
    assert checkpoint is not None
    report(Path(checkpoint), Path(images), out)
    return Path(checkpoint)


class TrainingStopped(RuntimeError):
    """Training ended before its end, with the trainer's exit code ``code``; the message is printed already."""

    def __init__(self, code: int) -> None:
        super().__init__(f'training stopped with exit code {code}; its message is above')
        self.code = code


def plan(found: Images, teachers: dict[str, TeacherFile], request: Request, machine: Machine, out: Path) -> str:
    """Choose the recipe, try it, and return the text of the config."""
    check_work_dir(out)
    schedules = {name: schedule_of_method(name) for name in METHODS}
    recipe = choose(request, found.data, machine, schedules)
    init_default_scope('mmpretrain')

    def config_for(student: str) -> Config:
        tried = choose(replace(request, student=student), found.data, machine, schedules)
        return config_of(tried, found.dataset, teachers)

    check_memory(config_for, recipe.student)
    cfg = config_of(recipe, found.dataset, teachers)
    if request.epochs is None or machine.gpus:
        try_steps(cfg, recipe, machine)
    cfg = config_of(recipe, found.dataset, teachers)
    print(f'{found.path}: {found.data.images:,} images')
    for name, value, why in table(recipe, found.data):
        print(f'  {name:<10} {value:<34} {why}')
    if found.data.short_edge < recipe.size:
        print(
            f'warning: half of the images have a short edge of at most {found.data.short_edge} px: they are enlarged to crops '
            f'of {recipe.size} px'
        )
    if recipe.steps < MIN_STAGE:
        print(
            f'warning: {recipe.steps} updates a stage; with fewer than {MIN_STAGE} little is learned: give more --epochs'
        )
    command = (resume_command() or 'mkd_plugin.pretrain').removesuffix(' --resume')
    return text_of(cfg, recipe, found.data, command)


def report(checkpoint: Path, images: Path, out: Path) -> None:
    """Say what was made, how good it is, and what people need next."""
    print(f'made: {checkpoint}')
    try:
        figure = knn_figure(str(checkpoint), images)
    except ValueError as error:  # such as an image that training replaced
        figure = f'no k-NN accuracy: {error}'
    if figure:
        print(figure)
    print(
        f'next:\n  mkd look {checkpoint} {images} --out {out / "look.html"}\n'
        f'  mkd features {checkpoint} {images} --out {out / "features.npz"}\n'
        f'  mkd export {checkpoint} {out / "student.onnx"} --to onnx'
    )
