"""Checks of what callers give: images, sizes, pairs."""

from typing import Any, Literal

from torch import Tensor

MapSize = tuple[int, int] | Literal["patches"] | None


def checked_images(images: Any, patch: int) -> Tensor:
    """Images [b, 3, h, w] of floats, of at least one patch; TypeError or ValueError otherwise."""
    if not isinstance(images, Tensor):
        shown = "a string" if isinstance(images, str) else f"of type {type(images).__name__}"
        raise TypeError(
            f"images is {shown}; expected a float tensor [batch, 3, height, width],"
            " such as transform(picture).unsqueeze(0)"
        )
    if not images.is_floating_point():
        raise TypeError(
            f"images holds {images.dtype}; expected floating point, scaled and normalised as"
            " the model's transform does"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        hint = "; add the batch axis with unsqueeze(0)" if images.ndim == 3 else ""
        raise ValueError(
            f"images has shape {list(images.shape)}; expected [batch, 3, height, width]{hint}"
        )
    if len(images) == 0:
        raise ValueError("images is an empty batch; expected at least one image")
    covers_patch((images.shape[-2], images.shape[-1]), patch, "images")
    return images


def covers_patch(size: tuple[int, int], patch: int, what: str) -> None:
    """Raise ValueError for (h, w) below one patch."""
    if min(size) < patch:
        raise ValueError(
            f"{what} of {size[0]} x {size[1]} pixels (h x w); expected at least one patch,"
            f" {patch} x {patch}"
        )


def map_size(size: MapSize, images: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of maps: as asked for, or the images'; "patches" is the grid."""
    if size is None:
        return (images.shape[-2], images.shape[-1])
    if size == "patches":
        return grid
    if isinstance(size, str) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {size!r}; expected (height, width) in pixels, or 'patches'")
    return (size[0], size[1])


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(h, w) from one side or both."""
    return (size, size) if isinstance(size, int) else size
