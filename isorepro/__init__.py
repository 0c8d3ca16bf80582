"""Reproduction of *Isometric Representations in Neural Networks Improve Robustness* (arXiv 2211.01236)."""

__version__ = "0.1.0"
