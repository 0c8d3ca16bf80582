"""Reproduction of *Isometric Representations in Neural Networks Improve Robustness* (arXiv 2211.01236)."""

from isorepro import sources

__version__ = "0.1.0"

sources.watch()
