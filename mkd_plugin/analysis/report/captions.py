"""What stands under the figures: what is seen, how it was computed, what the papers found.

Findings are those of "Towards Understanding Masked Distillation" on ViT-B/16 (DeiT, DINO, CLIP before and after masked
distillation), unless another paper is named.
"""

from __future__ import annotations

from typing import NamedTuple


class Caption(NamedTuple):
    """Title and sentences of a group of figures.

    Attributes:
        title: Heading.
        shows: What is seen.
        computed: How; '{flavour}' names the convention.
        found: What the papers found.
    """

    title: str
    shows: str
    computed: str
    found: str


DISTANCES = {
    'cl-vs-mim': "flavour 'cl-vs-mim': cls is dropped as query and key, and rows are renormalised",
    'dbot': "flavour 'dbot': cls is dropped as query and key, and rows are not renormalised, so what goes to cls counts as 0",
}
SPECTRA = {
    'cl-vs-mim': (
        "flavour 'cl-vs-mim': ln of the singular values of each image's centred token covariance, mean over images after the "
        'log, minus the largest'
    ),
    'dbot': (
        "flavour 'dbot': share of the k largest singular values in the sum of all, of L2-normalised, uncentred tokens before "
        'the final norm, mean over images'
    ),
}

CAPTIONS: dict[str, Caption] = {
    'maps': Caption(
        'Attention maps',
        'What a query patch (white square) attends to, in the first, middle and last block; every map has its own scale.',
        'Attention after softmax, mean over heads, patches only, drawn over the image as the network sees it.',
        'The NMI below is the number to it: it rises with masked distillation, so that queries attend more differently.',
    ),
    'distance': Caption(
        'Attention distance',
        "How far, in pixels of the network's own image, a patch looks on average; a dot is a head, the line their mean.",
        'Σ attention · distance between patch centres, mean over queries and images ({distance}).',
        'With masked distillation the distance falls, but rises in low layers.',
    ),
    'entropy': Caption(
        'Attention entropy',
        'How evenly a patch spreads its attention over patches: 1 is uniform, 0 a single patch. A dot is a head.',
        'Entropy of renormalised rows without cls (the same in both flavours), over its greatest value ln L.',
        'Shown per head beside the distance; no direction is among the findings.',
    ),
    'nmi': Caption(
        'NMI of queries and keys',
        'Whether different queries attend to different patches: 0 is collapse, all queries attend alike. A dot is a head.',
        'Mutual information of query and key place over √(H(q) H(k)), without cls (the same in both flavours).',
        'It rises with masked distillation, and dips in low layers.',
    ),
    'fourier': Caption(
        'Fourier spectra of the feature maps',
        'Log amplitude at a spatial frequency relative to frequency 0, a line a block; and the highest frequency over depth.',
        'ln(|F| + 1e-6) of the unnormalised transform, mean over images and channels after the log, along the diagonal.',
        'Low layers prefer higher frequencies, high layers lower ones.',
    ),
    'variance': Caption(
        'Variance of the feature maps',
        'How much tokens differ over the grid, over depth.',
        'Unbiased variance over the grid, mean over images and channels; it grows with the scale of the features.',
        'None of the findings is about it.',
    ),
    'token-spectrum': Caption(
        'Singular values of tokens',
        'In how many directions the tokens of an image differ, a line a block: the slower the decay, the more are used. '
        'The input has few, and may leave the panel.',
        '{spectrum}.',
        'The singular values of high layers rise with masked distillation.',
    ),
    'image-spectrum': Caption(
        'Singular values of images',
        'In how many directions images differ, a line a block.',
        'Tokens averaged first; ln of the singular values of the covariance over images, minus the largest (the convention '
        "'cl-vs-mim' in both flavours; {images} images, {rank} values).",
        'The singular values of high layers rise with masked distillation.',
    ),
    'similarity': Caption(
        'Similarity of layers (linear CKA)',
        'Which layers hold the same features up to rotation and scale: 1 (bright) is the same.',
        'Linear CKA; an example is the mean token of a cell of an image, the cells being those of a grid of at most 7 × 7 '
        "that both networks' grids are averaged to; at most 13 layers a network.",
        'None of the findings is about it.',
    ),
    'hessian': Caption(
        'Spectrum of the Hessian',
        "Curvature of a loss by the network's weights: large eigenvalues are sharp directions, negative ones not convex.",
        'Cross entropy of a logistic regression (C = 1) that was fitted on the frozen features of these very images, so not '
        'the loss of a fine-tuned network. Density: Lanczos quadrature, 100 steps, one random vector; eigenvalues: power '
        'iteration with deflation; trace: Hutchinson.',
        'Measured during fine-tuning, of CLIP and DINO only: smoother after masked distillation.',
    ),
    'landscape': Caption(
        'Loss landscapes',
        'The loss when the weights are moved in two directions; the network itself is in the middle.',
        'The same loss as for the Hessian, along two {directions}, filter-normalised, in [−1, 1]²; surfaces are cut at '
        'a common height.',
        'Measured of fine-tuned CLIP and DINO only: smoother after masked distillation.',
    ),
}
