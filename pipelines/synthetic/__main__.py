"""A worker process of `render`, with the arguments FOLDER TRAIN VAL SIZE WORKERS WORKER."""

import sys
from pathlib import Path

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.synthetic import render_share

if __name__ == "__main__":
    try:
        render_share(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
