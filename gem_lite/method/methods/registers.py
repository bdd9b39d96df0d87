"""Test-time registers: what makes patches into outliers is moved to a token outside the picture."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import Method, Trunk, scaled
from ..neurons import register_neurons, with_register


@dataclass(frozen=True, kw_only=True)
class Registers(Method):
    """Test-time registers: plain CLIP whose outliers move to an added token.

    The authors find the neurons to move once, on 500 pictures, where an outlier is longer than a
    number chosen for the model. Here each picture has its own, and its median is the measure.
    """

    name: ClassVar[str] = "registers"
    paper: ClassVar[str] = "Jiang et al., NeurIPS 2025, arXiv 2506.08010"
    blocks: int = 0  # the stream is made in `combine`
    neurons: int = 10  # that move
    within: int = 6  # first blocks, of 12, that they are looked for in
    longer: float = 1.5  # an outlier's norm after the last block, in medians

    def reads(self, layers: int) -> range:  # noqa: D102
        return range(layers + 1)

    def combine(self, gem: Tensor, trunk: Trunk) -> Tensor:
        """CLIP's tokens when a register has the chosen neurons' largest activations, patches 0."""
        layers = len(trunk.blocks)
        norms = trunk.tokens[layers].norm(dim=-1)  # [b, n]
        outliers = norms > self.longer * norms.median(dim=1, keepdim=True).values
        (first,) = scaled([self.within], layers)
        chosen = register_neurons(trunk, first, outliers, self.neurons)
        return with_register(trunk, chosen)[:, :-1]
