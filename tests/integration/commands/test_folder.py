"""Any folder of images: every kind of file is read right, and what cannot be read is replaced, counted or refused."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mkd_plugin import get_config
from mkd_plugin.datasets.crops import collate_crops
from mkd_plugin.datasets.folder import ImageFolder
from mkd_plugin.datasets.loading import BACKGROUND, LoadAnyImage, UnreadableImageError, decode
from mkd_plugin.models.preprocessor import CropPreprocessor

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GREY, GREY[::-1], np.full_like(GREY, 90)], axis=-1)


def encoded(image: Image.Image, form: str = 'PNG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_decode__8_bit_colour_and_grey_are_exact():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(COLOUR))), COLOUR)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(GREY))), np.stack([GREY] * 3, -1))
    ones = Image.fromarray(GREY > 100)
    np.testing.assert_array_equal(decode(encoded(ones)), np.stack([(GREY > 100) * 255] * 3, -1))


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'PPM'])
def test_decode__16_bit_grey_is_its_higher_byte(form):
    """Pillow's own conversion cuts everything above 255 off: an almost white image."""
    values = GREY.astype(np.uint16) * 257
    content = encoded(Image.fromarray(values), form)
    np.testing.assert_array_equal(decode(content), np.stack([GREY] * 3, -1))
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode.startswith('I')


def test_decode__16_bit_colour_is_its_higher_byte():
    cv2 = pytest.importorskip('cv2')
    values = COLOUR.astype(np.uint16) * 256 + 77
    _, content = cv2.imencode('.png', values[:, :, ::-1])
    np.testing.assert_array_equal(decode(content.tobytes()), COLOUR)


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'WEBP'])
def test_decode__transparency_shows_the_background(form):
    """cv2 and Pillow's conversion show the colours that nobody was meant to see."""
    alpha = np.zeros_like(GREY)
    alpha[:4] = 255
    image = Image.fromarray(np.dstack([COLOUR, alpha]))
    found = decode(encoded(image, form, **({'lossless': True} if form == 'WEBP' else {})))
    np.testing.assert_array_equal(found[:4], COLOUR[:4])
    assert (found[4:] == BACKGROUND).all()


def test_decode__half_transparent_grey_is_mixed():
    image = Image.fromarray(np.dstack([np.full_like(GREY, 200), np.full_like(GREY, 128)]))
    assert image.mode == 'LA'
    wanted = np.array(BACKGROUND) + (200 - np.array(BACKGROUND)) * (128 / 255)
    np.testing.assert_allclose(decode(encoded(image)), np.broadcast_to(wanted, (8, 8, 3)), atol=1)


def test_decode__palette_with_and_without_transparency():
    image = Image.fromarray(COLOUR).quantize(16)
    np.testing.assert_array_equal(decode(encoded(image)), np.asarray(image.convert('RGB')))
    found = decode(encoded(image, transparency=3))
    hidden = np.asarray(image) == 3
    assert hidden.any() and (found[hidden] == BACKGROUND).all()
    np.testing.assert_array_equal(found[~hidden], np.asarray(image.convert('RGB'))[~hidden])


@pytest.mark.parametrize('form', ['TIFF', 'JPEG'])
def test_decode__cmyk_is_not_inverted(form):
    """A JPEG of CMYK is stored inverted (Adobe); a wrong reader makes red cyan."""
    red = Image.fromarray(np.tile(np.array([[[0, 255, 255, 0]]], np.uint8), (8, 8, 1)), 'CMYK')
    np.testing.assert_allclose(decode(encoded(red, form)), np.tile([255, 0, 0], (8, 8, 1)), atol=2)


def test_decode__exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    content = encoded(Image.fromarray(COLOUR[:4]), 'PNG', exif=exif)
    np.testing.assert_array_equal(decode(content), np.rot90(COLOUR[:4], -1))


