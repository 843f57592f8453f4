"""tools/analyze.py on two tiny networks: page, JSON, resuming after an interruption, and messages for bad input."""

from __future__ import annotations

import importlib.util
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import scatter_weights
from PIL import Image

from mkd_plugin.analysis import AttentionStatistics, linear_cka, run_watched
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.reporting.analysis import MEASUREMENTS, Settings, analyze, run
from mkd_plugin.reporting.analysis.measure import ImageSet
from mkd_plugin.reporting.analysis.summary import unit_of

ROOT = Path(__file__).resolve().parents[3]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SMALL = ['--images', '8', '--batch', '4', '--landscape-size', '3']
ARCH = dict(width=16, depth=2, num_heads=2, mlp_ratio=2.0)


def load_tool(name, path):
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool('analyze_tool', 'tools/analyze.py')
browser = load_tool('docs_browser', 'tools/docs/browser.py')


def save_network(path, *, seed=0, break_block=None, **options):
    """A checkpoint as PortableCheckpointHook writes it."""
    torch.manual_seed(seed)
    network = scatter_weights(VisionTransformer(**{**dict(arch=ARCH, img_size=16, patch_size=4), **options}), std=0.2)
    if break_block is not None:
        with torch.no_grad():
            network.layers[break_block].ffn.layers[1].bias.fill_(torch.nan)
    about = dict(version='0', backbone=network.options, pixel_mean=MEAN, pixel_std=STD)
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    torch.save(dict(meta=dict(mkd_plugin=about), state_dict=state), path)
    return network.eval()


@pytest.fixture
def pictures(tmp_path):
    """Twelve images of three classes, larger than the networks want them."""
    draw = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / 'images' / f'class{number % 3}'
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / f'{number}.png')
    return tmp_path / 'images'


@pytest.fixture
def two(tmp_path):
    """Two networks of different image size."""
    save_network(tmp_path / 'before.pth', seed=1)
    save_network(tmp_path / 'after.pth', seed=2, img_size=24)
    return [str(tmp_path / 'before.pth'), f'student={tmp_path / "after.pth"}']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """One report of everything, for the tests that only look."""
    folder = tmp_path_factory.mktemp('whole')
    save_network(folder / 'before.pth', seed=1)
    save_network(folder / 'after.pth', seed=2, img_size=24)
    draw = np.random.default_rng(0)
    for number in range(9):
        kind = folder / 'images' / f'class{number % 3}'
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(kind / f'{number}.png')
    models = [str(folder / 'before.pth'), f'student={folder / "after.pth"}']
    out = folder / 'out'
    assert tool.main([*models, '--data', str(folder / 'images'), '--out', str(out), *SMALL]) == 0
    return out


class Page(HTMLParser):
    """What the tests want to know of a page; nesting is checked."""

    def __init__(self, text):
        super().__init__()
        self.open, self.named, self.svgs, self.links, self.ids = [], 0, 0, [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs['id']] if 'id' in attrs else []
        self.links += [attrs[name] for name in ('src', 'href', 'xlink:href') if name in attrs]
        if tag == 'svg':
            self.svgs += 1
            self.wanted = attrs['aria-labelledby']
            assert attrs['role'] == 'img'
        if tag == 'title' and attrs.get('id'):
            assert attrs['id'] == self.wanted
            self.inside_title = True
        assert tag != 'img' or attrs.get('alt')
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == 'title' and 'svg' in self.open and len(data) > 20:
            self.named += 1

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in ('meta', 'img'):
            assert self.open.pop() == tag


def test_analyze__page_stands_alone(whole):
    text = (whole / 'index.html').read_text()
    page, said = Page(text), unescape(text)
    assert page.svgs == page.named > 20
    assert all(link.startswith(('data:', '#')) for link in page.links)
    assert 'http' not in text
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith('#')} <= set(page.ids)
    assert "flavour 'cl-vs-mim'" in said
    assert 'each network has its own size' in said  # the image sizes differ


def test_analyze__json_has_every_number(whole):
    report = json.loads((whole / 'report.json').read_text())
    assert {name: set(found) for name, found in report['results'].items()} == {
        'before': set(MEASUREMENTS),
        'student': set(MEASUREMENTS),
    }
    assert [(pair['first'], pair['second']) for pair in report['pairs']] == [('before', 'student')]
    assert report['failed'] == report['left_out'] == {}
    losses = report['results']['before']['landscape']['losses']
    assert losses[1][1] == pytest.approx(report['results']['before']['hessian']['loss'], rel=1e-5)


