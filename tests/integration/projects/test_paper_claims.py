"""projects/paper_claims: keys, resuming, claims, the page; and one claim from end to end, tiny."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.datasets import write_digits
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.students import VisibleViT
from mkd_plugin.reporting.experiment import JobContext, Processes, run_jobs
from projects.paper_claims import claims, digits, fashion, measures, page, recipes, settings, training, verdicts
from projects.paper_claims import experiment as experiments
from projects.paper_claims import run as command
from projects.paper_claims.experiment import Experiment, Run

ROOT = Path(__file__).resolve().parents[3]
BENCHES = [digits.BENCH, fashion.BENCH]


@pytest.fixture
def experiment(tmp_path):
    """The smoke settings in an empty folder."""
    return Experiment(digits.BENCH, digits.SMOKE, tmp_path / 'runs', tmp_path / 'digits')


# Claims and their runs.


@pytest.mark.parametrize('bench', BENCHES, ids=lambda bench: bench.name)
def test_claims__every_network_is_trained_and_every_training_is_needed(bench):
    needed = {bench.recipe_of(name) for claim in bench.claims for name in claim.networks}
    teachers = {bench.recipe_of(name) for recipe in bench.recipes.values() for name in recipe.teachers}
    assert needed | teachers == set(bench.recipes)
    assert sorted(claim.number for claim in bench.claims) == list(range(1, len(bench.claims) + 1))
    assert all(any(row.decides for row in claim.comparisons) for claim in bench.claims)


def test_recipe_of__unknown_network():
    with pytest.raises(ValueError, match="'mae-9'.*'random-1'"):
        digits.BENCH.recipe_of('mae-9')


def test_comparison__difference_of_means_and_of_spreads():
    scores = {'a': 80.0, 'b': 90.0, 'c': 70.0, 'd': 71.0}
    assert claims.Comparison('', ('a', 'b'), ('c', 'd')).value(scores) == pytest.approx(85 - 70.5)
    spread = claims.Comparison('', ('a', 'b'), ('c', 'd'), stdev)
    assert spread.value(scores) == pytest.approx(np.std([80, 90], ddof=1) - np.std([70, 71], ddof=1))


def config_of(bench, name, sizes=None):
    """A pre-training's config."""
    return recipes.pretrain_config(
        bench.recipes[name], sizes or bench.full, lambda network: f'{network}.pth', bench.images
    )


@pytest.mark.parametrize('name', digits.RECIPES)
def test_pretrain_config__trains_on_the_training_split_only(name):
    dataset = config_of(digits.BENCH, name).train_dataloader.dataset
    assert dataset.data_prefix == 'train'
    assert dataset.get('with_label', True) == (name == 'supervised-teacher')


@pytest.mark.parametrize('name', fashion.RECIPES)
def test_pretrain_config__fashion_mnist_for_as_many_steps_as_its_units(name):
    cfg = config_of(fashion.BENCH, name)
    dataset, images = cfg.train_dataloader.dataset, fashion.BENCH.images
    assert (dataset.type, dataset.split, dataset.indices or 60_000) == ('FashionMNIST', 'train', 60_000)
    assert 'scale=28' in repr(dataset.pipeline).replace("'scale': ", 'scale=') and 'RandomFlip' in repr(
        dataset.pipeline
    )
    assert (cfg.model.backbone.img_size, cfg.model.backbone.in_channels) == (images.side, images.channels)
    units = fashion.RECIPES[name].lengths
    per_unit = 3 * 938  # three epochs of 60,000 images in batches of 64
    assert cfg.train_cfg.max_iters == units * per_unit == fashion.FULL.steps(units)
    stages = 2 if 'dbot' in name and name != 'dbot-momentum' else 1
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_iters // stages
    for teacher in (cfg.model.get('teachers') or {}).values():
        assert teacher.get('pixel_mean', [72.9]) == [72.9]


