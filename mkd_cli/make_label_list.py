"""Write a list of labelled images for fine-tuning: a balanced draw, a published list, or the content of a JSON file.

mkd make-label-list data/imagenet/train data/imagenet/meta/train_1p.txt --percent 1 --seed 0
mkd make-label-list data/imagenet/train data/imagenet/meta/train_1p.txt --published 1percent.txt
mkd train configs/dbot/finetune/in1k/... --cfg-options train_dataloader.dataset.ann_file=meta/train_1p.txt
"""

from __future__ import annotations

import argparse

from mkd_cli.command import at_least, script


def percent(text: str) -> float:
    """Parse a share in per cent, above 0 and up to 100."""
    try:
        share = float(text)
    except ValueError:
        share = 0
    if not 0 < share <= 100:
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed: give a number above 0, up to 100.')
    return share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('train', help='folder with a folder for each class; with --json, the root of its paths')
    add('out', help='list to write: a path and a class id in each line')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--percent', type=percent, help='draw this share of each class (no default)')
    source.add_argument('--published', metavar='FILE', help="list of file names, such as SimCLR's (no default)")
    source.add_argument('--json', metavar='FILE', help="iNaturalist's file, in COCO's format (no default)")
    add('--seed', type=at_least(0), default=0, help='seed of the draw')


def run(args: argparse.Namespace) -> int:
    """Write the list; return the exit code."""
    from mkd_plugin.evaluation.lists import draw_share, listed_in_json, published_share, write_list

    if args.published:
        labelled = published_share(args.train, args.published)
    elif args.json:
        labelled = listed_in_json(args.train, args.json)
    else:
        labelled = draw_share(args.train, args.percent / 100, args.seed)
    path = write_list(labelled, args.out)
    print(f'{path}: {len(labelled)} images of {len({label for _, label in labelled})} classes')
    return 0


main = script('make_label_list')
