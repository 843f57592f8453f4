"""Parse which model to open, and under which name, from one line: ``[NAME=][NETWORK=]FILE[#PART]``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mkd_plugin.checkpoint.releases import RELEASES, Release

SPEC_SYNTAX = '[NAME=][NETWORK=]FILE[#PART]'
TIMM_PREFIX = 'timm:'


@dataclass
class ModelSpec:
    """A model to open.

    NETWORK says which network the file holds: a release (``mkd_plugin.checkpoint.releases``) or ``timm:MODEL``. PART is
    'student', a teacher in one of our checkpoints, or the prefix of one of several networks.

    Attributes:
        text: The line.
        name: Name in reports: NAME, or else NETWORK, or else the file's.
        network: NETWORK; None to detect it from the file.
        path: The file, or folder of Hugging Face.
        part: PART, or None.

    Raises:
        ValueError: NETWORK is neither a release nor ``timm:MODEL``.
    """

    text: str

    def __post_init__(self) -> None:
        rest, _, part = self.text.partition('#')
        words: list[str] = []
        while '=' in rest and len(words) < 2 and not Path(rest).expanduser().exists():
            word, _, rest = rest.partition('=')
            words.append(word)
        last = words[-1] if words else ''
        self.network: str | None = last if last in RELEASES or last.startswith(TIMM_PREFIX) else None
        if len(words) == 2 and self.network is None:
            raise ValueError(
                f"{self.text}: '{last}' is not a known network. Write {SPEC_SYNTAX} with NETWORK timm:MODEL or one of "
                f'{sorted(RELEASES)}.'
            )
        self.path: Path = Path(rest).expanduser()
        self.part: str | None = part or None
        self.named = bool(words)
        self.name: str = words[0] if words else f'{self.path.stem}#{part}' if part else self.path.stem

    def check(self) -> None:
        """Raise ValueError if the file does not exist."""
        if not self.path.exists():
            raise ValueError(f'There is no checkpoint {self.path}. Write {SPEC_SYNTAX}.')

    @property
    def timm_model(self) -> str | None:
        """Name of timm's model, if NETWORK is one."""
        return self.network.removeprefix(TIMM_PREFIX) if self.network and self.network.startswith(TIMM_PREFIX) else None

    @property
    def release(self) -> Release | None:
        """The release that NETWORK names or, without NETWORK, that has a file of this name."""
        if self.network is not None:
            return RELEASES.get(self.network)
        return next((release for release in RELEASES.values() if release.file == self.path.name), None)


def parse_specs(texts: Sequence[str]) -> list[ModelSpec]:
    """Parse several lines, and give each model a name of its own. Raises ValueError if two models have the same name."""
    specs = [ModelSpec(text) for text in texts]
    counts = Counter(spec.name for spec in specs)
    for spec in specs:
        if counts[spec.name] > 1 and not spec.named:  # files of the same name in different runs
            spec.name = f'{spec.path.absolute().parent.name}/{spec.name}'
    repeated = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if repeated:
        raise ValueError(f'Several checkpoints are called {repeated}: name each of them with NAME=FILE.')
    return specs
