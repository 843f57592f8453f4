"""projects/dense_gains: scenes over photographs, configs and keys, the rule, and the whole experiment, tiny."""

from __future__ import annotations

import json
import pickle
import re
import struct
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from mkd_plugin.reporting.experiment import JobContext, Processes
from projects.dense_gains import data, frozen, page, photographs, recipes, scenes, verdicts
from projects.dense_gains import experiment as experiments
from projects.dense_gains import run as command
from projects.dense_gains.experiment import Experiment, Run
from projects.dense_gains.settings import FULL, SMOKE, TASKS, Tuning, settings_of

ROOT = Path(__file__).resolve().parents[3]
REPORT = ROOT / 'docs/dense_gains/report.json'
COUNTS = dict(train=6, val=3, test=4)


def write_fashion(folder: Path) -> Path:
    """Write Fashion-MNIST's four files, few and random: every article is a different picture."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, count in (('train', 60), ('t10k', 20)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (('images-idx3', pixels), ('labels-idx1', labels)):
            header = struct.pack(f'>{1 + array.ndim}i', 0x800 + array.ndim, *array.shape)
            (folder / f'{name}-{kind}-ubyte').write_bytes(header + array.tobytes())
    return folder


@pytest.fixture(scope='module')
def fashion(tmp_path_factory) -> Path:
    return write_fashion(tmp_path_factory.mktemp('data') / 'fashion')


@pytest.fixture(scope='module')
def root(tmp_path_factory, fashion) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'scenes'
    return scenes.write_natural_scenes(folder, fashion, side=96, seed=5, counts=COUNTS)


# Scenes.


def test_photographs__are_installed_and_large_enough_for_every_split():
    for one in photographs.PHOTOGRAPHS:
        picture = photographs.read_photograph(one)
        for split in photographs.SPLITS:
            assert min(photographs.region(picture, split).shape[:2]) >= photographs.SIDES[1], one
    with pytest.raises(ValueError, match=r'no_such_package does not give a\.png: install'):
        photographs.read_photograph(photographs.Photograph('no_such_package', 'a.png', ''))


def test_draw_background__no_column_of_a_photograph_in_two_splits(monkeypatch):
    column = np.arange(500) // 2  # every region of a width of 500 begins at an even column
    photograph = np.tile(column[None, :, None], (400, 1, 3)).astype(np.uint8)
    monkeypatch.setattr(photographs, 'read_photograph', lambda one: photograph)
    seen = {}
    for split in photographs.SPLITS:
        parts = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            parts.append(photographs.draw_background(split, 96, FixedLight(rng)))
        seen[split] = np.concatenate([part.ravel() for part in parts]) * 255
    assert seen['train'].max() < seen['val'].min() and seen['val'].max() < seen['test'].min()
    assert seen['train'].min() < 5 and seen['test'].max() > 240  # and all of the photograph is used


class FixedLight:
    """A generator that never changes the brightness."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.integers, self.random = rng.integers, rng.random

    def uniform(self, low: float, high: float) -> float:
        return 1.0


def test_objects__no_picture_in_two_splits(fashion):
    for parts, sizes in ((scenes.read_articles(fashion), (55, 5, 20)), (scenes.read_digits(), (1440, 119, 238))):
        assert tuple(len(parts[split].labels) for split in ('train', 'val', 'test')) == sizes
        pictures = [{picture.tobytes() for picture in scans.images} for scans in parts.values()]
        assert sum(map(len, pictures)) == len(set.union(*pictures))
        assert all(scans.images.min() >= 0 and scans.images.max() <= 1 for scans in parts.values())


def test_write_natural_scenes__same_seed_same_bytes(root, fashion, tmp_path):
    def contents(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}

    again = scenes.write_natural_scenes(tmp_path / 'again', fashion, side=96, seed=5, counts=COUNTS)
    assert contents(again) == contents(root)
    other = scenes.write_natural_scenes(tmp_path / 'other', fashion, side=96, seed=6, counts=COUNTS)
    assert contents(other)['coco/test/00000.png'] != contents(root)['coco/test/00000.png']
    with pytest.raises(ValueError, match='holds the scenes of'):
        scenes.write_natural_scenes(root, fashion, side=80, seed=5, counts=COUNTS)


