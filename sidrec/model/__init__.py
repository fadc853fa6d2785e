"""Plain nn.Modules on KeyedTensors: fusion, gate, alignment, item, backbone, ranker. No rank, no device, no I/O."""
