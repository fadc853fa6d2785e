"""sidrec: ranking with hashed item IDs (HIDs) and semantic IDs (SIDs) on TorchRec."""

__version__ = "0.1.0"
