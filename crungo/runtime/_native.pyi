"""What the extension module offers; each C part's pointers are owned by one Python module (see native/builder.py)."""

from typing import Any

ffi: Any
lib: Any