def test_annotations__of_both_formats_agree(root):
    """COCO's boxes and masks by pycocotools, ADE20K's label maps by mmseg's own data set."""
    for split, count in COUNTS.items():
        coco = COCO(str(root / f'coco/annotations/{split}.json'))
        assert [entry['name'] for entry in coco.loadCats(coco.getCatIds())] == list(scenes.CLASSES)
        init_default_scope('mmseg')
        kinds = dict(img_path='images', seg_map_path='annotations')
        folders = {key: f'ade/{kind}/{data.ADE_NAMES[split]}' for key, kind in kinds.items()}
        source = dict(data_root=str(root), data_prefix=folders, metainfo=data.metainfo('segmentation'))
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
        dataset = DATASETS.build(dict(type='BaseSegDataset', img_suffix='.png', pipeline=pipeline, **source))
        assert len(dataset) == len(coco.imgs) == count
        for number in coco.imgs:
            found = dataset[number]
            wanted = np.zeros((96, 96), dtype=np.uint8)
            entries = coco.imgToAnns[number]
            assert scenes.NUM_OBJECTS[0] <= len(entries) <= scenes.NUM_OBJECTS[1]
            for entry in entries:
                mask = coco.annToMask(entry).astype(bool)
                assert entry['bbox'] == coco_masks.toBbox(coco_masks.encode(np.asfortranarray(mask))).tolist()
                assert entry['area'] == mask.sum() and not wanted[mask].any()
                wanted[mask] = 1 + entry['category_id']
            assert found['img'].shape == (96, 96, 3) and (found['gt_seg_map'] == wanted).all()


def test_first_annotations__are_those_of_the_first_scenes(root, tmp_path):
    coco = COCO(str(data.first_annotations(root, 'train', 2, tmp_path / 'few.json')))
    whole = COCO(str(root / 'coco/annotations/train.json'))
    assert list(coco.imgs) == [0, 1] and coco.imgToAnns[1] == whole.imgToAnns[1]
    assert len(coco.anns) == len(whole.imgToAnns[0]) + len(whole.imgToAnns[1])


# Configs and keys.