def test_analyze__numbers_are_those_of_the_functions(tmp_path, two, pictures):
    settings = Settings(only=['attention', 'similarity'], flavour='dbot', images=5, batch=2)
    report = analyze(two[:1], data=pictures, out=tmp_path / 'out', settings=settings)
    assert unit_of('spectrum of tokens', report) == 'share of the 5 largest singular values, last block'
    network = save_network(tmp_path / 'again.pth', seed=1)
    files = sorted(pictures.rglob('*.png'))
    pixels = []
    for number in (0, 2, 4, 7, 9):  # ⌊12 i / 5⌋
        box = Image.open(files[number]).resize(
            (16, 16), Image.Resampling.BICUBIC, box=(2, 0, 22, 20)
        )  # the middle square
        pixels.append(torch.from_numpy(np.array(box)).permute(2, 0, 1).float() - torch.tensor(MEAN).view(3, 1, 1))
    images = torch.stack(pixels) / torch.tensor(STD).view(3, 1, 1)
    statistics = AttentionStatistics(grid=(4, 4), patch_size=4, flavour='dbot')
    tokens = {}
    run_watched(network, images, on_attention=lambda name, a: statistics.update(a) if name == 'block:1' else None)
    run_watched(network, images, on_tokens=tokens.setdefault)
    found = report.results['before']
    torch.testing.assert_close(
        torch.tensor(found['attention']['block:1']['distance_H'], dtype=torch.float64),
        statistics.result().distance_H,
        rtol=1e-4,
        atol=1e-5,
    )
    wanted = linear_cka(tokens['input:0'][:, 1:].flatten(0, 1), tokens['block:1'][:, 1:].flatten(0, 1))
    assert found['similarity']['values_RS'][0][2] == pytest.approx(wanted, rel=1e-4)


def test_analyze__resumes_after_an_interruption(tmp_path, two, pictures, monkeypatch, capsys):
    """Stopped in the second measurement: the first is kept, is not done again, and belongs to these images only."""

    def stop(probe):
        raise KeyboardInterrupt

    command = [*two, '--data', str(pictures), '--out', str(tmp_path / 'out'), '--only', 'variance', 'fourier', *SMALL]
    with monkeypatch.context() as patch:
        patch.setitem(run.MEASURES, 'fourier', stop)
        assert tool.main(command) == 130
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out/jobs').glob('*/result.json')}
    assert len(kept) == 2
    assert not (tmp_path / 'out/report.json').exists()
    with monkeypatch.context() as patch:
        patch.setitem(run.MEASURES, 'variance', stop)
        assert tool.main(command) == 0
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert len(list((tmp_path / 'out/jobs').glob('*/result.json'))) == 4
        next(pictures.rglob('*.png')).unlink()
        assert tool.main(command) == 130  # other images: it must be measured again
    assert 'Rerun the command to resume' in capsys.readouterr().err


def test_analyze__key_of_a_checkpoint(tmp_path, pictures):
    """Another file under the same name is another network."""
    path = tmp_path / 'one.pth'
    settings = Settings(only=['variance'], images=4)
    found = []
    for seed in (1, 2):
        save_network(path, seed=seed)
        report = analyze([str(path)], data=pictures, out=tmp_path / 'out', settings=settings)
        found.append(report.results['one']['variance']['block:1'])
    assert found[0] != found[1]


def test_analyze__layer_that_is_not_finite(tmp_path, two, pictures, capsys):
    """It is named; the other network's results and the page are there all the same."""
    save_network(tmp_path / 'broken.pth', break_block=1)
    out = tmp_path / 'out'
    command = [*two, str(tmp_path / 'broken.pth'), '--data', str(pictures), '--out', str(out), '--only', 'fourier']
    assert tool.main([*command, *SMALL]) == 1
    report = json.loads((out / 'report.json').read_text())
    assert report['failed']['broken']['fourier'].startswith('broken, block:1: ')
    assert set(report['results']['student']) == {'fourier'}
    assert '<b>broken</b> is not shown: broken, block:1' in (out / 'index.html').read_text()
    assert 'broken, block:1' in capsys.readouterr().err


def test_analyze__too_few_images_for_a_rank(tmp_path, two, pictures):
    settings = Settings(only=['image-spectrum'], images=1)
    report = analyze(two, data=pictures, out=tmp_path / 'out', settings=settings)
    assert '1 images give a covariance of rank 0' in report.failed['student']['image-spectrum']


