"""The command ``python -m dataset_conversion.phantoms``."""

import sys

from dataset_conversion.phantoms import main

sys.exit(main())
