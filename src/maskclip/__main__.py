"""`python -m maskclip` is `maskclip`."""

import sys

from maskclip.cli import main

sys.exit(main())