def test_analyze__curvature_without_labels(tmp_path, two, pictures):
    settings = Settings(only=['hessian'], images=4)
    report = analyze(two[:1], data=pictures / 'class0', out=tmp_path / 'out', settings=settings)
    assert 'has no labels' in report.failed['before']['hessian']


def test_analyze__landscape_along_eigenvectors(tmp_path, two, pictures):
    """Another plane through the same point; along the largest eigenvalue's vector the loss bends most."""
    found = {}
    for directions in ('random', 'hessian'):
        settings = Settings(only=['landscape'], images=6, batch=3, directions=directions, landscape_size=3)
        report = analyze(two[:1], data=pictures, out=tmp_path / 'out', settings=settings)
        found[directions] = report.results['before']['landscape']
    random, hessian = (np.array(found[directions]['losses']) for directions in ('random', 'hessian'))
    assert found['hessian']['directions'] == 'hessian' and random.shape == hessian.shape == (3, 3)
    assert random[1, 1] == pytest.approx(hessian[1, 1], rel=1e-6)
    bends = [losses[0, 1] - 2 * losses[1, 1] + losses[2, 1] for losses in (random, hessian)]
    assert bends[1] > bends[0]
    assert 'along two top eigenvectors' in unescape((tmp_path / 'out/index.html').read_text())


def test_analyze__curvature_of_a_large_network_is_left_out(tmp_path, two, pictures, monkeypatch):
    monkeypatch.setattr(run, 'SMALL', 100)
    monkeypatch.setattr(run, 'MEASUREMENTS', {name: MEASUREMENTS[name] for name in ('variance', 'landscape')})
    report = analyze(two, data=pictures, out=tmp_path / 'out', settings=Settings(images=4))
    assert 'request it with --only landscape' in report.left_out['before']['landscape']
    assert set(report.results['before']) == {'variance'}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['--only', 'entropy', 'variance'], '--only entropy: unknown measurement. Choose from .*attention'),
        (['--data', '{}/empty'], 'no image in it or below'),
        (['--data', '{}/nowhere'], 'no such folder'),
        (['--out', '{}/before.pth'], 'Cannot write to'),
        (['--landscape-size', '4'], 'use an odd number'),
        (['--queries', '1.5,0.5'], 'fractions of the image'),
    ],
)
def test_analyze__bad_input(tmp_path, two, pictures, capsys, change, message):
    (tmp_path / 'empty').mkdir()
    change = [word.format(tmp_path) for word in change]
    assert tool.main([*two, '--data', str(pictures), '--out', str(tmp_path / 'out'), *change]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_image_set__labels_and_files(pictures):
    images = ImageSet(pictures, 6)
    assert [file.parent.name for file in images.files] == ['class0', 'class0', 'class1', 'class1', 'class2', 'class2']
    assert images.labels == [0, 0, 1, 1, 2, 2]
    assert len(ImageSet(pictures, 100)) == images.available == 12
    (pictures / 'class1' / 'broken.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='broken.png cannot be read as an image'):
        ImageSet(pictures, 100).read(range(13), (16, 16))


@pytest.mark.skipif(not browser.available(), reason='there is no chromium')
@pytest.mark.parametrize('width', [360, 1200])
def test_page__in_a_browser(whole, width):
    """Nothing to scroll sideways, every figure has a size, a click enlarges one, and nothing is complained about."""
    found, console = browser.look(whole / 'index.html', width=width)
    assert console == []
    assert found['window'] == width
    assert found['content'] <= width
    assert len(found['figures']) > 20
    assert all(50 < figure[0] <= width and figure[1] > 50 for figure in found['figures'])
    assert found['images'] > 0
    assert found['enlarged'] == 1


@pytest.mark.skipif(not browser.available(), reason='there is no chromium')
def test_screenshot__is_a_picture(whole, tmp_path):
    assert browser.screenshot(whole / 'index.html', tmp_path / 'page.png', width=800, height=600) == []
    with Image.open(tmp_path / 'page.png') as picture:
        assert picture.size == (800, 600)
        assert np.asarray(picture.convert('L')).std() > 5


@pytest.mark.skipif(not browser.available(), reason='there is no chromium')
def test_look__sees_what_is_wrong(tmp_path):
    (tmp_path / 'bad.html').write_text('<p style="width: 900px">wide</p><script>console.error("no")</script>')
    found, console = browser.look(tmp_path / 'bad.html', width=360)
    assert found['content'] > 900
    assert found['figures'] == []
    assert len(console) == 1
