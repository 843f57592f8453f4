"""mkd_plugin.reporting.page and the answer of an analysis: escaping, structure, folders, comparisons in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mkd_plugin.reporting.analysis.settings import Report
from mkd_plugin.reporting.analysis.summary import Number, answer_section, direction, findings
from mkd_plugin.reporting.page import Document, Panel, Section, Table, listed, without_folders, write_page


def document(**changes):
    figure = Figure(figsize=(1, 1))
    figure.subplots()
    section = Section(
        'Curves & <maps>', group='Group', reading='Read < it', panels=[Panel(figure, 'a "figure" < here')]
    )
    answer = Section(
        'In brief', tables=[Table(['name', 'value'], [['<b>', '1\nhigher']])], missing={'x': 'failed\nlog'}
    )
    return Document(
        **{**dict(title='A & B', lead='Lead', findings={'a': 'b <'}, answer=answer, sections=[section]), **changes}
    )


def test_write_page__text_is_escaped_and_sections_are_linked(tmp_path):
    write_page(tmp_path / 'page.html', document())
    text = (tmp_path / 'page.html').read_text()
    assert '<title>A &amp; B</title>' in text and '<b>a</b> b &lt;' in text
    assert '<th scope="row">&lt;b&gt;</th><td>1<small>higher</small></td>' in text
    assert '<b>x</b> failed<pre>log</pre>' in text
    assert text.index('In brief</h2>') < text.index('Curves &amp; &lt;maps&gt;</h2>')
    assert '<a href="#curves-maps">' in text and '<h2 id="curves-maps">' in text
    assert (
        'a &#34;figure&#34; &lt; here</title>' in text and 'aria-label="Enlarge: a &#34;figure&#34; &lt; here"' in text
    )
    assert 'prefers-color-scheme: dark' in text and 'http' not in text


def test_write_page__is_reproducible(tmp_path):
    for name in 'ab':
        write_page(tmp_path / name, document())
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('/home/me/runs/a.pth', 'a.pth'),
        ('/repo/tools/train.py /repo/configs/x.py --work-dir /out/jobs/k', 'tools/train.py configs/x.py --work-dir jobs/k'),
        ('x.checkpoint=/home/me/a.pth seed=1', 'x.checkpoint=a.pth seed=1'),
        ('File "/usr/lib/python3/site.py", line 3', 'File "site.py", line 3'),
        ('work_dirs/a/b.pth and 1/2 and AP / mIoU', 'work_dirs/a/b.pth and 1/2 and AP / mIoU'),
        ('https://example.org/a/b', 'https://example.org/a/b'),
    ],
)  # fmt: skip
def test_without_folders__paths_of_a_machine(text, shown):
    assert without_folders(text, [Path('/repo'), Path('/out')]) == shown


def test_listed__names_or_their_number():
    assert [listed(['a', 'b', 'c', 'd'][:n], 'models') for n in (1, 2, 3, 4)] == [
        'a',
        'a and b',
        'a, b and c',
        '4 models',
    ]


@pytest.mark.parametrize(
    ('number', 'base', 'wanted'),
    [
        (Number(2.0, 0.3), Number(1.0, 0.4), 'higher'),  # 1.0 > √(0.3² + 0.4²)
        (Number(1.0, 0.3), Number(1.4, 0.4), 'similar'),
        (Number(-3.0), Number(-2.0), 'lower'),
        (Number(2.05), Number(2.0), 'similar'),
        (Number(0.0), Number(0.0), 'similar'),
    ],
)
def test_direction__compares_with_the_spread(number, base, wanted):
    assert direction(number, base) == wanted


def test_answer__table_and_sentences():
    def attention(distance, nmi):
        block = dict(distance_H=[distance - 1, distance + 1], entropy_fraction_H=[0.5, 0.5], nmi_H=[nmi, nmi])
        return {'attention': {'block:0': dict(block, distance_H=[0, 0]), 'block:10': block}}

    models = dict(before=attention(10, 0.1), after=attention(5, 0.102), failed={})
    report = Report(models={name: {} for name in models}, data={}, settings={}, results=models)
    (table,) = answer_section(report).tables
    assert table.head == ['quantity', 'before', 'after', 'failed']
    assert table.rows[0] == ['attention distance\n(pixels, last block)', '10.0 ± 1.4', '5.0 ± 1.4\n▼ lower (−5)', '–']
    assert findings(report) == {
        'after against before:': 'lower attention distance (10 → 5), higher NMI of queries and keys (0.1 → 0.102).'
    }
