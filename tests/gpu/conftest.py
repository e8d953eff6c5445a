"""Fixtures of the GPU tests: the small model of `firstorder coldstart`, untrained, and a process for each test.

vLLM reads variables when it is imported, and a GPU's memory is given back for certain only when a process ends.
"""

import multiprocessing
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from firstorder.backends.coldstart import SMALL

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tasks.py, trainers.py

engines = runpy.run_path(str(HERE.parent / "backends/conftest.py"))
write_model, pytest_configure = engines["write_model"], engines["pytest_configure"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture
def alone():
    """Calls a function in a process of its own, a new one every time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield lambda task, *arguments, **settings: pool.submit(task, *arguments, **settings).result()
