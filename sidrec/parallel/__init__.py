"""Where things live: process group, plan, sharders, DistributedModelParallel. The only room that says world_size."""
