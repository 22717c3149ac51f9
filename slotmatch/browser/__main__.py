"""``python -m slotmatch.browser`` fetches what the live page runs, before it is needed."""

import sys

from slotmatch.browser.vendor import ONNXRUNTIME, fetch

try:
    fetch(ONNXRUNTIME)
except RuntimeError as error:
    sys.exit(str(error))
