"""Command line of mkd_plugin: argument parsers that import neither torch nor the OpenMMLab packages.

The package stands beside `mkd_plugin` because importing that imports its hosts. Each command is a module with
`add_arguments(parser)` and `run(args)`; what a command needs is imported in `run`.
"""
