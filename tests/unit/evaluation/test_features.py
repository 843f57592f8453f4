from __future__ import annotations

import json

import pytest
import torch
from helpers.labelled_files import write_images, write_student
from helpers.networks import VIT

from mkd_plugin.evaluation import features as module
from mkd_plugin.evaluation.features import Feature, FeatureStore
from mkd_plugin.evaluation.images import Preprocessing, open_images
from mkd_plugin.interop.open_model import open_models
from mkd_plugin.interop.student import load_student
from mkd_plugin.models.students import ClassifierViT
from mkd_plugin.utils.files import sha256_of

SMALL = Preprocessing((16, 16), 18)
WHICH = (Feature('block:-1', 'mean'), Feature('block:-1', 'cls'), Feature('block:0', 'mean'), Feature('output', 'cls'))


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Sizes of the batches that were computed, not taken from the cache."""
    sizes: list[int] = []
    real = module.compute

    def compute(student, images_BCHW, which):
        sizes.append(len(images_BCHW))
        return real(student, images_BCHW, which)

    monkeypatch.setattr(module, 'compute', compute)
    return sizes


def read(store, path, images, which=WHICH):
    return store.features(subject_of(path), images, which)


def subject_of(path):
    (subject,) = open_models([str(path)], known={}, device='cpu')
    return subject


def test_features__are_the_students(tmp_path):
    images, path = open_images(write_images(tmp_path, 'train'), SMALL), write_student(tmp_path, 'a.pth')
    found = read(FeatureStore(tmp_path / 'cache', batch_size=5, shard=7), path, images)
    student, batch = load_student(path), torch.stack([image / 255 for image in images])
    with torch.no_grad():
        for feature in WHICH:
            wanted = student.features(batch, tap=feature.tap, pool=feature.pool)
            torch.testing.assert_close(found.values[feature], wanted, rtol=1e-5, atol=1e-5)
    assert found.labels_N.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_features__second_time_from_the_cache(tmp_path, computed):
    images, path, store = (
        open_images(write_images(tmp_path, 'train'), SMALL),
        write_student(tmp_path, 'a.pth'),
        FeatureStore(tmp_path / 'c'),
    )
    first = read(store, path, images)
    assert computed == [12]
    second = read(store, path, images)
    assert computed == [12]
    for feature in WHICH:
        assert first.values[feature].equal(second.values[feature])


def test_features__cache_of_another_checkpoint_is_not_used(tmp_path, computed):
    images, store = open_images(write_images(tmp_path, 'train'), SMALL), FeatureStore(tmp_path / 'c')
    first = read(store, write_student(tmp_path, 'a.pth', seed=0), images)
    second = read(store, write_student(tmp_path, 'a.pth', seed=1), images)  # the same path
    assert computed == [12, 12]
    assert not first.values[WHICH[0]].equal(second.values[WHICH[0]])


def test_features__other_images_preprocessing_or_taps_are_computed(tmp_path, computed):
    folder, path, store = (
        write_images(tmp_path, 'train'),
        write_student(tmp_path, 'a.pth'),
        FeatureStore(tmp_path / 'c'),
    )
    read(store, path, open_images(folder, SMALL))
    read(store, path, open_images(folder, Preprocessing((16, 16), 20)))
    read(store, path, open_images(folder, SMALL), WHICH[:1])
    (folder / 'ant' / '3.png').unlink()
    read(store, path, open_images(folder, SMALL))
    assert computed == [12, 12, 12, 11]


def test_features__interrupted_run_resumes_after_the_last_shard(tmp_path, computed, monkeypatch):
    folder, path, store = (
        write_images(tmp_path, 'train'),
        write_student(tmp_path, 'a.pth'),
        FeatureStore(tmp_path / 'c', 2, shard=4),
    )
    wanted = read(FeatureStore(tmp_path / 'other', 2, shard=4), path, open_images(folder, SMALL))
    computed.clear()
    images = open_images(folder, SMALL)
    real = type(images).__getitem__
    monkeypatch.setattr(type(images), '__getitem__', lambda self, index: real(self, index) if index < 10 else stop())
    with pytest.raises(KeyboardInterrupt):
        read(store, path, images)
    monkeypatch.setattr(type(images), '__getitem__', real)
    assert computed == [2] * 5  # two shards, and half of the third
    found = read(store, path, images)
    assert computed == [2] * 5 + [2] * 2  # the third again
    for feature in WHICH:
        assert found.values[feature].equal(wanted.values[feature])


def stop():
    raise KeyboardInterrupt


def test_features__cache_says_what_it_is_of(tmp_path):
    path, store = write_student(tmp_path, 'a.pth'), FeatureStore(tmp_path / 'c')
    read(store, path, open_images(write_images(tmp_path, 'train'), SMALL))
    about = json.loads(next((tmp_path / 'c').glob('*/about.json')).read_text())
    assert about['subject'].startswith(f'{sha256_of(path)} backbone. ')
    assert about['data']['images'] == 12 and about['data']['preprocessing']['resize'] == 18


def test_features__not_finite(tmp_path):
    images, path = open_images(write_images(tmp_path, 'train'), SMALL), write_student(tmp_path, 'a.pth')
    subject = subject_of(path)
    with torch.no_grad():
        subject.network.layers[1].ffn.layers[1].bias.fill_(torch.inf)
    with pytest.raises(ValueError, match='block:-1 mean.*NaN or infinite'):
        FeatureStore(tmp_path / 'c').features(subject, images, WHICH)


def test_features__pixels_are_part_of_the_key(tmp_path, computed):
    """Features of the same weights depend on the pixel statistics."""
    images, store = open_images(write_images(tmp_path, 'train'), SMALL), FeatureStore(tmp_path / 'c')
    bare = tmp_path / 'bare.pth'
    torch.save(load_student(write_student(tmp_path, 'a.pth')).backbone.state_dict(), bare)
    found = []
    for pixels in ('half', 'clip', 'half'):
        (subject,) = open_models([str(bare)], known=dict(num_heads=4), device='cpu', pixels=pixels)
        found.append(store.features(subject, images, WHICH).values[WHICH[0]])
    assert computed == [12, 12]
    assert not found[0].equal(found[1]) and found[0].equal(found[2])


def test_features__no_final_norm(tmp_path):
    """A fine-tuned network has its norm after pooling: it has blocks to read, but no normalised output."""
    images, network = open_images(write_images(tmp_path, 'train'), SMALL), ClassifierViT(**VIT)
    torch.save(network.state_dict(), tmp_path / 'tuned.pth')
    (subject,) = open_models([str(tmp_path / 'tuned.pth')], known=dict(num_heads=4), device='cpu')
    assert 'it has no norm for tokens after the last block' in subject.notes
    FeatureStore(tmp_path / 'c').features(subject, images, WHICH[:3])
    with pytest.raises(ValueError, match="has no norm for tokens, so there is no 'output'"):
        FeatureStore(tmp_path / 'c').features(subject, images, WHICH)


def test_feature__unknown():
    with pytest.raises(ValueError, match="pool='max'"):
        Feature(pool='max')
    with pytest.raises(ValueError, match="tap='relation:1'"):
        Feature('relation:1')
