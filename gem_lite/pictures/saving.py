"""Writing pictures, and any file, complete or not at all."""

import io
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def replace_file(path: Path, data: bytes) -> None:
    """Write a file, complete or not at all, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format its name ends in. Raises ValueError for another ending."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(
            f"{path} does not end as a picture that Pillow writes; expected .png, .jpg, .webp, ..."
        )
    file = io.BytesIO()
    picture.save(file, kind, quality=95)  # what has no loss does not ask for it
    replace_file(path, file.getvalue())


def safe_name(index: int, prompt: str) -> str:
    """A file name for a prompt: its place in the list, and what of it is safe everywhere."""
    words = re.sub(r"[^\w-]+", "_", prompt).strip("_")
    while len(words.encode()) > 80:
        words = words[:-1]
    return f"{index:02d}-{words}.png" if words else f"{index:02d}.png"


def save_overlays(
    path: Path, sheet: Image.Image, overlays: Sequence[Image.Image], prompts: Sequence[str]
) -> None:
    """A sheet where the path has a picture's ending, else a folder with a file for each prompt."""
    if path.suffix.lower() in Image.registered_extensions() and not path.is_dir():
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to; make it")
        save_picture(sheet, path)
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file without a picture's ending; give .png or a folder")
    path.mkdir(parents=True, exist_ok=True)
    for index, (overlay, prompt) in enumerate(zip(overlays, prompts, strict=True)):
        save_picture(overlay, path / safe_name(index, prompt))