def test_decode__refuses_what_is_no_complete_picture():
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), 'JPEG')
    for content in (b'', b'hello', whole[:20], whole[: len(whole) // 2], encoded(Image.fromarray(noise))[:-2000]):
        with pytest.raises(UnreadableImageError):
            decode(content)
    with pytest.raises(UnreadableImageError, match='floating-point'):
        decode(encoded(Image.fromarray(GREY.astype(np.float32)), 'TIFF'))
    with pytest.raises(UnreadableImageError, match='from -3 to'):
        decode(encoded(Image.fromarray(GREY.astype(np.int32) - 3), 'TIFF'))


def test_load_any_image__is_bgr_as_the_hosts_loader(tmp_path):
    from mmcv.transforms import LoadImageFromFile

    Image.fromarray(COLOUR).save(tmp_path / 'a.png')
    ours, theirs = (load(dict(img_path=str(tmp_path / 'a.png'))) for load in (LoadAnyImage(), LoadImageFromFile()))
    np.testing.assert_array_equal(ours['img'], theirs['img'])
    assert ours['img_shape'] == theirs['img_shape'] and ours['ori_shape'] == theirs['ori_shape']


@pytest.fixture
def folder(tmp_path):
    """Eight images of eight kinds and sizes, nested, and a file that is none."""
    rgb = Image.fromarray(COLOUR)
    images = {
        'a/b/c/one.PNG': rgb,
        'a/two.jpg': rgb.resize((300, 20)),
        'a/grey.png': Image.fromarray(GREY),
        'b/rgba.png': rgb.convert('RGBA'),
        'b/cmyk.jpg': rgb.convert('CMYK'),
        'deep.png': Image.fromarray(GREY.astype(np.uint16) * 257),
        'palette.gif': rgb.quantize(16),
        'pixel.bmp': rgb.resize((1, 1)),
    }
    for name, image in images.items():
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    return tmp_path / 'images'


def build(folder, **options) -> ImageFolder:
    """The config's own dataset, at 8 px."""
    cfg = get_config('dbot/dbot_vit-base-p16_8xb512-2x800e_folder').train_dataloader.dataset
    cfg.pop('type')
    cfg.update(data_root=str(folder), **options)
    cfg.pipeline[1].scale = 8
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ImageFolder(**cfg)


def test_image_folder__reads_every_kind_through_the_configs_pipeline(folder):
    dataset = build(folder)
    assert len(dataset) == 8
    batch = collate_crops([dataset[i] for i in range(8)])
    assert CropPreprocessor()(batch)['inputs'].shape == (8, 3, 8, 8)
    paths = [os.path.relpath(dataset.get_data_info(i)['img_path'], folder) for i in range(8)]
    assert paths == sorted(paths) and 'a/b/c/one.PNG' in paths
    assert dataset.unreadable == 0


def test_image_folder__reads_a_list_instead(folder, tmp_path):
    (tmp_path / 'list.txt').write_text('a/grey.png\ndeep.png\n')
    assert len(build(folder, ann_file=str(tmp_path / 'list.txt'))) == 2
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(ValueError, match='the list is empty'):
        build(folder, ann_file=str(tmp_path / 'empty.txt'))
    with pytest.raises(ValueError, match=r'The list .*no\.txt does not exist'):
        build(folder, ann_file='no.txt')


def test_image_folder__refuses_a_folder_without_images_when_it_is_built(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='nowhere/? does not exist.*data_root=DIR'):
        build(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='is a file, not a folder'):
        build(folder / 'deep.png')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'has no images \(.*\.jpg.*\): it holds nothing'):
        build(tmp_path / 'empty')
    (tmp_path / 'empty' / 'x.heic').write_text('')
    with pytest.raises(ValueError, match=r'holds 1 × \.heic'):
        build(tmp_path / 'empty')
    (tmp_path / 'empty' / 'x.tar').write_text('')
    with pytest.raises(ValueError, match=r'1 × \.tar.*\(for tar shards: .*type=mkd_plugin\.ShardDataset\)'):
        build(tmp_path / 'empty')
    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(ValueError, match='cannot be read: .*Permission denied'):
        ImageFolder(data_root=str(folder), pipeline=[])


def refuse(path):
    raise PermissionError(13, 'Permission denied', str(path))


def test_image_folder__options_are_checked(folder):
    with pytest.raises(ValueError, match='leave with_label out'):
        build(folder, with_label=True)
    with pytest.raises(ValueError, match='max_unreadable=-1'):
        build(folder, max_unreadable=-1)


def corrupt(folder, *names):
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:30])


