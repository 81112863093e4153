"""Found before the real transformers in every process that `selfaug_patcher run` started: serves the patched modules
from memory, then gives way to the real package."""

import importlib
import os
import sys

_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(_root)
try:
    from selfaug_patcher.run import serve_child
finally:
    sys.path.remove(_root)

del sys.modules[__name__]
serve_child()
importlib.import_module(__name__)
