"""How runs are started: torchx components and the recipes."""
