"""What the tests with other trainers share: the examples, which they run, and silence."""

import os
import sys
from pathlib import Path

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).parents[2] / "docs/examples"))


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore")  # of other people's packages