@pytest.mark.parametrize('name', recipes.RECIPES)
def test_pretrain_config__options_arrive(name):
    cfg = recipes.pretrain_config(name, FULL, lambda network: f'{network}.pth')
    steps = FULL.teacher_steps if name == 'mae-large' else FULL.steps
    assert cfg.train_cfg.max_iters == steps and cfg.train_dataloader.batch_size == FULL.batch
    assert cfg.param_scheduler[1].end == (steps // 2 if name == 'dbot' else steps)
    assert cfg.data_preprocessor.mean == recipes.PIXELS['mean']
    if name == 'supervised':
        assert cfg.train_dataloader.dataset.ann_file == 'crops/train.txt' and not cfg.train_dataloader.dataset.indices
        return
    assert cfg.model.backbone.arch == (FULL.large if name == 'mae-large' else FULL.arch)
    assert cfg.train_dataloader.dataset.data_prefix == 'coco/train' and 'ann_file' not in cfg.train_dataloader.dataset
    found = {teacher.get('checkpoint') for teacher in cfg.model.teachers.values()}
    assert found - {None} == {f'{teacher}.pth' for teacher in recipes.RECIPES[name].teachers}


@pytest.mark.parametrize('task', TASKS)
def test_finetune_config__only_the_start_differs_between_starts(task):
    tuning = Tuning(3e-3, 0.75, 'long')
    scratch, mae = (recipes.finetune_config(task, FULL, tuning, path) for path in (None, 'mae.pth'))
    assert mae.model.backbone.pop('init_cfg').checkpoint == 'mae.pth'
    assert mae.to_dict() == scratch.to_dict() and 'init_cfg' not in scratch.model.backbone
    wrapper = mae.optim_wrapper
    assert (wrapper.optimizer.lr, wrapper.paramwise_cfg.layer_decay_rate) == (3e-3, 0.75)
    assert mae.train_cfg.max_iters == mae.param_scheduler[1].end == FULL.lengths[task]['long']
    assert mae.train_dataloader.dataset.indices == FULL.labelled == 320


def test_key__covers_scenes_settings_and_what_came_before(tmp_path):
    one = Experiment(FULL, tmp_path / 'runs', tmp_path / 'scenes')
    final = Run('final', 'dmae', 0, 'detection', FULL.grid('detection')[0])
    assert replace(one, root=Path('/another'), scenes=Path('/place')).key(final) == one.key(final)
    for change in (dict(counts={**FULL.counts, 'train': 3}), dict(teacher_steps=7), dict(points=9), dict(labelled=5)):
        assert replace(one, settings=replace(FULL, **change)).key(final) != one.key(final)
    grid = FULL.grid('detection')
    assert len({one.key(replace(final, tuning=tuning)) for tuning in grid}) == len(grid) == 6
    frozen_run = Run('frozen', 'dmae', 0)
    assert replace(one, settings=replace(FULL, teacher_steps=7)).key(frozen_run) != one.key(frozen_run)


def test_grid__the_same_for_every_start_and_the_best_is_run_longer(tmp_path):
    experiment = Experiment(FULL, tmp_path / 'runs', tmp_path / 'scenes')
    short = experiment.grid('short')
    assert sum(run.kind == 'tune' for run in short) == len(recipes.STARTS) * len(TASKS) * 6
    assert {run.seed for run in short} == {0}
    assert pickle.loads(pickle.dumps(experiment.jobs(short)[0].run)).args == (short[0],)  # for worker processes
    with pytest.raises(ValueError, match='This job is not finished: tune scratch, seed 0, detection'):
        experiment.grid('long')
    for run in short:
        if run.kind == 'tune':
            number = FULL.grid(run.task).index(run.tuning)
            scores = dict(miou=number) if run.task == 'segmentation' else dict(box=number, mask=-3 * number)
            experiment.store.write(experiment.key(run), str(run), dict(val=scores))
    best = dict(detection=FULL.grid('detection')[0], segmentation=FULL.grid('segmentation')[-1])
    for run in experiment.grid('long'):
        if run.kind == 'tune':
            assert replace(run.tuning, length='short') == best[run.task] and run.tuning.length == 'long'
            experiment.store.write(experiment.key(run), str(run), dict(val=dict(box=9.0, mask=0.0, miou=1.0)))
    finals = experiment.finals()
    chosen = {(run.task, run.tuning) for run in finals if run.kind == 'final'}
    assert chosen == {('detection', replace(best['detection'], length='long')), ('segmentation', best['segmentation'])}
    assert sum(run.kind == 'final' for run in finals) == 6 * 2 * 3 and len(set(finals)) == len(finals)
    for run in finals:
        assert all(finals.index(earlier) < finals.index(run) for earlier in experiment.dependencies(run))


def test_execute__a_setting_that_diverges_scores_nothing(tmp_path, root, monkeypatch, one_thread):
    class Diverging:
        def register_hook(self, hook):
            pass

        def train(self):
            raise FloatingPointError('the loss is nan')

    monkeypatch.setattr(experiments.Runner, 'from_cfg', lambda cfg: Diverging())
    experiment = Experiment(FULL, tmp_path / 'runs', root)
    context = JobContext(tmp_path, print, 0, Processes())
    run = Run('tune', 'scratch', 0, 'detection', FULL.grid('detection')[0])
    zeros = dict(box=0.0, mask=0.0)
    for kind in ('tune', 'final'):
        found = experiment.execute(replace(run, kind=kind), context)
        assert (found['val'], found['train'], found['test'], found['losses']) == (zeros, zeros, zeros, [])
        assert found['curves'] == dict(box=[0.0] * FULL.points, mask=[0.0] * FULL.points)


# The rule.


def test_judge__best_on_val_and_more_than_twice_the_spread_on_test():
    def seeds(*values):
        return dict(scratch=[10.0, 11.0, 12.0], mae=list(values), dbot=[13.0, 13.0, 13.0], supervised=[50.0] * 3)

    test = dict(box=seeds(12.0, 13.1, 13.9), mask=seeds(9.0, 10.0, 11.1), miou=seeds(10.5, 12.0, 14.5))
    val = {name: dict(scratch=[1.0], mae=[5.0], dbot=[2.0], supervised=[9.0]) for name in data.NAMES}
    found = verdicts.judge(dict(test=test, val=val))
    assert found['best'] == dict(detection='mae', segmentation='mae')
    assert found['verdicts'] == dict(box='gain', mask='loss', miou='within the spread') and not found['reached']
    box = found['compared']['box']['mae']
    assert box['seeds'] == [2.0, 2.1, 1.9] and box['mean'] == 2.0 and box['spread'] == pytest.approx(0.1)
    half = 4.3027 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    assert (box['low'], box['high']) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    miou = found['compared']['miou']['mae']
    assert miou['mean'] <= 2 * miou['spread'] and miou['low'] < 0


# The linear segmentor.


def test_patch_labels__is_the_commonest_class_of_the_patch():
    maps = np.zeros((1, 16, 8), dtype=np.uint8)
    maps[0, :5] = 3  # 40 of 64 pixels
    maps[0, 8:11] = 7  # 24 of 64
    assert frozen.patch_labels(maps).tolist() == [[3, 0]]


def test_mean_iou__of_two_classes():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert frozen.mean_iou(labels, predicted) == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


# The page in docs.


def test_page__follows_from_its_report(tmp_path):
    report = json.loads(REPORT.read_text())
    assert settings_of(report['settings']) == FULL and verdicts.judge(report['scores']) == report['verdict']
    command.picture_folder(tmp_path / 'dense_gains.md')
    page.write_page(report, tmp_path / 'dense_gains.md')
    assert (tmp_path / 'dense_gains.md').read_text() == (ROOT / 'docs/dense_gains.md').read_text()


# From end to end.


def test_parse_args__refuses(monkeypatch, capsys):
    refused = ((['--jobs', '0'], "'0' is not allowed"), (['--report-only', '--page', 'no/p.md'], 'no/p/report.json'))
    for words, message in refused:
        monkeypatch.setattr(sys, 'argv', ['run.py', *words])
        with pytest.raises(SystemExit):
            command.parse_args()
        assert message in capsys.readouterr().err


def fill(experiment: Experiment, runs: Iterable[Run], scores: dict[str, float]) -> None:
    """Store made-up results of runs that this test does not wait for."""
    for run in runs:
        if run not in REAL:
            points = {name: [score] for name, score in scores.items()}
            final = dict(train=scores, test=scores, curves=points, losses=[3.0, 2.0, 1.0])
            blocks = dict(train=[9.0] * 6, test=[8.0] * 6)
            value = dict(frozen=blocks, final=dict(final, val=scores)).get(run.kind, dict(val=scores))
            experiment.store.write(experiment.key(run), str(run), value)


(SHORT,) = SMOKE.grid('detection')
LONG = replace(SHORT, length='long')
REAL = (
    Run('pretrain', 'mae', 0),
    Run('tune', 'mae', 0, 'segmentation', LONG),
    Run('final', 'mae', 0, 'detection', LONG),
    Run('frozen', 'mae', 0),
)


def test_run__one_job_of_each_kind_and_the_page(tmp_path, fashion, monkeypatch, capsys, one_thread):
    monkeypatch.setattr(sys, 'argv', ['run.py', '--smoke', '--jobs', '1', '--fashion', str(fashion)])
    monkeypatch.chdir(tmp_path)
    experiment = command.experiment_of(command.parse_args())
    fill(experiment, experiment.grid('short'), dict(box=1.0, mask=1.0, miou=1.0))
    fill(experiment, experiment.grid('long'), dict(box=2.0, mask=2.0, miou=2.0))
    for length in (SHORT, LONG):  # the long segmentor of mae may be chosen or not
        monkeypatch.setattr(Experiment, 'chosen', lambda self, start, task, tuning=length: tuning)
        fill(experiment, experiment.finals(), dict(box=3.0, mask=4.0, miou=5.0))
    monkeypatch.undo()
    monkeypatch.setattr(sys, 'argv', ['run.py', '--smoke', '--jobs', '1', '--fashion', str(fashion)])
    monkeypatch.chdir(tmp_path)
    for run in REAL:
        if run.kind == 'final':  # one that was killed
            cut_off = experiment.store.work_dir(experiment.key(run)) / 'attempt'
            cut_off.mkdir(parents=True)
            (cut_off / 'metrics.jsonl').write_text('{}')

    assert command.main() == 0
    printed = capsys.readouterr().out
    for run in REAL:
        assert str(run) in printed.replace('\n', ' ')
    written = tmp_path / 'work_dirs/dense_gains/dense_gains.md'
    report = json.loads((written.with_suffix('') / 'report.json').read_text())
    assert settings_of(report['settings']) == SMOKE and verdicts.judge(report['scores']) == report['verdict']
    assert report['chosen']['detection']['mae'] == dict(lr=1e-3, decay=0.85, length='long')
    for split in ('train', 'val', 'test'):
        for name in data.NAMES:
            scores = report['scores'][split][name]
            assert set(scores) == set(command.SMOKE_STARTS)
            assert all(len(seeds) == SMOKE.seeds and 0 <= min(seeds) <= max(seeds) <= 100 for seeds in scores.values())
    assert len(report['curves']['detection']['mae'][0]['box']) == SMOKE.points
    assert len(report['losses']['detection']['mae'][0]) == SMOKE.lengths['detection']['long']
    found = report['frozen']['mae'][0]
    assert len(found['train']) == len(found['test']) == 6 and 0 < min(found['train']) < max(found['train']) <= 100
    text = written.read_text()
    for name in re.findall(r'\((dense_gains/\w+\.png)\)', text):
        with Image.open(written.parent / name) as picture:
            assert min(picture.size) > 100 and len(picture.convert('RGB').getcolors(2**24)) > 15
    assert len(re.findall(r'!\[', text)) == 5 and '{' not in text

    assert command.main() == 0  # everything is done already
    again = capsys.readouterr().out
    assert all(total == done for total, done in re.findall(r'(\d+) jobs, (\d+) already done', again))
    assert json.loads((written.with_suffix('') / 'report.json').read_text()) == report
