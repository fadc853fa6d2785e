"""Starting runs: torchx components, starting recipes and the demo."""
