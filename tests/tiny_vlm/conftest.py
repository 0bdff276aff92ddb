"""Puts examples/tiny_vlm, a folder of scripts, on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "tiny_vlm"))
