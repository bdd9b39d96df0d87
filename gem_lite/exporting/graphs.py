"""What an exported file computes, as modules, and the programs that PyTorch traces from them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.files import shown
from ..method.heatmap import min_max, upsample
from ..method.image import ImageEncoder
from ..method.model import GEMNetwork
from ..method.positions import resample_positions
from ..method.segment import label_maps

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the largest


class Features(nn.Module):
    """images -> both streams in the space shared with text, float32, class token first."""

    names = ("clip", "gem")

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: [b, 3, h, w] -> two of [b, n, e]."""
        features = self.visual(images.to(self.visual.proj.dtype))
        return features.clip.float(), features.gem.float()


class Maps(nn.Module):
    """images -> maps of words: a cosine a patch, a cosine a pixel, or stretched to [0, 1]."""

    names: tuple[str, ...] = ("maps",)

    def __init__(self, visual: nn.Module, method: Any, text: Tensor, kind: str) -> None:
        super().__init__()
        self.visual: Any = visual
        self.method = method
        self.kind = kind
        self.register_buffer("text", text)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: [b, 3, h, w] -> [b, p, grid h, grid w], or [b, p, h, w]."""
        x = images.to(self.visual.proj.dtype)
        features = self.visual(x)
        scores = self.method.scores(self.visual, x, features, self.text)  # [b, p, n]
        if self.kind == "patches":
            return (scores.unflatten(-1, features.grid).float(),)
        maps = upsample(scores, features.grid, (images.shape[-2], images.shape[-1])).float()
        return (min_max(maps) if self.kind == "maps" else maps,)


class Labels(nn.Module):
    """images -> the class of each pixel, 0 = background, and its probability."""

    names = ("labels", "confidence")

    def __init__(self, cosines: Maps, groups: Sequence[int], **settings: Any) -> None:
        super().__init__()
        self.cosines = cosines
        self.groups = list(groups)
        self.settings = settings

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: [b, 3, h, w] -> [b, h, w] int64 and float32."""
        (maps,) = self.cosines(images)
        return tuple(label_maps(maps, groups=self.groups, **self.settings))


class Text(nn.Module):
    """tokens -> text embeddings of unit norm, float32."""

    names = ("text",)

    def __init__(self, network: GEMNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """tokens: [p, n] int64 -> [p, e]."""
        return (F.normalize(self.network.encode_text(tokens).float(), dim=-1),)


def image_tower(network: GEMNetwork, dtype: torch.dtype, size: tuple[int, int] | None) -> nn.Module:
    """The image tower on the CPU; for images of one size, (h, w), with the positions for these."""
    visual: Any = _moved(network.visual, dtype)
    if size is None or not isinstance(visual, ImageEncoder):
        return visual
    grid = (size[0] // visual.patch, size[1] // visual.patch)
    positions = resample_positions(
        visual.positional_embedding, visual.native_grid, grid, visual.method.positions
    )
    visual = copy.copy(visual)
    visual._parameters = {**visual._parameters, "positional_embedding": nn.Parameter(positions)}
    visual.native_grid = grid
    return visual


def text_tower(network: GEMNetwork, dtype: torch.dtype) -> GEMNetwork:
    """The network on the CPU without its image tower."""
    network = copy.copy(network)
    modules = network._modules.items()
    network._modules = {name: module for name, module in modules if name != "visual"}
    return _moved(network, dtype)


def _moved(module: Any, dtype: torch.dtype) -> Any:
    """The module itself where nothing has to change, else a copy."""
    as_wanted = all(x.device.type == "cpu" and x.dtype == dtype for x in module.parameters())
    return module if as_wanted else copy.deepcopy(module).to(device="cpu", dtype=dtype)


def traced(graph: nn.Module, inputs: Tensor, trials: Sequence[Tensor], what: str) -> Any:
    """The `ExportedProgram` of a graph, held against the graph on other inputs.

    inputs: an example; sides in which a trial differs from it are left open in the program.
    Raises ValueError where it cannot be traced, or computes something else than the graph.
    """
    from torch.export import Dim, export

    open_sides = {
        side: Dim.DYNAMIC
        for side in range(inputs.ndim)
        if any(trial.shape[side] != inputs.shape[side] for trial in trials)
    }
    try:
        program = export(graph, (inputs,), dynamic_shapes=(open_sides,))
        run = program.module()
        found = [run(trial) for trial in trials]
    except Exception as error:  # of many kinds, PyTorch's own
        raise ValueError(f"{what} cannot be exported: {reason(error)}{_older()}") from error
    for trial, outputs in zip(trials, found, strict=True):
        _check(outputs, graph(trial), TOLERANCE[next(graph.parameters()).dtype], what)
    return program


def _older() -> str:
    """What to do where PyTorch is older than the one that exporting was written with."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return "" if version >= (2, 13) else f"; this is PyTorch {torch.__version__}, 2.13 exports it"


def reason(error: BaseException) -> str:
    """The first line of the error that began it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return shown(Exception(f"{type(error).__name__}: {lines[0] if lines else ''}"))


def _check(found: Sequence[Tensor], expected: Sequence[Tensor], limit: float, what: str) -> None:
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            differs = f"{list(a.shape)} for {list(b.shape)}"
        elif not b.is_floating_point():
            continue  # a tie may fall to either side; the probability beside it is compared
        elif (error := _error(a, b)) > limit:
            differs = f"it differs by {error:.1g} of the largest value"
        else:
            continue
        raise ValueError(f"{what} cannot be exported: the graph does not do the same ({differs})")


def _error(a: Tensor, b: Tensor) -> float:
    """The median over images: where a method has thresholds, a rounding may turn one of them."""
    errors = (a - b).flatten(1).abs().amax(dim=1)
    return float(errors.median() / b.abs().max().clamp(min=1e-6))
