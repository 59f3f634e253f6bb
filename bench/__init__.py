"""Times the ops side by side: `python -m bench`, or `python -m bench.<op>` for one; see harness.py.

Here stands only what must be set before torch is imported: with OpenMP's default policy threads
spin while they wait, and one other busy process ruins every figure (docs/benchmarks.md).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