def path_of(sample) -> str:
    return sample['data_samples'].img_path


def test_image_folder__unreadable_image_is_replaced_by_the_next(folder, monkeypatch):
    said = []
    monkeypatch.setattr('mkd_plugin.datasets.folder.print_log', lambda message, **_: said.append(message))
    dataset = build(folder)
    paths = [dataset.get_data_info(i)['img_path'] for i in range(8)]
    corrupt(folder, 'b/cmyk.jpg', 'b/rgba.png', 'pixel.bmp')
    first = [path_of(dataset[i]) for i in range(8)]
    bad = {i for i, path in enumerate(paths) if path.endswith(('cmyk.jpg', 'rgba.png', 'pixel.bmp'))}
    wanted = []
    for i in range(8):
        while i in bad:
            i = (i + 1) % 8
        wanted.append(paths[i])
    assert first == wanted
    assert [path_of(dataset[i]) for i in range(8)] == first
    assert dataset.unreadable == 3
    assert len(said) == 3 and sum('cmyk.jpg' in message for message in said) == 1  # once a file, in two passes


def test_image_folder__counts_over_all_workers(folder):
    dataset = build(folder)
    corrupt(folder, 'b/cmyk.jpg', 'a/two.jpg')
    for _ in range(2):
        loader = DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=pseudo_collate)
        assert len([path for batch in loader for path in batch['inputs']]) == 8
    assert dataset.unreadable == 2


def test_image_folder__more_than_the_limit_is_an_error(folder):
    dataset = build(folder, max_unreadable=1)
    corrupt(folder, 'b/cmyk.jpg', 'a/two.jpg')
    with pytest.raises(ValueError, match='2 images of .* cannot be read, but only max_unreadable=1'):
        for i in range(8):
            dataset[i]


def test_image_folder__none_readable_is_an_error(folder):
    dataset = build(folder)
    corrupt(folder, *(os.path.relpath(dataset.get_data_info(i)['img_path'], folder) for i in range(8)))
    with pytest.raises(ValueError, match='None of the 8 images'):
        dataset[3]


def test_image_folder__an_image_that_a_transform_refuses_is_passed_over(folder):
    dataset = build(folder)
    refused = dataset.get_data_info(2)['img_path']
    dataset.pipeline.transforms.insert(1, lambda results: None if results['img_path'] == refused else results)
    assert path_of(dataset[2]) == dataset.get_data_info(3)['img_path']
    assert dataset.unreadable == 0


def test_image_folder__a_mistake_in_the_pipeline_is_not_hidden(folder):
    dataset = build(folder)
    dataset.pipeline.transforms.insert(1, lambda results: results['no such key'])
    with pytest.raises(KeyError):
        dataset[0]
    assert dataset.unreadable == 0


def without_scopes(node):
    """A config without the marks of the package that a base came from."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [without_scopes(value) for value in node] if isinstance(node, list) else node


def test_folder_config__is_the_in1k_recipe_but_for_the_images():
    names = (f'dbot/dbot_vit-base-p16_8xb512-2x800e_{name}' for name in ('folder', 'in1k'))
    ours, theirs = (without_scopes(get_config(name).to_dict()) for name in names)
    pipelines = [cfg['train_dataloader'].pop('dataset')['pipeline'] for cfg in (ours, theirs)]
    assert pipelines[0][1:] == pipelines[1][1:]
    shared = {key: value for key, value in theirs.items() if key in ours and key != 'data_root'}
    assert {key: ours[key] for key in shared} == shared
    assert set(theirs) - set(ours) == {'dataset_type', 'train_pipeline'} and not set(ours) - set(theirs)
