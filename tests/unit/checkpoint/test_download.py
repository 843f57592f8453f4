"""Files of the web are kept by their whole address."""

from __future__ import annotations

import hashlib

import pytest
import torch

from mkd_plugin.checkpoint.download import cached_path, download, local_file
from mkd_plugin.checkpoint.read import read_checkpoint


@pytest.fixture(autouse=True)
def web(tmp_path, monkeypatch):
    """Answer every address with a file that holds its length; return the addresses that were asked."""
    asked = []

    def fetch(address, path, progress):
        asked.append(address)
        torch.save(dict(state_dict=dict(a=torch.tensor([float(len(address))]))), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
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


def test_download__content_against_the_digest_in_the_name(tmp_path, web):
    download('https://a.org/plain.pth', tmp_path)
    digest = hashlib.sha256(cached_path('https://a.org/plain.pth', tmp_path).read_bytes()).hexdigest()
    wrong = 'https://a.org/vit-0123abcd.pth'
    with pytest.raises(ValueError, match=f'{wrong} gave a file with the sha256 [0-9a-f]+, but its name says 0123abcd'):
        download(wrong, tmp_path)
    assert not list(cached_path(wrong, tmp_path).parent.iterdir())
    assert download('https://a.org/vit-20230814.pth', tmp_path).is_file()  # a date
    assert len(digest) == 64
