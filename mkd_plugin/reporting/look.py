"""A page that shows what a network sees in a folder of images: nearest neighbours, and patch features as colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.analysis.streaming import check_finite
from mkd_plugin.evaluation.images import LabelledImages, spread
from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.reporting.page import Document, Picture, Section, Table, texts, write_page

SIDE = 192  # pixels of a picture
BATCH = 32  # images at once
NEIGHBOURS = 7  # with the image itself two lines of four
CLIP = (0.01, 0.99)  # quantiles of a component that become black and full colour


def look(model: OpenedModel, images: LabelledImages, path: Path, *, tap: str, rows: int, pictures: int) -> None:
    """Write the page: the neighbours of ``rows`` images, and the patches of ``pictures`` images, read at ``tap``."""
    if len(images) < 2:
        raise ValueError(f'{images.folder}: one image has no neighbours. Give a folder with at least two.')
    chosen = spread(len(images), pictures)
    means_ND, patches_MLD = run_network(model, images, tap, chosen)
    explained, colours_MhwC = colours_of(patches_MLD, model.network.grid)
    with TemporaryDirectory() as folder:
        album = Album(images, Path(folder))
        sections = (neighbours(album, means_ND, rows), patches(album, chosen, colours_MhwC, explained))
        title, size = f'{model.name} on {images.folder.name}', model.network.image_hw
        about = [
            ('network', f'{Path(model.source).name}\n{model.format}'),
            ('images', f'{len(images):,} of {images.folder.name}'),
            ('size', f'{size[0]} × {size[1]} px, patches of {model.network.patch_size} px'),
            ('features', f'{tap}, {means_ND.shape[1]} channels'),
        ]
        answer = Section('What was looked at', tables=[Table(('', 'value'), about)])
        write_page(path, Document(title, texts('look')['lead'], {}, answer, sections))


@torch.no_grad()
def run_network(model: OpenedModel, images: LabelledImages, tap: str, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the mean patch of every image, (N, D), and all patches of the chosen ones, (M, L, D), on the CPU."""
    wanted, means, kept = set(chosen), [], []
    for start, batch in enumerate(images.batches(0, len(images), batch_size=BATCH, workers=0)):
        tokens = model.network(model.normalise(batch.to(model.device)), taps=(tap,)).tokens(tap)
        check_finite(tokens, tap)
        patches_BLD = tokens[:, model.network.num_prefix :].float().cpu()
        means.append(patches_BLD.mean(dim=1))
        kept += [patches_BLD[place] for place in range(len(batch)) if start * BATCH + place in wanted]
    return torch.cat(means), torch.stack(kept)


def colours_of(patches_MLD: Tensor, grid: tuple[int, int]) -> tuple[list[float], Tensor]:
    """Project patches onto their three principal components: shares of the variance, and colours in [0, 1], (M, h, w, 3)."""
    points_PD = patches_MLD.flatten(0, 1).double()
    points_PD = points_PD - points_PD.mean(dim=0)
    _, sizes, axes_DK = torch.pca_lowrank(points_PD, q=min(6, *points_PD.shape), center=False)
    axes_DK = axes_DK[:, :3] * axes_DK[:, :3].sum(dim=0).sign()  # the sign of a component is arbitrary: fix it
    components_P3 = points_PD @ axes_DK
    low, high = (components_P3.quantile(share, dim=0) for share in CLIP)
    colours = ((components_P3 - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    total = points_PD.square().sum()
    shares = [float(size**2 / total) for size in sizes[:3]]
    return shares, F.pad(colours, (0, 3 - colours.shape[1])).reshape(len(patches_MLD), *grid, 3).float()


class Album:
    """Pictures of images, written to a folder until the page has taken them in."""

    def __init__(self, images: LabelledImages, folder: Path) -> None:
        self.images, self.folder, self.count = images, folder, 0

    def picture(self, index: int, caption: str = '') -> Picture:
        """Return an image as the network sees it: resized and cropped."""
        pixels = self.images[index].permute(1, 2, 0).numpy()
        return self.save(Image.fromarray(pixels), caption or self.name(index), self.images.names[index])

    def save(self, image: Image.Image, caption: str, alt_text: str) -> Picture:
        self.count += 1
        path = self.folder / f'{self.count}.webp'
        image.resize((SIDE, SIDE * image.height // image.width), Image.Resampling.NEAREST).save(path, quality=85)
        return Picture(path, caption, alt_text)

    def name(self, index: int) -> str:
        return Path(self.images.names[index]).name


def neighbours(album: Album, means_ND: Tensor, rows: int) -> Section:
    normal_ND = F.normalize(means_ND - means_ND.mean(dim=0), dim=1)
    pictures = []
    for query in spread(len(normal_ND), rows):
        similarity_N = normal_ND @ normal_ND[query]
        similarity_N[query] = -2.0  # itself
        values, places = similarity_N.topk(min(NEIGHBOURS, len(normal_ND) - 1))
        row = [album.picture(query, f'{album.name(query)} and its nearest:')]
        row += [album.picture(at, f'{value:.2f}') for value, at in zip(values.tolist(), places.tolist(), strict=True)]
        pictures.append(row)
    return Section('Nearest neighbours', reading=texts('look')['neighbours'], pictures=pictures)


def patches(album: Album, chosen: Sequence[int], colours_MhwC: Tensor, explained: Sequence[float]) -> Section:
    """Show some images beside the colours of their patches."""
    rows = []
    for index, colours_hwC in zip(chosen, colours_MhwC, strict=True):
        shown = Image.fromarray((colours_hwC * 255).byte().numpy())
        rows.append([album.picture(index), album.save(shown, '', f'patch features of {album.images.names[index]}')])
    pairs = [sum(rows[at : at + 2], []) for at in range(0, len(rows), 2)]  # a line of four
    shares = ', '.join(f'{100 * share:.0f} %' for share in explained)
    return Section(
        'Patch features as colours',
        reading=texts('look')['patches'],
        pictures=pairs,
        notes={'Variance': f'of the patches along red, green and blue: {shares}.'},
    )
