"""The picture of a run's numbers."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mkd_plugin.engine.curves import MANY, draw_curves, draw_line, draw_panel, metric_names, stage_starts


def row(iteration: int, **values) -> dict:
    return {'mode': 'train', 'iter': iteration, **values}


STAGED = [row(i, stage=1 if i <= 6 else 2, loss=1.0 / i, lr=0.1) for i in (2, 4, 6, 8, 10)]


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert len(picture.convert('RGB').getcolors(2**24)) > 20
        return picture.size


def test_draw_curves__has_a_panel_for_each_kind_of_number(tmp_path):
    out = tmp_path / 'curves.png'
    assert draw_curves(STAGED, out, title='a run')
    two = size_of(out)
    val = [{'mode': 'val', 'iter': 6, 'epoch': 1, 'accuracy/top1': 50.0}]
    more = [{**entry, 'grad_norm': 2.0, 'feature_target_std': 0.3} for entry in STAGED]
    assert draw_curves([*more, *val], out, title='a run')
    five = size_of(out)
    assert five[0] > 1.4 * two[0] and five[1] > 1.6 * two[1]  # two panels beside each other, and two rows of three
    assert [path.name for path in tmp_path.iterdir()] == ['curves.png']


def test_draw_curves__nothing_to_draw(tmp_path):
    assert not draw_curves([row(1, loss=None, time=0.1)], tmp_path / 'curves.png', title='')
    assert not list(tmp_path.iterdir())


def test_metric_names__a_total_of_one_loss_is_left_out():
    def fits(name):
        return 'loss' in name

    assert metric_names([row(1, loss=1.0, loss_a=1.0, time=3)], 'train', fits) == ['loss_a']
    assert metric_names([row(1, loss=1.0, loss_a=1.0), row(2, loss=1.5, loss_a=1.0)], 'train', fits) == [
        'loss',
        'loss_a',
    ]
    assert metric_names([row(1, loss=3.0, loss_a=1.0, loss_b=2.0)], 'train', fits) == ['loss', 'loss_a', 'loss_b']
    assert metric_names([row(1, loss=3.0, loss_a=None)], 'train', fits) == ['loss']
    assert metric_names([row(1, loss=3.0)], 'val', fits) == []


def test_stage_starts__where_the_stage_before_ended():
    assert stage_starts(STAGED) == [(1, 0), (2, 6)]
    assert stage_starts(STAGED[:3]) == [] and stage_starts([row(1, loss=1.0)]) == []


def test_draw_panel__stages_are_not_connected_and_missing_numbers_are_gaps():
    axis = Figure().subplots()
    draw_panel(axis, [*STAGED, row(12, stage=2, loss=None)], 'loss', ['loss'])
    first, second = axis.lines
    assert first.get_color() == second.get_color()
    np.testing.assert_allclose(first.get_xydata(), [(2, 0.5), (4, 0.25), (6, 1 / 6)])
    np.testing.assert_allclose(second.get_xydata(), [(8, 0.125), (10, 0.1), (12, np.nan)])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ['loss']
    draw_panel(axis, [row(1, loss=10.0), row(2, loss=0.1)], 'loss', ['loss'])
    assert axis.get_yscale() == 'log'


def test_draw_line__many_points_are_averaged():
    axis = Figure().subplots()
    values = np.tile([1.0, 3.0], MANY // 2)
    values[10] = np.nan
    draw_line(axis, np.arange(MANY), values, label='x', color=None)
    raw, average = axis.lines
    np.testing.assert_array_equal(raw.get_ydata(), values)
    inner = average.get_ydata()[5:-5]
    assert np.isfinite(inner).all() and np.ptp(inner) < 1.5 < np.ptp(values[20:])
    np.testing.assert_allclose(average.get_ydata()[20:-5], 2.0)  # a window of four sees two of each
