"""Where things live: process group, topology, sharders, plan, DistributedModelParallel. The only room that says world_size."""
