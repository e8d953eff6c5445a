"""vLLM's server with the quantisation of this package; `backends.vllm.serve` becomes this.

The console script `vllm` does not start in the CPU build, which has another distribution name.
"""

from __future__ import annotations

import runpy

from . import fp8  # noqa: F401  # registers its schemes, in the processes that vLLM starts as well

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
