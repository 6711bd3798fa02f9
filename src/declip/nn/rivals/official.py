"""Official state dicts → those of the rivals here: renamed by rules, and loaded strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from declip.errors import WeightsError

__all__ = ["load_strictly", "rename"]


def rename(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename every key by the first rule (regular expression of its beginning → replacement) that fits it.

    Raises WeightsError where no rule fits, or two keys get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        rule = next((pattern for pattern in rules if re.match(pattern, key)), None)
        if rule is None:
            raise WeightsError(f"unexpected tensor {key!r}; expected names that begin like {', '.join(rules)}")
        name = re.sub(f"^(?:{rule})", rules[rule], key)
        if name in renamed:
            raise WeightsError(f"{key!r} and another tensor would both be {name!r}: this is not one network's state")
        renamed[name] = value
    return renamed


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose keys and shapes must be exactly the network's. Raises WeightsError."""
    try:
        net.load_state_dict(dict(state))
    except RuntimeError as error:
        raise WeightsError(f"{source} does not fit: {error}") from error