def test_pretrain_config__options_arrive():
    def model(name, bench=digits.BENCH):
        return config_of(bench, name).model

    assert model('dbot-mae').teachers.boot.start.checkpoint == 'mae-0.pth'
    assert model('dbot-random').teachers.boot.start == 'student'
    assert model('dbot-raw-contrastive').objectives.feature.normalize is None
    assert model('dmae-0.90').masking.ratio == 0.9
    assert (model('hybrid-0').objectives.relation.weight, model('hybrid-1').objectives.relation.weight) == (0, 1)
    kept = config_of(digits.BENCH, 'dbot-kept').model
    assert (kept.teachers.boot.reset_student, kept.teachers.boot.stages) == (False, 2)
    assert model('dmae-0.90', fashion.BENCH).teachers.mae.arch == fashion.FULL.large
    assert (model('fd', fashion.BENCH).backbone.type, model('fd', fashion.BENCH).masking.type) == (
        'PlainViT',
        'NoMasking',
    )
    losses = [model(name, fashion.BENCH).objectives.feature for name in ('maskdistill', 'maskdistill-raw')]
    assert losses[0].loss == losses[1].loss and (losses[0].normalize is None, losses[1].normalize is None) == (
        False,
        True,
    )
    assert model('dbot-momentum', fashion.BENCH).teachers.boot.type == 'MomentumTeacher'


# Keys, order, resuming.


def test_key__covers_config_seed_and_what_came_before(experiment):
    student, fine = Run('pretrain', 'dbot-mae', 0), Run('finetune', 'mae-2', 0, 'finetuned', 1)
    elsewhere = replace(experiment, root=Path('/another'), data_root=Path('/place'))
    assert elsewhere.key(student) == experiment.key(student)
    assert experiment.key(replace(student, seed=1)) != experiment.key(student)
    assert experiment.key(replace(fine, draw=0)) != experiment.key(fine)

    two = {'finetuned': replace(digits.SMOKE.finetunings['finetuned'], labels=2)}
    labels = replace(experiment, settings=replace(digits.SMOKE, finetunings=two))
    assert labels.key(student) == experiment.key(student)
    assert labels.key(fine) != experiment.key(fine)
    teacher = replace(experiment, settings=replace(digits.SMOKE, decoder_width=12))
    assert teacher.key(fine) != experiment.key(fine)  # through the checkpoint it starts from


def test_plan__every_job_once_after_what_it_needs(experiment):
    jobs = experiment.plan(['mae-2', 'hybrid-alpha1', 'mae-0'])
    assert len(set(jobs)) == len(jobs)
    for number, job in enumerate(jobs):
        assert set(experiment.dependencies(job)) <= set(jobs[:number])
    assert sum(job.kind == 'finetune' for job in jobs) == 3 * 2 * 2
    assert {job.name for job in jobs if job.kind == 'pretrain'} == {
        'mae', 'supervised-teacher', 'dbot-mae', 'hybrid-1',
    }  # fmt: skip


def test_jobs__depend_on_the_runs_that_they_need(experiment):
    student = Run('pretrain', 'dbot-mae', 0)
    runs = [Run('pretrain', 'mae', 0), student, Run('finetune', 'mae-2', 0, 'finetuned', 1)]
    teacher, student, fine = experiment.jobs(runs)
    assert (teacher.dependencies, student.dependencies) == ((), (teacher.key,))
    assert fine.dependencies == (student.key,)
    assert (student.cost, fine.cost) == (8, 4)  # 2 stages of 2 epochs of 2 steps; 4 steps


def execute(experiment, run):
    """Run a job as the experiment runner does, in this process; return its folder."""
    key = experiment.key(run)
    experiment.store.work_dir(key).mkdir(parents=True, exist_ok=True)
    context = JobContext(experiment.store.work_dir(key), lambda fraction: None, 0, Processes())
    experiment.execute(run, context)
    return context.work_dir


