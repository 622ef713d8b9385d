"""Every architecture by name."""

from __future__ import annotations

from architecture import Architecture
from zoo_convolutional import CONVOLUTIONAL
from zoo_other import OTHER
from zoo_sound import SOUND
from zoo_text import TEXT
from zoo_vision import VISION

ARCHITECTURES: dict[str, Architecture] = {**CONVOLUTIONAL, **OTHER, **TEXT, **VISION, **SOUND}
