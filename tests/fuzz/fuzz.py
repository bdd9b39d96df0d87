"""Coverage-guided fuzzing of what reads foreign bytes; README.md says how to run it.

python tests/fuzz/fuzz.py checkpoint|safetensors|image|tokenizer CORPUS [libFuzzer options]
"""

import importlib
import io
import sys
import tempfile
import time
import warnings
from pathlib import Path

SECONDS = 10  # of processor time that an input may take; libFuzzer's -timeout is of wall time

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]


def checkpoint(data: bytes) -> None:
    """Any weight file: read, and every tensor of it taken."""
    from gem_lite.checkpoints.others import read_source

    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(data)
        file.flush()
        try:
            source = read_source(Path(file.name))
            for name in list(source.tensors)[:200]:
                source.tensors[name].sum()
        except (ValueError, FileNotFoundError):
            pass


def safetensors(data: bytes) -> None:
    """A file of ours: header and weights."""
    from gem_lite.checkpoints.ours import load

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        try:
            load(file.name)
        except (ValueError, FileNotFoundError):
            pass


def image(data: bytes) -> None:
    """A picture, opened and made a tensor; small, so that a run has many."""
    from gem_lite.pictures.opening import open_picture
    from gem_lite.pictures.transform import ImageTransform

    try:
        picture = open_picture(io.BytesIO(data), name="it", max_pixels=1_000_000)
    except ValueError:
        return
    assert picture.mode == "RGB"
    tensor = ImageTransform((16, 16))(picture)
    assert tensor.shape == (3, 16, 16) and bool(tensor.isfinite().all())


_TOKENIZERS: list = []


def tokenizer(data: bytes) -> None:
    """Any text, lone surrogates included, and back again."""
    from gem_lite.tokenizer import Tokenizer

    if not _TOKENIZERS:
        _TOKENIZERS.append(Tokenizer(vocab_size=2000))
    tokens = _TOKENIZERS[0]
    text = data.decode("utf-8", errors="replace")
    if data[:1] == b"\x00":
        text += "\ud800"  # half a letter, as JSON can hold
    rows = tokens(text)
    assert rows.shape == (1, 77) and int(rows.max()) < 2000
    ids = tokens.encode(text)
    assert len(ids) <= 4 * len(text.encode("utf-8", "surrogatepass")) + 8
    tokens.decode(ids)


# What is watched for coverage: packages, and their modules to load anew.
INSTRUMENTED = {
    "zipfile": ["zipfile"],
    "pickle": ["pickle"],
    "torch": ["torch._weights_only_unpickler", "torch.serialization"],
    "PIL": ["PIL.Image"],
    "ftfy": ["ftfy"],
    "gem_lite": ["gem_lite.checkpoints.others", "gem_lite.pictures.opening", "gem_lite.tokenizer"],
}

TARGETS = {each.__name__: each for each in (checkpoint, safetensors, image, tokenizer)}


def seeds(folder: Path, target: str) -> None:
    """Small valid inputs to begin from."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    if target == "tokenizer":
        for index, text in enumerate(
            ("a photo of a cat.", "&amp;lt; caf\u00e9 \u202e \U0001f408", "")
        ):
            (folder / f"text{index}").write_bytes(text.encode())
    elif target == "image":
        picture = Image.linear_gradient("L").resize((9, 7))
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
            for mode in ("L", "RGB"):
                picture.convert(mode).save(folder / f"{kind}-{mode}", kind)
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(folder / "exif", "JPEG", exif=exif)
        picture.convert("P").save(folder / "palette", "PNG", transparency=b"\x00\x7f")
        picture.convert("CMYK").save(folder / "cmyk", "JPEG")
        picture.convert("I").convert("I;16").save(folder / "sixteen", "PNG")
    else:
        weight_files(folder)
        for path in folder.glob("*.pt") if target == "safetensors" else ():
            path.unlink()


def weight_files(folder: Path) -> None:
    """A whole CLIP of 1,200 numbers in every layout, and files of two tensors, which go faster."""
    import layouts
    import torch
    from safetensors.torch import save_file

    from gem_lite.checkpoints.ours import write
    from gem_lite.method.config import ImageConfig, ModelConfig, TextConfig

    config = ModelConfig(
        embed=2,
        activation="quick_gelu",
        image=ImageConfig(size=1, patch=1, width=2, layers=1, heads=1, mlp_width=2),
        text=TextConfig(context=4, vocab=514, width=2, layers=1, heads=1, mlp_width=2),
    )
    state = layouts.state_of(config)
    write(folder / "own", state, layouts.header_of(config))
    layouts.write_open_clip(state, folder / "foreign")
    save_file(layouts.hugging_face_state(state), folder / "huggingface")
    layouts.write_training_checkpoint(state, folder / "training.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    layouts.write_torchscript(state, folder / "script.pt", config)
    two = {"visual.conv1.weight": torch.zeros(2, 3, 1, 1), "logit_scale": torch.zeros(())}
    torch.save({"state_dict": two}, folder / "two.pt")
    torch.save(two, folder / "two-old.pt", _use_new_zipfile_serialization=False)
    layouts.write_torchscript(two, folder / "two-script.pt", config)
    save_file(two, folder / "two")


def main() -> None:
    """Run one target under atheris."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if sys.argv[1] == "--seeds":
        for target in TARGETS:
            seeds(Path(sys.argv[2]) / target, target)
        return
    import atheris
    from mutate import mutated

    warnings.simplefilter("ignore")
    target = TARGETS[sys.argv.pop(1)]
    importlib.import_module("torch")  # all of it instrumented would take minutes
    for package, names in INSTRUMENTED.items():
        with atheris.instrument_imports(include=[package]):
            for name in names:
                known = sys.modules.get(name)
                importlib.reload(known) if known else importlib.import_module(name)
            if package == "PIL":
                importlib.import_module("PIL.Image").init()  # loads its readers

    def limited(data: bytes) -> None:
        began = time.process_time()
        target(data)
        if (took := time.process_time() - began) > SECONDS:
            raise TimeoutError(f"{len(data)} bytes took {took:.0f} s of processor time")

    def changed(data: bytes, most: int, seed: int) -> bytes:
        return mutated(data, most, seed, atheris.Mutate)

    # The fuzzer's own name first, then the corpus and the options.
    atheris.Setup([sys.argv[0], *sys.argv[1:]], limited, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
