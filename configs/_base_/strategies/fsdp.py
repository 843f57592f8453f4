# PyTorch's FSDP: shards weights, gradients and optimiser moments over the processes, for students and decoders that do
# not fit on one GPU. List it after a recipe's other bases. Checkpoints are the same as without it.
runner_type = 'mkd_plugin.StrategyRunner'
strategy = dict(type='mkd_plugin.ShardedStrategy')
