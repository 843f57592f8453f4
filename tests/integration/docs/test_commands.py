"""Every command of the README and the documentation exists and takes its arguments; a test runs it, or the page says why not.

`<!-- not run here: REASON -->` before a block marks commands that no test can run. `RUN_BY` names a test for every other
script.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from mkd_cli.command import Parser
from mkd_plugin.utils.configs import ablations, get_config

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md')),
    *sorted(path for path in ROOT.glob('docs/**/*.md') if not {'_build', 'methods', 'generated'} & set(path.parts)),
    *sorted(ROOT.glob('configs/*/README.md')),
]
# Script → a test that runs it, with its real arguments where they are small, at reduced size otherwise.
RUN_BY = {
    'benchmarks/data_time.py': 'tests/unit/benchmarks/test_data_time.py',
    'benchmarks/decode_time.py': 'tests/unit/benchmarks/test_decode_time.py',
    'benchmarks/check_equality.py': 'tests/integration/commands/test_check_equality.py',
    'benchmarks/gpu_benchmark.py': 'tests/unit/benchmarks/test_gpu_benchmark.py',
    'benchmarks/load_time.py': 'tests/integration/commands/test_check_equality.py',
    'benchmarks/step_time.py': 'tests/unit/benchmarks/test_step_time.py',
    'projects/any_student/run.py': 'tests/integration/projects/test_any_student.py',
    'projects/dense_gains/run.py': 'tests/integration/projects/test_dense_gains.py',
    'projects/paper_claims/run.py': 'tests/integration/projects/test_paper_claims.py',
    'projects/multi_teacher/run.py': 'tests/integration/projects/test_multi_teacher_project.py',
    'projects/small_data/run.py': 'tests/integration/projects/test_small_data.py',
    'tools/analyze.py': 'tests/unit/reporting/test_analysis_report.py',
    'tools/benchmark_all.sh': 'tests/integration/commands/test_benchmark_all.py',
    'tools/collect_env.py': 'tests/unit/cli/test_doctor.py',
    'tools/convert_checkpoint.py': 'tests/unit/interop/test_convert.py',
    'tools/dataset_tools/make_digit_scenes.py': 'tests/integration/projects/test_digit_scenes.py',
    'tools/dataset_tools/make_label_list.py': 'tests/unit/evaluation/test_lists.py',
    'tools/dataset_tools/make_shards.py': 'tests/unit/datasets/test_make_shards.py',
    'tools/dist_test.sh': 'tests/integration/commands/test_launchers.py',
    'tools/dist_train.sh': 'tests/integration/commands/test_launchers.py',
    'tools/docs/analysis.py': 'tests/integration/docs/test_docs_analysis.py',
    'tools/docs/curves.py': 'tests/integration/docs/test_docs_curves.py',
    'tools/docs/browser.py': 'tests/integration/commands/test_quickstart.py',
    'tools/docs/equality.py': 'tests/integration/docs/test_docs_equality.py',
    'tools/evaluate.py': 'tests/unit/reporting/test_evaluation_report.py',
    'tools/evaluate_classifier.py': 'tests/unit/evaluation/test_classifier.py',
    'tools/export.py': 'tests/integration/commands/test_pretrain.py',
    'tools/features.py': 'tests/unit/cli/test_features_command.py',
    'tools/inspect_checkpoint.py': 'tests/integration/commands/test_inspect_checkpoint.py',
    'tools/look.py': 'tests/integration/commands/test_pretrain.py',
    'tools/pretrain.py': 'tests/integration/commands/test_pretrain.py',
    'tools/print_config.py': 'tests/integration/commands/test_host_tools.py',
    'tools/quickstart.sh': 'tests/integration/commands/test_quickstart.py',
    'tools/run_tests.sh': '.ci/run',
    'tools/setup_venv.sh': 'tests/unit/test_package.py',
    'tools/slurm_train.sh': 'tests/integration/commands/test_launchers.py',
    'tools/sweep.py': 'tests/unit/reporting/test_sweep.py',
    'tools/test.py': 'tests/integration/dense/test_host_runs.py',
    'tools/train.py': 'tests/unit/test_registry.py',
}
# Script → module of mkd_cli with its arguments.
PARSERS = {
    'analyze': 'analyze',
    'benchmark_all': 'benchmark',
    'collect_env': 'doctor',
    'convert_checkpoint': 'convert',
    'evaluate': 'evaluate',
    'evaluate_classifier': 'evaluate_classifier',
    'export': 'export',
    'features': 'features',
    'inspect_checkpoint': 'inspect',
    'look': 'look',
    'make_digit_scenes': 'make_digit_scenes',
    'make_label_list': 'make_label_list',
    'make_shards': 'make_shards',
    'pretrain': 'pretrain',
    'print_config': 'print_config',
    'sweep': 'sweep',
    'test': 'test',
    'train': 'train',
}
REAL_DATA = re.compile(r'_(in1k|in21k|coco|ade20k|cifar100?|cars|inat\d+|flowers102)\b')
MARK = re.compile(r'<!-- not run here: \S.*?-->\s*\Z', re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: The page, relative to the checkout.
        script: What is run, relative to the checkout.
        words: Its arguments.
        marked: Whether the page says that it is not run here.
    """

    page: str
    script: str
    words: tuple[str, ...]
    marked: bool

    def __str__(self) -> str:
        return ' '.join([self.page, self.script, *self.words])


