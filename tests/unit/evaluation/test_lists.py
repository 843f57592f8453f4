from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.labelled_files import write_images
from mmpretrain.registry import DATASETS

from mkd_cli import make_label_list
from mkd_plugin.evaluation.lists import draw_share, listed_in_json, published_share, write_list
from mkd_plugin.utils.configs import get_config


def test_draw_share__balanced_nested_and_repeatable(tmp_path):
    folder = write_images(tmp_path, 'train', count=10)  # 30 images
    drawn = draw_share(folder, 0.25, seed=0)  # 7.5 → 8: 3 + 3 + 2
    assert sorted(Counter(label for _, label in drawn).values()) == [2, 3, 3]
    assert all(name.split('/')[0] == ('ant', 'bee', 'cat')[label] for name, label in drawn)
    assert len(set(drawn)) == 8 and draw_share(folder, 0.25, seed=0) == drawn
    assert set(drawn) < set(draw_share(folder, 0.5, seed=0))
    assert any(draw_share(folder, 0.25, seed=seed) != drawn for seed in (1, 2, 3))


def test_published_share__is_the_list(tmp_path):
    folder = write_images(tmp_path, 'train', ('ant', 'bee'))
    for index, path in enumerate(sorted(folder.rglob('*.png'))):
        path.rename(path.with_name(f'{path.parent.name}_{index}.png'))
    (tmp_path / '1percent.txt').write_text('bee_5.png\nant_0.png\n')
    assert published_share(folder, tmp_path / '1percent.txt') == [('bee/bee_5.png', 1), ('ant/ant_0.png', 0)]
    (tmp_path / '1percent.txt').write_text('bee_5.png\nn01440764_1.JPEG\n')
    with pytest.raises(ValueError, match=r'1 of the 2 images .* n01440764_1\.JPEG'):
        published_share(folder, tmp_path / '1percent.txt')
    with pytest.raises(ValueError, match=r'absent\.txt does not exist'):
        published_share(folder, tmp_path / 'absent.txt')
    for name in ('ant', 'bee'):
        next((folder / name).iterdir()).rename(folder / name / '1.png')
    (tmp_path / '1percent.txt').write_text('1.png\n')
    with pytest.raises(ValueError, match=r'does not say which it means: \S+ has more than one 1\.png'):
        published_share(folder, tmp_path / '1percent.txt')


def test_draw_share__bad_input(tmp_path):
    folder = write_images(tmp_path, 'train')
    with pytest.raises(ValueError, match=r'fraction=1\.5'):
        draw_share(folder, 1.5, seed=0)
    with pytest.raises(ValueError, match='1 of 12 images are fewer than the 3 classes'):
        draw_share(folder, 0.1, seed=0)
    for number in range(3):
        (folder / 'ant' / f'{number}.png').unlink()
    with pytest.raises(ValueError, match='class 0 has 1'):
        draw_share(folder, 0.7, seed=0)
    with pytest.raises(ValueError, match='is not a folder'):
        draw_share(tmp_path / 'nowhere', 0.1, seed=0)


def test_write_list__is_what_a_fine_tuning_reads(tmp_path):
    folder = write_images(tmp_path, 'train', count=6)
    drawn = draw_share(folder, 0.5, seed=0)
    write_list(drawn, tmp_path / 'meta' / 'half.txt')
    cfg = get_config('dbot/finetune/in1k/dbot-ft_vit-base-p16_8xb128-100e_in1k')
    options = dict(cfg.train_dataloader.dataset, data_root=str(tmp_path), ann_file='meta/half.txt')
    dataset = DATASETS.build(options)
    found = [
        (str(Path(row['img_path']).relative_to(folder)), row['gt_label'])
        for row in map(dataset.get_data_info, range(len(dataset)))
    ]
    assert found == drawn


