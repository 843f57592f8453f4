"""Evaluation of several checkpoints by several protocols; what is finished is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mkd_plugin.checkpoint.student import LoadedStudent, load_student
from mkd_plugin.checkpoint.write import sha256_of
from mkd_plugin.evaluation.features import FeatureStore, Split
from mkd_plugin.evaluation.images import LabelledImages, Preprocessing, check_same_classes, open_images
from mkd_plugin.evaluation.protocols import PROTOCOLS, Plan, check_protocols
from mkd_plugin.evaluation.table import EvaluationTable, check_writable, short_names

__all__ = ['Data', 'evaluate']


@dataclass(frozen=True)
class Data:
    """Where the images are.

    Attributes:
        root: Folder with ``train`` and ``val``, each with a folder for each class.
        train_list: Annotation file for ``train`` instead of its class folders.
        val_list: Likewise.
        resize: Short edge before the crop, pixels; None: image size · 256 / 224.
    """

    root: Path
    train_list: Path | None = None
    val_list: Path | None = None
    resize: int | None = None

    def open(self, student: LoadedStudent) -> tuple[LabelledImages, LabelledImages]:
        """Both splits, at the network's image size. Raises ValueError if their classes differ."""
        crop = student.backbone.image_hw
        preprocessing = Preprocessing.customary(crop) if self.resize is None else Preprocessing(crop, self.resize)
        train = open_images(self.root / 'train', preprocessing, annotation=self.train_list)
        val = open_images(self.root / 'val', preprocessing, annotation=self.val_list)
        check_same_classes(train, val)
        return train, val


def evaluate(
    checkpoints: Sequence[str],
    protocols: Sequence[str],
    data: Data,
    out: Path,
    *,
    plan: Plan,
    store: FeatureStore,
    part: str = 'student',
) -> EvaluationTable:
    """Measure all checkpoints by all protocols.

    The table is written after each protocol. What cannot be measured for one checkpoint or by one protocol is among the
    table's failures; the others are measured all the same.

    Args:
        checkpoints: Files that :func:`load_student` reads.
        protocols: Names in ``PROTOCOLS``.
        data: The images.
        out: Folder for ``evaluation.json`` and ``evaluation.md``.
        plan: What to measure.
        store: Computes features and keeps them.
        part: 'student', or a teacher that the files hold.

    Raises:
        ValueError: An unknown protocol, a checkpoint that is given twice, or folders that cannot be written.
    """
    check_protocols(protocols)
    names = short_names(checkpoints)
    for folder in (out, store.cache):
        check_writable(folder)
    settings = dict(data=asdict(data), plan=asdict(plan), protocols=list(protocols))
    table = EvaluationTable({name: dict(path=path) for name, path in zip(names, checkpoints, strict=True)}, settings)
    for name, path in zip(names, checkpoints, strict=True):
        try:
            split = features_of(path, table.checkpoints[name], data, plan, store, part)
        except (OSError, ValueError) as error:
            table.fail(name, 'features', error)
        else:
            for protocol in protocols:
                measure(table, name, protocol, split, plan)
                table.write(out)
    table.write(out)
    return table


def features_of(path: str, about: dict[str, str], data: Data, plan: Plan, store: FeatureStore, part: str) -> Split:
    """Features of both splits; ``about`` is told what identifies the weights."""
    student = load_student(path, part=part).to(plan.device)
    weights = dict(sha256=sha256_of(Path(path)), part=part)
    about.update(weights)
    train, val = data.open(student)
    found = [store.features(student, weights, images, plan.features) for images in (train, val)]
    return Split(*found)


def measure(table: EvaluationTable, name: str, protocol: str, split: Split, plan: Plan) -> None:
    """Add a protocol's rows, or why there are none."""
    try:
        for row in PROTOCOLS[protocol](split, plan):
            table.add(name, row)
    except ValueError as error:
        table.fail(name, protocol, error)
