# Weights, gradients and moments of the optimiser are shared out over the processes (PyTorch's FSDP): for students and
# decoders that do not fit a GPU. To be put behind a recipe's other bases; checkpoints are the same files as without it.
runner_type = 'mkd_plugin.StrategyRunner'
strategy = dict(type='mkd_plugin.ShardedStrategy')
