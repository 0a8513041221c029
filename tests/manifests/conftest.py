import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `cluster`, which the rehearsal uses too
