"""Files of the web are kept by their whole address."""

from __future__ import annotations

import hashlib
import io
from email.message import Message
from urllib.error import HTTPError

import pytest
import torch

from mkd_plugin.checkpoint import download as downloads
from mkd_plugin.checkpoint.download import cached_path, download, local_file
from mkd_plugin.checkpoint.read import read_checkpoint


class Answer(io.BytesIO):
    info = Message


@pytest.fixture(autouse=True)
def web(tmp_path, monkeypatch):
    """Answer every address with a file that holds its length; return the addresses that were asked."""
    asked = []

    def answer(address, **_):
        asked.append(address)
        if 'absent' in address:
            raise HTTPError(address, 404, 'Not Found', Message(), None)
        content = Answer()
        torch.save(dict(state_dict=dict(a=torch.tensor([float(len(address))]))), content)
        content.seek(0)
        return content

    monkeypatch.setattr(torch.hub, 'urlopen', lambda request: answer(request.full_url))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    return asked


def test_download__same_name_on_two_servers(web):
    addresses = [
        'https://a.org/vit.pth',
        'https://bb.org/vit.pth',
        'https://a.org/vit.pth?version=2',
        'http://a.org/vit.pth',
    ]
    for address in [*addresses, *addresses]:
        assert read_checkpoint(local_file(address))['state_dict']['a'] == len(address)
    assert web == addresses and len({cached_path(address) for address in addresses}) == 4
    assert {cached_path(address).name for address in addresses} == {'vit.pth'}


@pytest.mark.parametrize(
    'address',
    ['https://a.org', 'https://a.org/', 'https://a.org/..', 'https://a.org/%2e%2e%2f%2e%2e', 'https://a.org/x/'],
)
def test_cached_path__stays_in_its_folder(tmp_path, address):
    path = cached_path(address, tmp_path)
    assert path.parent.parent == tmp_path and path.name not in ('', '.', '..')


def test_download__content_against_the_digest_in_the_name(tmp_path):
    file = download('https://a.org/vit-20230814.pth', tmp_path)  # a date, not a digest
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert download(f'https://a.org/vit-{digest[:8]}.pth', tmp_path).is_file()  # as long, so the same content
    wrong = 'https://a.org/vit-0123abcd.pth'
    with pytest.raises(ValueError, match=f'{wrong}: invalid hash value .*0123abcd.* Its name says which sha256'):
        download(wrong, tmp_path)
    with pytest.raises(OSError, match='https://a.org/absent.pth: HTTP Error 404: Not Found'):
        download('https://a.org/absent.pth', tmp_path)
    assert not list(cached_path(wrong, tmp_path).parent.iterdir())


def test_download__on_a_node_that_has_a_disk_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, 'is_main_process', lambda: False)
    assert download('https://a.org/vit.pth', tmp_path).is_file()
