"""What decides the bits of a result beside its code: the libraries, the settings of torch, and the device."""

from collections.abc import Callable
from typing import Any

import torch

LIBRARIES = (
    *("gudhi", "numpy", "POT", "pyautoattack", "scikit-learn", "scipy", "torch", "torchvision", "umap-learn"),
)
"""Libraries that compute: a result is kept for one version of each."""

# One thread whatever the number of workers: sums are split by thread, so the bits depend on it. The others are for
# those who have set them in their session, of which the key of a result knows nothing.
SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (torch.get_num_threads, torch.set_num_threads, 1),
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
)
"""How each setting is read and set, and its value while a result is computed."""


def gpu() -> str | None:
    """Return the name of the GPU that computes; None if there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