def test_make_label_list__command(tmp_path, capsys):
    folder, out = write_images(tmp_path, 'train'), tmp_path / 'list.txt'
    assert make_label_list.main([str(folder), str(out), '--percent', '50', '--seed', '1']) == 0
    assert out.read_text() == ''.join(f'{name} {label}\n' for name, label in draw_share(folder, 0.5, seed=1))
    assert '6 images of 3 classes' in capsys.readouterr().out
    assert make_label_list.main([str(folder), str(out), '--percent', '1']) == 2
    assert 'fewer than the 3 classes' in capsys.readouterr().err


def test_listed_in_json__inaturalists_form(tmp_path):
    folder, path = write_images(tmp_path, 'train', count=1), tmp_path / 'train.json'
    content = dict(
        images=[dict(id=10, file_name='train/cat/0.png'), dict(id=11, file_name='train/ant/0.png')],
        categories=[dict(id=7), dict(id=3)],
        annotations=[dict(image_id=11, category_id=3), dict(image_id=10, category_id=7)],
    )
    path.write_text(json.dumps(content))
    assert listed_in_json(tmp_path, path) == [('train/ant/0.png', 0), ('train/cat/0.png', 1)]
    with pytest.raises(ValueError, match='2 of the 2 images .* are not in'):
        listed_in_json(folder, path)
    path.write_text(json.dumps(dict(images=[])))
    with pytest.raises(ValueError, match="COCO's form.*test set"):
        listed_in_json(tmp_path, path)


@pytest.mark.parametrize('name', ['dbot', 'dmae'])
@pytest.mark.parametrize('percent', [1, 10])
def test_config__trains_on_the_list(tmp_path, name, percent):
    """The semi-supervised configs read the list, and differ in the training images only."""
    write_images(tmp_path, 'train', count=20)
    share = 100 * 3 // 60 if percent == 1 else 50
    (tmp_path / 'meta').mkdir()
    write_list(draw_share(tmp_path / 'train', share / 100, 0), tmp_path / f'meta/train_{percent}p.txt')
    length = 100 if name == 'dmae' else {1: 400, 10: 200}[percent]
    cfg = get_config(f'{name}/finetune/in1k/{name}-ft_vit-base-p16_8xb128-{length}e_in1k-{percent}p')
    whole = get_config(f'{name}/finetune/in1k/{name}-ft_vit-base-p16_8xb128-100e_in1k')
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, data_root=str(tmp_path)))
    assert len(dataset) == share * 60 // 100
    assert len(set(dataset.get_gt_labels())) == 3
    assert cfg.val_dataloader == whole.val_dataloader and cfg.model == whole.model
    assert cfg.train_cfg.max_epochs == length == cfg.param_scheduler[1].end


@pytest.mark.parametrize(
    'content',
    [
        b'[]',
        b'[' * 100_000,
        b'{"images": 3}',
        b'{"images": [], "categories": [], "annotations": [{}]}',
        b'{"images": [{"id": [1], "file_name": "a"}], "categories": [], "annotations": []}',
        b'{"images": [{"id": 1, "file_name": 7}], "categories": [{"id": 1}], "annotations": '
        b'[{"image_id": 1, "category_id": 1}]}',
        b'\xff\xfe\xfd',
    ],
)
def test_listed_in_json__files_that_are_none(tmp_path, content):
    (tmp_path / 'train.json').write_bytes(content)
    with pytest.raises(ValueError, match="is not in COCO's format"):
        listed_in_json(tmp_path, tmp_path / 'train.json')


def test_listed_in_json__devices_and_byte_order_marks(tmp_path):
    with pytest.raises(ValueError, match="/dev/zero is not in COCO's format.*not a regular file"):
        listed_in_json(tmp_path, '/dev/zero')
    (tmp_path / 'a.png').touch()
    content = dict(
        images=[dict(id=1, file_name='a.png')], categories=[dict(id=5)], annotations=[dict(image_id=1, category_id=5)]
    )
    (tmp_path / 'train.json').write_text(json.dumps(content), 'utf-8-sig')
    assert listed_in_json(tmp_path, tmp_path / 'train.json') == [('a.png', 0)]
