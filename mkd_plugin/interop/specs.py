"""Which network is meant, in one line: ``[NAME=][NETWORK=]FILE[#PART]``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mkd_plugin.checkpoint.releases import RELEASES, Release

SPECIFICATION = '[NAME=][NETWORK=]FILE[#PART]'
TIMM = 'timm:'


@dataclass
class Request:
    """A network that is asked for.

    NETWORK says which one the file is of: a release (``mkd_plugin.checkpoint.releases``), or ``timm:MODEL``. PART is
    'student', one of the file's own teachers, or the prefix of one of several networks.

    Attributes:
        text: As it was given.
        name: What a report calls it: NAME, or NETWORK, or the file's.
        network: NETWORK; None if the file has to tell.
        path: The file, or folder of Hugging Face.
        part: None if it is not said.

    Raises:
        ValueError: NETWORK is neither.
    """

    text: str
    name: str = field(init=False)
    network: str | None = field(init=False)
    path: Path = field(init=False)
    part: str | None = field(init=False)

    def __post_init__(self) -> None:
        rest, _, part = self.text.partition('#')
        words: list[str] = []
        while '=' in rest and len(words) < 2 and not Path(rest).expanduser().exists():
            word, _, rest = rest.partition('=')
            words.append(word)
        last = words[-1] if words else ''
        self.network = last if last in RELEASES or last.startswith(TIMM) else None
        if len(words) == 2 and self.network is None:
            raise ValueError(
                f"{self.text}: '{last}' is no network. Write {SPECIFICATION}, NETWORK being timm:MODEL or one of "
                f'{sorted(RELEASES)}.'
            )
        self.path, self.part = Path(rest).expanduser(), part or None
        self.named = bool(words)
        self.name = words[0] if words else f'{self.path.stem}#{part}' if part else self.path.stem

    @property
    def longer_name(self) -> str:
        """With the file's folder, for files of the same name in different runs."""
        return self.name if self.named else f'{self.path.absolute().parent.name}/{self.name}'

    @property
    def timm_model(self) -> str | None:
        """The model of timm that the file is said to be of."""
        return self.network.removeprefix(TIMM) if self.network and self.network.startswith(TIMM) else None

    @property
    def release(self) -> Release | None:
        """The release that the file is said to be, or is called like."""
        if self.network is not None:
            return RELEASES.get(self.network)
        return next((release for release in RELEASES.values() if release.file == self.path.name), None)


def parse_requests(texts: Sequence[str]) -> list[Request]:
    """What is asked for, each under a name of its own.

    Raises:
        ValueError: Two have the same name, or one makes no sense.
    """
    requests = [Request(text) for text in texts]
    counts = Counter(request.name for request in requests)
    for request in requests:
        if counts[request.name] > 1:
            request.name = request.longer_name
    repeated = [name for name, count in Counter(request.name for request in requests).items() if count > 1]
    if repeated:
        raise ValueError(f'Several checkpoints are called {repeated}: name each of them, NAME=FILE.')
    return requests
