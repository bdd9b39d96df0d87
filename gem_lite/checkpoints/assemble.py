"""Tensors into a network: which tensors a CLIP has, and how a network takes them."""

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..method.base import Method
from ..method.config import ImageConfig, ModelConfig, TextConfig
from ..method.model import GEMNetwork

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Shapes = Mapping[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a CLIP, by arithmetic."""
    image, text, embed = config.image, config.text, config.embed
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "token_embedding.weight": (text.vocab, text.width),
        "positional_embedding": (text.context, text.width),
        "ln_final.weight": (text.width,),
        "ln_final.bias": (text.width,),
        "text_projection": (text.width, embed),
        "visual.conv1.weight": (image.width, 3, image.patch, image.patch),
        "visual.class_embedding": (image.width,),
        "visual.positional_embedding": (1 + image.grid[0] * image.grid[1], image.width),
        "visual.ln_pre.weight": (image.width,),
        "visual.ln_pre.bias": (image.width,),
        "visual.ln_post.weight": (image.width,),
        "visual.ln_post.bias": (image.width,),
        "visual.proj": (image.width, embed),
    }
    for prefix, tower in (("visual.transformer", image), ("transformer", text)):
        for layer in range(tower.layers):
            for name, shape in _block_shapes(tower).items():
                shapes[f"{prefix}.resblocks.{layer}.{name}"] = shape
    return shapes


def _block_shapes(tower: ImageConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    d, mlp = tower.width, tower.mlp_width
    return {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.in_proj_weight": (3 * d, d),
        "attn.in_proj_bias": (3 * d,),
        "attn.out_proj.weight": (d, d),
        "attn.out_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (mlp, d),
        "mlp.c_fc.bias": (mlp,),
        "mlp.c_proj.weight": (d, mlp),
        "mlp.c_proj.bias": (d,),
    }


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Name and shape of every tensor; those of a file are not read for it."""
    return getattr(tensors, "shapes", None) or {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def check_shapes(shapes: Shapes, config: ModelConfig, *, where: str) -> None:
    """Raise ValueError naming each of CLIP's tensors that is missing or has another shape.

    Tensors beyond CLIP's are for `assemble` to judge, since a network may declare its own.
    """
    layers = config.image.layers + config.text.layers
    if layers > len(shapes):  # before so many names are made
        raise ValueError(
            f"{where} does not fit the model: {len(shapes)} tensors for {layers} layers"
        )
    _compare(shapes, expected_shapes(config), where)


def _compare(shapes: Shapes, expected: Shapes, where: str, unknown: Collection[str] = ()) -> None:
    faults = [
        f"{name} has shape {list(shapes[name])}, expected {list(shape)}"
        if name in shapes
        else f"missing {name}, expected shape {list(shape)}"
        for name, shape in expected.items()
        if shapes.get(name) != shape
    ]
    faults += [f"unknown tensor {name} of shape {list(shapes[name])}" for name in sorted(unknown)]
    if faults:
        more = f"; and {len(faults) - 8} more" if faults[8:] else ""
        raise ValueError(f"{where} does not fit the model: {'; '.join(faults[:8])}{more}")


def check_finite(tensors: Mapping[str, Tensor], *, where: str = "") -> None:
    """Raise ValueError naming the first tensor that holds infinities or NaN."""
    for name, tensor in tensors.items():
        # The sum is the quick test; a large one of half numbers may overflow by itself.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{where}{name} holds numbers that are not finite; is the file damaged?"
            )


def assemble(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    method: Method,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    share: bool = False,
    where: str = "the checkpoint",
) -> GEMNetwork:
    """A network, in eval mode, that takes each tensor, one at a time, in `dtype` on `device`.

    CLIP's tensors must all be there. A tensor that an edited network declares beside them is taken
    from `tensors` if it is there, and else stays as its constructor initialised it.
    share: tensors that have dtype and device already are taken as they are, and not checked for
    infinities; otherwise all are copied.
    Raises ValueError for tensors that are missing, unknown, of another shape, not floating point,
    or not finite.
    """
    clip = expected_shapes(config)
    network = build(config, method)
    declared = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = shapes_of(tensors)
    wanted = {name: shape for name, shape in declared.items() if name in clip or name in shapes}
    _compare(shapes, wanted, where, shapes.keys() - declared.keys())
    if os.name == "nt" and hasattr(tensors, "shapes"):
        share = False  # a file's pages; Windows lets nobody replace a file that is in use
    state = {}
    for name in wanted:
        tensor = tensors[name]
        if name in clip and tensor.dtype not in FLOATING:
            raise ValueError(f"{where}: {name} holds {tensor.dtype}; expected floating point")
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        placed = tensor.to(device=device, dtype=kind, copy=not share)
        if placed is not tensor:
            check_finite({name: placed}, where=f"{where}: ")
        state[name] = placed
    place(network, state)
    if empty := [name for name, _ in _without_memory(network)]:
        raise ValueError(
            f"{', '.join(empty)} of the network is on the meta device, without numbers;"
            " initialise it in the constructor on a real device"
        )
    return network.to(device=device, dtype=dtype).eval()  # also what the file does not hold


def with_method(network: GEMNetwork, method: Method) -> GEMNetwork:
    """The same tensors, and the very same text tower, under another method. Raises ValueError."""
    other = assemble(
        network.state_dict(),
        network.config,
        method,
        dtype=network.dtype,
        device=network.device,
        share=True,
    )
    for name, module in network.named_children():
        if name != "visual":  # so that kept embeddings stay valid
            setattr(other, name, module)
    return other


def build(config: ModelConfig, method: Method) -> GEMNetwork:
    """A network whose CLIP tensors take no memory yet, its other tensors as constructed.

    Where a constructor does more than declare CLIP's tensors, such as looking at their numbers or
    making layers of its own, the network is constructed in full first, which takes a second.
    """
    clip = expected_shapes(config).keys()
    try:
        with _EmptyTakesNoMemory():
            network = GEMNetwork(config, method)
        if {name for name, _ in _without_memory(network)} <= clip:
            return network
    except Exception:  # whatever operators say of tensors without numbers
        pass  # an error that is not of these comes again below, where it is raised
    network = GEMNetwork(config, method)
    state = network.state_dict()
    state = {name: tensor.to("meta") for name, tensor in state.items() if name in clip}
    place(network, state)
    return network


def place(network: GEMNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a network as they are, by name; the others that it has stay.

    Raises ValueError for names that the network does not have.
    """
    own = network.state_dict(keep_vars=True)
    if unknown := sorted(tensors.keys() - own.keys()):
        raise ValueError(f"the network has no {', '.join(unknown)}")
    network.load_state_dict({**own, **tensors}, assign=True)


class _EmptyTakesNoMemory(TorchFunctionMode):
    """`torch.empty`, with which layers declare weights, gives meta tensors in this block."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def _without_memory(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters, buffers and plain attributes of a network that are meta tensors."""
    for prefix, module in network.named_modules(remove_duplicate=False):
        values = {**vars(module), **module._parameters, **module._buffers}
        for name, value in values.items():
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    yield f"{prefix}.{name}".lstrip("."), tensor
