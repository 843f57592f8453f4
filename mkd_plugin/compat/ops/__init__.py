"""What stands in for mmcv's compiled ops where it was installed without them, computed by torch and torchvision.

:mod:`mkd_plugin.compat.patches` serves ``ext.py`` as ``mmcv._ext``. Functions have the names, arguments and outputs of mmcv's
compiled ones: results are written into tensors that mmcv's wrappers allocate. None of the files imports mmcv at
its top, because they are loaded while ``mmcv.ops`` is being imported. Half precision is computed in float32 and rounded once.
"""
