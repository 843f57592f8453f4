"""Write the features of a folder of images to a file, for use with any other tool.

    mkd features [NETWORK=]FILE[#PART] IMAGES --out features.{npz,parquet,safetensors}

FILE is a checkpoint in any format that the package reads, as for `mkd evaluate`. IMAGES is any folder of images; if it has a
folder for each class, their numbers become labels. The file holds one array for each layer and pooling, such as
`block:-1_mean` (N, D), beside the names of the images. What an interrupted command has computed stays in OUT.partial; the same
command goes on from there.

With `--as TEACHER --config CONFIG` and a checkpoint of the pre-training, the features are what the student predicts of a
teacher: through its heads, with the normalisation of the targets undone.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from mkd_cli.command import add_network_arguments, at_least, network_options, script, usable_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('model', metavar='[NETWORK=]FILE[#PART]', help='network to run')
    add('images', help='folder of images, with a folder for each class or not')
    add('--out', type=Path, required=True, metavar='FILE', help='file to write: .npz, .parquet or .safetensors')
    add('--tap', '--taps', help="layers to read, such as 'block:-1,block:5,output' (default: block:-1)")
    add(
        '--pool',
        '--pools',
        help="how tokens become one vector: cls or mean; 'none' keeps them all (default: cls,mean)",
    )
    add(
        '--as',
        dest='teacher',
        metavar='TEACHER',
        help="predict the features of this teacher, or of this objective (default: give the student's own)",
    )
    add('--config', help='config of the pre-training for --as, such as the file in its work dir (default: none)')
    add(
        '--resize',
        type=at_least(1),
        metavar='PIXELS',
        help='short edge before the crop (default: image size * 256 / 224)',
    )
    add_network_arguments(parser)
    add('--batch-size', type=at_least(1), default=64, help='images at once')
    add('--workers', type=at_least(0), default=0, help='processes that read images')
    add('--device', default='cpu', help='device to compute on')


def run(args: argparse.Namespace) -> int:
    """Compute the features and write them; return the exit code."""
    from mkd_plugin.evaluation.feature_files import check_feature_file, write_features
    from mkd_plugin.evaluation.features import Feature, FeatureStore
    from mkd_plugin.evaluation.images import Preprocessing, open_any
    from mkd_plugin.interop.open_model import open_models
    from mkd_plugin.interop.specs import ModelSpec
    from mkd_plugin.interop.teacher_space import in_teacher_space
    from mkd_plugin.preflight.config import read_config
    from mkd_plugin.utils.files import lock_file

    check_feature_file(args.out)
    ModelSpec(args.model).check()
    if (args.teacher is None) != (args.config is None) or (args.teacher and args.tap):
        raise ValueError(
            '--as TEACHER and --config CONFIG belong together, without --tap: the heads read what they learned.'
        )
    pools = args.pool.split(',') if args.pool else ['cls', 'mean']
    taps = [f'as:{args.teacher}'] if args.teacher else (args.tap or 'block:-1').split(',')
    which = [Feature(tap, pool) for tap in taps for pool in pools]
    (subject,) = open_models(
        [args.model], known=network_options(args.network), device=usable_device(args.device), pixels=args.pixels
    )
    if args.teacher:
        path, asked = str(ModelSpec(args.model).path), pools if args.pool else None
        subject, predicted = in_teacher_space(subject, path, read_config(args.config, {}), args.teacher, asked)
        which = [feature for feature in which if args.pool or feature.pool in predicted]
    for feature in which:
        subject.network.tap_spec(feature.tap)  # raises if there is no such block
    crop = subject.network.image_hw
    images = open_any(args.images, Preprocessing(crop, args.resize) if args.resize else Preprocessing.standard(crop))
    images[0]  # raises if it cannot be read, before anything is written
    partial = args.out.with_name(f'{args.out.name}.partial')
    partial.mkdir(parents=True, exist_ok=True)
    with lock_file(partial / 'lock') as lock:
        if lock is None:
            raise ValueError(f'--out {args.out} is in use: another process is writing it. Name another file.')
        store = FeatureStore(partial, batch_size=args.batch_size, workers=args.workers, shard=8 * args.batch_size)
        shapes = write_features(args.out, with_progress(store, subject, images, which), images)
        shutil.rmtree(partial)
    print(f'{args.out}: {len(images)} images, {", ".join(f"{name} {shape}" for name, shape in shapes.items())}')
    return 0


def with_progress(store: Any, subject: Any, images: Any, which: Any) -> Any:
    """Compute the features, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f'features of {len(images)} images', total=1.0)
        return store.features(subject, images, which, report=lambda share: progress.update(task, completed=share))


main = script('features')
