"""Write a list of labelled images for fine-tuning: a balanced draw, a published list, or what a JSON file has.

python tools/dataset_tools/make_label_list.py data/imagenet/train data/imagenet/meta/train_1p.txt --percent 1 --seed 0
python tools/dataset_tools/make_label_list.py data/imagenet/train data/imagenet/meta/train_1p.txt --published 1percent.txt
python tools/train.py configs/dbot/finetune/in1k/… --cfg-options train_dataloader.dataset.ann_file=meta/train_1p.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mkd_plugin.evaluation.lists import draw_share, listed_in_json, published_share, write_list


def main(arguments: Sequence[str] | None = None) -> int:
    """Write it; 1 and a message if it cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('train', help='folder with a folder for each class; with --json, what its paths are below')
    parser.add_argument('out', help='the list: a path and a class id in each line')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--percent', type=float, help='of the images, drawn, as many of each class')
    source.add_argument('--published', help="a list of file names, SimCLR's for example")
    source.add_argument('--json', help="iNaturalist's file, in COCO's form")
    parser.add_argument('--seed', type=int, default=0, help='of the draw')
    args = parser.parse_args(arguments)
    try:
        if args.published:
            labelled = published_share(args.train, args.published)
        elif args.json:
            labelled = listed_in_json(args.train, args.json)
        else:
            labelled = draw_share(args.train, args.percent / 100, args.seed)
        path = write_list(labelled, args.out)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f'{path}: {len(labelled)} images of {len({label for _, label in labelled})} classes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
