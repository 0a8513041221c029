"""Every deployment, its image pinned as `make pin` does, through an outside validator.

validate.py COMMAND...     the validator, which reads YAML from standard input, such as
                           `python validate_manifests.py`; it is run once for each set of CRDs that lies beside it
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from cluster import DEPLOYMENTS, IMAGE, rendered

# The digest of the image is known once it is built; here any stands for it.
PINNED = f"salescast@sha256:{hashlib.sha256(IMAGE.encode()).hexdigest()}"


def main(command: list[str]) -> int:
    beside = Path(command[-1]).parent
    sets = [[], *(["--crds", str(other), "--crds", str(beside / "crds")] for other in sorted(beside.glob("crds-*")))]
    failed = 0
    for name, folders in DEPLOYMENTS.items():
        text = "\n---\n".join(rendered(folder) for folder in folders).replace(f"image: {IMAGE}", f"image: {PINNED}")
        for crds in sets:
            sys.stdout.write(f"{name} {' '.join(crds)}\n")
            sys.stdout.flush()
            failed += subprocess.run([*command, "--policy", *crds, "-"], input=text, text=True, check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
