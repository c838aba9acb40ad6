"""Train small studies and print a digest of every network's weights: run it before and after a change of the code.

    python -m bench.digests [FOLDER]

Equal lines on one machine mean equal weights to the bit. It speaks to the command line alone, so that the same file
runs on any version of the package.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

SMALL = "--split natural-manmade --classes 2 --seeds 3"
MINI = "--per-class 40 --steps 8 --layers 3 5"
CAFFENET = "--per-class 8 --steps 2 --batch 8"
STUDIES = {
    "mini": "--per-class 40 --epochs 2 --layers 1 3 6",
    "mini, dali": "--per-class 40 --steps 6 --layers 2 --feed dali",
    "mini, 2 views, cache": f"{MINI} --views 2 --features cache",
    "mini, 2 views, live": f"{MINI} --views 2 --features live",
    "caffe, bf16": f"{CAFFENET} --layers 3 7 --recipe caffe --precision bf16 --treatments transfer selffer+ random-he",
    "fast, fp32": f"{CAFFENET} --layers 5 --recipe fast --precision fp32 --treatments transfer transfer+",
}
"""name -> arguments of `fasttransfer grid`."""


def digest(path: Path) -> str:
    """Return a digest of names and bytes of the tensors in a safetensors file, whatever its metadata."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(name.encode() + tensor.tobytes())
    return found.hexdigest()[:16]


def main(folder: Path) -> None:
    """Train each study in a subfolder of `folder` and print its digests."""
    for name, arguments in STUDIES.items():
        out = folder / name.replace(", ", "-").replace(" ", "")
        command = [sys.executable, "-m", "fasttransfer", "grid", *SMALL.split(), *arguments.split(), "--out", str(out)]
        subprocess.run([*command, "--device", "cpu"], check=True, stdout=subprocess.DEVNULL)
        for path in sorted(out.glob("weights/**/*.safetensors")):
            print(f"{name}: {path.stem} {digest(path)}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
