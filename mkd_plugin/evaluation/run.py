"""Evaluation of several checkpoints by several protocols; what is finished is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mkd_plugin.evaluation.features import FeatureStore, Split
from mkd_plugin.evaluation.images import LabelledImages, Preprocessing, check_same_classes, open_images
from mkd_plugin.evaluation.protocols import PROTOCOLS, Plan, check_protocols
from mkd_plugin.evaluation.table import EvaluationTable, check_writable
from mkd_plugin.interop.specs import parse_requests
from mkd_plugin.interop.subjects import Subject, load_subject


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

    def open(self, subject: Subject) -> tuple[LabelledImages, LabelledImages]:
        """Both splits, at the network's image size. Raises ValueError if their classes differ."""
        crop = subject.network.image_hw
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
    known: Mapping[str, Any] | None = None,
    pixels: str | None = None,
) -> EvaluationTable:
    """Measure all checkpoints by all protocols.

    The table is written after each protocol. What cannot be measured for one checkpoint or by one protocol is among the
    table's failures; the others are measured all the same.

    Args:
        checkpoints: ``[NAME=][NETWORK=]FILE[#PART]`` each; see :class:`mkd_plugin.interop.specs.Request`.
        protocols: Names in ``PROTOCOLS``.
        data: The images.
        out: Folder for ``evaluation.json`` and ``evaluation.md``.
        plan: What to measure.
        store: Computes features and keeps them.
        known: Options of networks whose files do not state them.
        pixels: Likewise, of pixels: a name in ``mkd_plugin.interop.subjects.PIXELS``.

    Raises:
        ValueError: An unknown protocol, two checkpoints of one name, or folders that cannot be written.
    """
    check_protocols(protocols)
    requests = parse_requests(checkpoints)
    for folder in (out, store.cache):
        check_writable(folder)
    settings = dict(data=asdict(data), plan=asdict(plan), protocols=list(protocols))
    table = EvaluationTable({request.name: dict(source=request.text) for request in requests}, settings)
    for request in requests:
        name = request.name
        try:
            subject = load_subject(request, known=known or {}, device=plan.device, pixels=pixels)
            table.checkpoints[name] = subject.description
            split = features_of(subject, data, plan, store)
        except (OSError, ValueError) as error:
            table.fail(name, 'features', error)
        else:
            for protocol in protocols:
                measure(table, name, protocol, split, plan)
                table.write(out)
    table.write(out)
    return table


def features_of(subject: Subject, data: Data, plan: Plan, store: FeatureStore) -> Split:
    """Features of both splits."""
    train, val = data.open(subject)
    return Split(*(store.features(subject, images, plan.features) for images in (train, val)))


def measure(table: EvaluationTable, name: str, protocol: str, split: Split, plan: Plan) -> None:
    """Add a protocol's rows, or why there are none."""
    try:
        for row in PROTOCOLS[protocol](split, plan):
            table.add(name, row)
    except ValueError as error:
        table.fail(name, protocol, error)
