"""``python -m chiasm`` is ``chiasm``."""

import sys

from chiasm.cli import main

sys.exit(main())
