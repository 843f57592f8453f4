"""Export a checkpoint to the format of another library: another name for `mkd convert`.

mkd export SRC DST --to {mkd,mmpretrain,timm,hf,mae,openclip}
"""

from mkd_cli.command import script
from mkd_cli.convert import add_arguments, run

__all__ = ['add_arguments', 'main', 'run']

main = script('export')