def test_execute__interrupted_pretraining_ends_as_one_that_was_not(experiment, monkeypatch):
    write_digits(experiment.data_root)
    run = Run('pretrain', 'dbot-random', 0)
    execute(experiment, run)
    again = replace(experiment, root=experiment.root.with_name('again'))
    steps, loss = [], MaskedDistiller.loss

    def stopped(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 6:  # of 4 epochs × 2 steps
            raise KeyboardInterrupt
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(MaskedDistiller, 'loss', stopped)
    with pytest.raises(KeyboardInterrupt):
        execute(again, run)
    execute(again, run)
    assert len(steps) == 6 + 4  # from the end of epoch 2 on

    networks = []
    for place in (experiment, again):
        networks.append(VisibleViT(arch=digits.SMOKE.arch, img_size=24, patch_size=4))
        load_backbone(networks[-1], place.checkpoint('random-2', 0))
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)


# Scores.


def test_features__are_means_of_the_last_blocks_patch_tokens(experiment):
    root = write_digits(experiment.data_root)
    images, labels = experiment.bench.images.read('test', root)
    assert images.shape == (357, 3, 24, 24) and abs(images.mean()) < 0.2 and 0.8 < images.std() < 1.2
    assert labels.bincount().tolist() == [len(list(folder.iterdir())) for folder in sorted((root / 'val').iterdir())]
    network = VisibleViT(arch=digits.SMOKE.arch, img_size=24, patch_size=4).eval()
    with torch.no_grad():
        wanted = network(images, taps=('block:-1',)).tokens('block:-1')[:, network.num_prefix :].mean(dim=1)
    found, same_labels = measures.features(network, (images, labels))
    torch.testing.assert_close(found, wanted)
    assert same_labels is labels


def test_attention__of_a_network_that_attends_alike_everywhere():
    network = VisibleViT(arch=digits.SMOKE.arch, img_size=24, patch_size=4).eval()
    torch.nn.init.zeros_(network.layers[-1].attn.qkv.weight)
    found = measures.attention(network, torch.randn(4, 3, 24, 24))
    places = 4 * np.stack(np.meshgrid(range(6), range(6)), -1).reshape(-1, 2)
    wanted = np.linalg.norm(places[:, None] - places[None], axis=-1).mean()
    assert found == pytest.approx(dict(distance=wanted, nmi=0.0), abs=1e-3)


def test_probe_accuracy__finds_a_line_whatever_the_channels_scales():
    random = np.random.default_rng(0)
    features = random.normal(size=(80, 2)) * [1e-3, 1e3] + 5
    labels = (features[:, 0] > 5).astype(int)
    features, labels = torch.from_numpy(features), torch.from_numpy(labels)
    assert measures.probe_accuracy((features[:60], labels[:60]), (features[60:], labels[60:])) >= 95


# The page.


@pytest.fixture(params=BENCHES, ids=lambda bench: bench.name)
def published(request):
    """A bench and the report that is committed for it."""
    bench = request.param
    return bench, json.loads((ROOT / f'docs/{bench.page}/report.json').read_text())


def test_judge__stored_verdicts_follow_from_the_stored_scores(published):
    bench, stored = published
    claims = bench.chosen(claim['number'] for claim in stored['claims'])
    assert verdicts.judge(bench, claims, stored['scores']) == stored['claims']
    sizes = settings.settings_of(stored['settings'])
    assert replace(sizes, seeds=bench.full.seeds) == bench.full and sizes.seeds >= 3
    if bench is digits.BENCH:
        assert sizes.finetunings['finetuned'].draws >= 10
    for measure, tuning in sizes.finetunings.items():
        for seeds in stored['scores'][measure].values():
            assert [len(draws) for draws in seeds] == [tuning.draws] * sizes.seeds


