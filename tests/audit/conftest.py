"""Where the tests of audits keep what they share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))  # made.py
sys.path.insert(0, str(Path(__file__).parent))  # dumps.py, toy_engines.py
