"""``python -m selfaug.self_dialogue generate | mix``"""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