def test_write_page__the_page_in_docs_is_its_reports(published, tmp_path):
    bench, stored = published
    written = tmp_path / f'{bench.page}.md'
    page.write_page(bench, stored, written, command=command.command_of(bench, stored))
    text = written.read_text()
    assert ('**Planned but not run**' in text) == bool(bench.left_out(stored))
    assert text == (ROOT / f'docs/{bench.page}.md').read_text()
    pictures = [f'claim_{claim["number"]}' for claim in stored['claims']]
    pictures += ['stages'] if bench is digits.BENCH else ['stages', 'attention']
    if bench is digits.BENCH:
        assert len(pictures) == 6 + 1
    for name in pictures:
        assert f'({bench.page}/{name}.png)' in text
        assert (ROOT / f'docs/{bench.page}/{name}.png').is_file()
        with Image.open(tmp_path / f'{bench.page}/{name}.png') as picture:
            assert min(picture.size) > 100 and len(picture.convert('RGB').getcolors(2**24)) > 20


def test_write_page__of_a_part_draws_no_conclusions(tmp_path):
    """The texts were written about the whole experiment."""
    stored = json.loads((ROOT / 'docs/fashion/report.json').read_text())
    part = dict(stored, claims=[claim for claim in stored['claims'] if claim['number'] == 4])
    part['settings'] = dict(stored['settings'], seeds=4)
    written = tmp_path / 'fashion.md'
    page.write_page(fashion.BENCH, part, written, command=(line := command.command_of(fashion.BENCH, part)))
    text = written.read_text()
    assert '## What to believe' not in text and '## How it is judged' in text and 'claim 1, claim 2' in text
    assert line == 'python projects/paper_claims/run.py --bench fashion --claim 4 --seeds 4'


def test_prepare__says_which_files_are_missing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError('no network')

    monkeypatch.setattr('mmpretrain.datasets.mnist.MNIST._download', fail)
    with pytest.raises(
        ValueError, match=r'cannot be downloaded \(no network\). Put its four files there, unpacked: train-'
    ):
        fashion.BENCH.images.prepare(tmp_path)


# The command line, from end to end.


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--seeds', '1'], 'of at least 2'),
        (['--claim', '7'], r'--claim [7]: the claims are [1, 2, 3, 4, 5, 6]'),
        (['--report-only', '--page', 'nowhere/page.md'], 'there is no nowhere/page/report.json'),
        (['--pilot'], '--pilot needs --bench fashion'),
        (['--bench', 'fashion', '--pilot', '--report-only'], 'leave --report-only out'),
    ],
)
def test_parse_args__refuses(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['run.py', *words])
    with pytest.raises(SystemExit):
        command.parse_args()
    assert message in capsys.readouterr().err


def test_parse_args__a_part_does_not_replace_the_page_in_docs(monkeypatch):
    def page_of(*words):
        monkeypatch.setattr(sys, 'argv', ['run.py', '--work-dir', 'runs', *words])
        return command.parse_args().page

    assert page_of() == ROOT / 'docs/small_scale.md'
    assert page_of('--claim', '1') == page_of('--smoke') == Path('runs/small_scale.md')


