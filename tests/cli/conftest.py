"""Where the tests of the command line keep what they share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # fuzz.py
