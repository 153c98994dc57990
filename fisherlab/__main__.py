"""`python -m fisherlab` is `fisherlab`."""

import sys

from fisherlab.cli import main

sys.exit(main())
