"""What the extension module offers; ``relay.py`` owns its pointers (see native/builder.py)."""

from typing import Any

ffi: Any
lib: Any
