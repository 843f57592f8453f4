"""Write the embedded digits as an image folder, which the *_digits configs read:

python tools/dataset_tools/make_digits.py [data/digits]
"""

import sys

from mkd_plugin.datasets import write_digits

if __name__ == '__main__':
    print(f'The digits are in {write_digits(*sys.argv[1:] or ["data/digits"])}.')
