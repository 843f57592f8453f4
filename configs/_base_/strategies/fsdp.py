# PyTorch's FSDP2: shards weights, gradients, optimiser moments and teachers over the processes, block by block, for
# networks that do not fit on one GPU. Needs torch >= 2.6. List it after a recipe's other bases.
runner_type = 'mkd_plugin.StrategyRunner'
strategy = dict(type='mkd_plugin.ShardedStrategy')