def lines_of(block: str) -> Iterator[str]:
    """Split a block into command lines: continued lines joined, variables filled in, loops and comments removed."""
    variables = {'lr': '1e-4', 'decay': '0.75'}
    text = re.sub(r'\\\n\s*', ' ', block)
    text = re.sub(r'"([^"]*)"', lambda match: match[0].replace('\n', ' '), text)
    text = re.sub(r'\[([^]\s][^]]*)\]', r'\1', text.replace("'.[", "'.{"))  # optional arguments
    for line in re.split(r'\n|; do |; done| && ', text):
        line = re.sub(r'\s#\s.*|^#.*|^do ', '', line).strip()
        for name, value in variables.items():
            line = line.replace(f'${name}', value)
        while match := re.match(r'(?:export )?(\w+)=("[^"]*"|\S*)(?:\s+|$)', line):
            variables[match[1]] = match[2].strip('"')
            line = line[match.end() :]
        if line and not line.startswith(('for ', 'done', 'pip ', 'make ', 'export ', 'cd ', 'git ')):
            yield line


def commands() -> Iterator[Command]:
    """Find the commands of all pages."""
    for path in PAGES:
        text = path.read_text(encoding='utf-8')
        for match in re.finditer(r'^```bash\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
            marked = MARK.search(text[: match.start()]) is not None
            for line in lines_of(match[1]):
                words = shlex.split(line)
                place = next((i for i, word in enumerate(words) if re.fullmatch(r'[\w/]+/\w+\.(py|sh)', word)), None)
                if words[:2] != ['python', '-c']:
                    assert place is not None, f'{path}: no script in {line!r}'
                    yield Command(str(path.relative_to(ROOT)), words[place], tuple(words[place + 1 :]), marked)


COMMANDS = list(dict.fromkeys(commands()))


def test_pages__have_commands():
    assert len(COMMANDS) > 60
    assert {str(path.relative_to(ROOT)) for path in PAGES} >= {'README.md', 'docs/train.md', 'configs/dbot/README.md'}


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_command__its_script_and_configs_exist(command):
    assert (ROOT / command.script).is_file()
    for word in command.words:
        if re.match(r'configs/.*\.py$', word):
            assert (ROOT / word).is_file()
        elif match := re.fullmatch(r'([a-z_]+):([\w.-]+)', word):
            assert match[2] in ablations(match[1])
        elif re.match(r'[a-z_]+/[\w-]+_in1k$', word):
            get_config(word)


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_command__a_test_runs_it_or_the_page_says_why_not(command):
    needs_data = any(REAL_DATA.search(word) for word in command.words) and '--dry-run' not in command.words
    if command.marked:
        return
    assert not needs_data, 'mark the block: <!-- not run here: needs … -->'
    where = ROOT / RUN_BY[command.script]
    assert where.is_file()


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_command__takes_its_arguments(command):
    script, words = Path(command.script), list(command.words)
    if script.name in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh'):
        leading = {'dist_train.sh': 1, 'dist_test.sh': 2, 'slurm_train.sh': 0}[script.name]
        given = (
            [*words[:leading], *words[leading + 1 :]] if leading else [*words[2:3], '--work-dir', words[3], *words[4:]]
        )
        parse('test' if script.name == 'dist_test.sh' else 'train', given)
    elif script.stem in PARSERS:
        parse(PARSERS[script.stem], words)
    else:
        sources = [ROOT / script.with_suffix('.py'), ROOT / script]
        if words[:1] == ['backbones']:
            sources = [ROOT / script.with_name('backbone_time.py')]
        source = next(path for path in sources if path.is_file()).read_text()
        assert [word for word in words if word.startswith('--') and f"'{word}'" not in source] == []


def parse(name: str, words: list[str]) -> None:
    """Parse arguments as the command does; exits if it does not know one."""
    module = import_module(f'mkd_cli.{name}')
    parser = Parser(prog=name)
    module.add_arguments(parser)
    parser.parse_args(words)


@pytest.mark.parametrize('test', sorted(set(RUN_BY.values())))
def test_run_by__names_files_that_run_the_script(test):
    text = (ROOT / test).read_text()
    for script in [script for script, runner in RUN_BY.items() if runner == test]:
        assert re.search(used(Path(script)), text, re.MULTILINE), f'{test} does not run {script}'


def used(script: Path) -> str:
    """What a test has that runs a script: its file's name, its command, or an import of its module."""
    module, folder = PARSERS.get(script.stem, script.stem), '.'.join(script.parent.parts)
    file = rf'\b{script.stem}\.(sh|py)\b' if script.suffix == '.sh' else rf'\b{script.stem}\.py\b'  # it starts a .py
    command = rf"main\(\['{module.replace('_', '-')}'"
    return rf'{file}|{command}|^ *(from (mkd_cli|{re.escape(folder)}) )?import (\w+, )*{module}\b|\bmkd_cli\.{module}\b'


def test_used__is_no_substring():
    for text, runs in (('the trainer', False), ('pretrain.py', False), ("main(['train'", True), ('x/train.py', True)):
        assert bool(re.search(used(Path('tools/train.py')), text)) == runs


def test_lines_of__fills_variables_and_joins_lines():
    block = (
        'A=x.pth B=y  # x\npython tools/a.py $A \\\n    --b $B  # comment\nfor i in 1; do bash tools/b.sh [--c 3]\ndone'
    )
    assert list(lines_of(block)) == ['python tools/a.py x.pth  --b y', 'bash tools/b.sh --c 3']