def test_run__one_claim_and_again(tmp_path):
    options = ['--smoke', '--claim', '3', '--draws', '1', '--work-dir', 'runs', '--data-root', 'digits']
    program = [sys.executable, str(ROOT / 'projects/paper_claims/run.py'), *options]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert '12 jobs, 0 already done' in done.stdout  # 2 seeds × (2 trainings + 2 networks × (1 draw + 1))
    text = (tmp_path / 'runs/small_scale.md').read_text()
    assert '## 3. Re-initialising the student beats keeping it' in text and '## 1.' not in text
    found = json.loads((tmp_path / 'runs/small_scale/report.json').read_text())
    (claim,) = found['claims']
    values = np.subtract(*(np.mean(found['scores']['finetuned'][name], axis=1) for name in ('random-2', 'kept-2')))
    assert claim['comparisons'][0]['measures']['finetuned']['seeds'] == pytest.approx(values, abs=1e-3)
    assert all(0 < score[0] <= 100 for score in found['scores']['probe']['kept-2'])

    small = digits.SMOKE.with_draws(1)
    experiment, printed = Experiment(digits.BENCH, small, tmp_path / 'runs', tmp_path / 'digits'), io.StringIO()
    runs = experiment.plan(['random-2', 'kept-2'])
    run_jobs(experiment.jobs(runs), experiment.store, console=Console(file=printed))
    assert '12 jobs, 12 already done' in printed.getvalue()
    assert experiments.collect(experiment, [digits.CLAIMS[2]]) == found

    elsewhere = Experiment(digits.BENCH, small, tmp_path / 'moved', tmp_path / 'digits', tmp_path / 'runs/jobs.jsonl')
    assert elsewhere.needed(runs) == [run for run in runs if run.kind != 'pretrain']  # all networks are measured
    assert experiments.collect(elsewhere, [digits.CLAIMS[2]]) == found
    lines = elsewhere.kept.read_text().splitlines()
    assert len(lines) == 12
    measured = runs.index(Run('measure', 'kept-2', 1))
    elsewhere.kept.write_text('\n'.join(line for line in lines if str(runs[measured]) not in line) + '\n')
    other = replace(elsewhere, root=tmp_path / 'third')
    assert [run for run in other.needed(runs) if other.store.read(other.key(run)) is None] == [
        Run('pretrain', 'dbot-kept', 1), runs[measured],
    ]  # fmt: skip
    with pytest.raises(ValueError, match='2 jobs are not finished, the first is: pretrain dbot-kept, seed 1'):
        experiments.collect(other, [digits.CLAIMS[2]])
    elsewhere.kept.write_text(f'{lines[0]}\n{lines[1][:-3]}\n')
    with pytest.raises(ValueError, match=r'jobs\.jsonl, line 2 is no JSON: a write was cut off. Delete the line'):
        replace(elsewhere, root=tmp_path / 'fourth').needed(runs)


def test_collect__unfinished_jobs(experiment):
    with pytest.raises(ValueError, match=r'\d+ jobs are not finished, the first is: pretrain dbot-random, seed 0'):
        experiments.collect(experiment, [digits.CLAIMS[2]])


# Checkpoints over training.


def test_training__every_checkpoint_is_kept_and_measured():
    bench = training.BENCH
    assert len(bench.claims[0].networks) == 6 * 5  # six a unit; dBOT has two units
    for name, lengths in (('mae', 1), ('dbot-random', 2)):
        recipe = bench.recipes[f'{name}-followed']
        cfg = recipes.pretrain_config(recipe, bench.full, lambda network: network, bench.images)
        hook, end = cfg.default_hooks.checkpoint, cfg.train_cfg.max_iters
        assert hook.max_keep_ckpts == -1 and end == bench.full.steps(lengths)
        written = [f'iter_{step}.pth' for step in range(hook.interval, end + 1, hook.interval)]
        if name == 'dbot-random':  # iter_… of a stage's last step has the student of the next
            written[5], written[11] = 'stage_1.pth', 'stage_2.pth'
        assert len(written) == 6 * lengths
        assert [recipe.file(network, bench.full) for network in recipe.networks] == written


def test_training__the_page_in_docs_is_its_reports(tmp_path, monkeypatch):
    stored = ROOT / 'docs/fashion_training/report.json'
    (tmp_path / 'fashion_training').mkdir()
    (tmp_path / 'fashion_training/report.json').write_text(stored.read_text())
    monkeypatch.setattr(sys, 'argv', ['training.py', '--report-only', '--page', str(tmp_path / 'fashion_training.md')])
    assert training.main() == 0
    assert (tmp_path / 'fashion_training.md').read_text() == stored.parent.with_suffix('.md').read_text()
    assert (tmp_path / 'fashion_training/training.png').is_file()
