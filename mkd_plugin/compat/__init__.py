"""Make the plugin run on the installed hosts: their versions, missing ops, safe loading, and the terminal's log."""


def install() -> None:
    """Change the hosts as this package needs them. Importing ``mkd_plugin`` calls this; calling it again does nothing.

    All effects outside the package's own objects:

    - mmengine's checkpoint loaders, for every scheme, read files with ``mkd_plugin.checkpoint.read``, which runs no code of
      a file (:mod:`mkd_plugin.compat.loaders`).
    - mmengine's ``load_state_dict`` logs one line of what a file gave, and refuses the file of another network
      (:mod:`mkd_plugin.compat.weights`).
    - mmengine's default constructor of optimisers refuses misspelt parts of ``paramwise_cfg``
      (:mod:`mkd_plugin.compat.paramwise`).
    - ``sys.meta_path`` gets a last finder for ``mmcv._ext``, which serves ops of torch and torchvision where mmcv has no
      compiled ones (:mod:`mkd_plugin.compat.ops`).
    - mmengine's table of packages gets 'mmseg', where onedl's distribution provides it, so that bases ``mmseg::…`` resolve.
    - Loggers of mmengine that have a log file write environment, config, order of hooks and parameter options to it alone;
      the terminal shows the training. The file is complete.
    - OpenCV and Pillow share one limit of pixels: OPENCV_IO_MAX_IMAGE_PIXELS, by default Pillow's 89,478,485.
    - mmengine's ``print_log`` no longer prints debug messages of the hosts ('Could not import OneDL'); a log file gets them.
    """
    from mkd_plugin.compat.image_size import limit_image_size

    limit_image_size()  # before OpenCV is loaded, which reads the variable then
    from mkd_plugin.compat import loaders, paramwise, patches, weights

    loaders.install_safe_loader()
    weights.install_reports()
    paramwise.install_checks()
    patches.serve_missing_ops()
    patches.resolve_mmseg_bases()
    patches.shorten_terminal_log()
    patches.log_debug_messages()
