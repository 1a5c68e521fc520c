"""Where this runs: a machine of one's own, Colab or Kaggle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def hosted(environment: Mapping[str, str] | None = None) -> str:
    """ "colab", "kaggle" or "local"."""
    env = os.environ if environment is None else environment
    if "KAGGLE_KERNEL_RUN_TYPE" in env or "KAGGLE_URL_BASE" in env:
        return "kaggle"  # before Colab: its images hold parts of Colab's
    if "COLAB_RELEASE_TAG" in env or "COLAB_GPU" in env or Path("/content/sample_data").is_dir():
        return "colab"
    return "local"
