"""Which method a model gets: what its weight file asks for, and what the caller says instead."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..method.base import Method, count
from ..method.methods import make_method
from .header import Header


def chosen_method(
    header: Header,
    method: str | Method | None,
    settings: Mapping[str, Any] | None,
    **gem: Any,
) -> Method:
    """The method a caller asks for, with the weight file's settings where nothing is said.

    gem: `gem_depth` and `gem_residual` for methods with dual blocks; `ss_attn_iter`, `ss_attn_temp`
    and `gem_streams` for GEM alone; None = not said. Raises ValueError or TypeError.
    """
    said = {name: value for name, value in gem.items() if value is not None}
    if isinstance(method, Method):
        if said or settings:
            raise ValueError(f"{[*said, *(settings or {})]} beside a Method object: set them in it")
        return method
    name = header.method if method is None else method
    changes: dict[str, Any] = dict(header.settings) if name == header.method else {}
    if name == "gem":
        changes = {**asdict(header.gem), **changes}
    elif wrong := sorted(set(said) - {"gem_depth", "gem_residual"}):
        raise ValueError(f"{wrong[0]} is a setting of GEM; the method is {name!r}")
    if "gem_depth" in said:
        depth, layers = said["gem_depth"], header.config.image.layers
        count("gem_depth", depth)
        if not 1 <= depth <= layers + 1:
            raise ValueError(
                f"gem_depth is {depth}; expected 1 (no dual block) to {layers + 1} (all {layers}"
                " layers of the image tower)"
            )
        changes["blocks"] = depth - 1
    if "ss_attn_iter" in said:
        count("ss_attn_iter", said["ss_attn_iter"])
    if isinstance(temperature := said.get("ss_attn_temp"), str) and temperature != "adaptive":
        raise ValueError(f"ss_attn_temp is {temperature!r}; expected a number or 'adaptive'")
    if temperature is not None:
        changes["inv_temp"] = None if temperature == "adaptive" else temperature
    for ours, theirs in (
        ("residual", "gem_residual"),
        ("iters", "ss_attn_iter"),
        ("streams", "gem_streams"),
    ):
        if theirs in said:
            changes[ours] = said[theirs]
    return make_method(name, {**changes, **(settings or {})})
