"""Documents that are not prepared although they can be read, since something was found in them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LeftOut:
    """numbers: theirs among all. fingerprint: the same for the same numbers, found in the same way.
    about: what the index is to say of it, by key."""

    numbers: AbstractSet[int] = frozenset()
    fingerprint: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
