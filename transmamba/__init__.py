"""Move a Transformer's knowledge into a Mamba (arXiv 2502.15130)."""

__version__ = "0.1.0.dev0"
