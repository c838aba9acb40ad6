"""`python -m fasttransfer` is `fasttransfer`."""

from fasttransfer.cli import main

if __name__ == "__main__":  # worker processes import this module and must not start over
    main()
