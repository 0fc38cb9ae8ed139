"""The command ``python -m dataset_conversion.phantoms``."""

import sys

from dataset_conversion.phantoms import main

if __name__ == "__main__":
    sys.exit(main())
