"""Coverage-guided fuzzing of what reads foreign bytes; README.md says how to run it.

python tests/fuzz/fuzz.py TARGET CORPUS [libFuzzer options], with a target of TARGETS
"""

import contextlib
import importlib
import io
import json
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gem_lite.method.config import ModelConfig

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


def convert(data: bytes) -> None:
    """A foreign file converted: what is written loads again, finite; else nothing is written."""
    import layouts

    from gem_lite.checkpoints.convert import convert as write
    from gem_lite.checkpoints.convert import resolve_config
    from gem_lite.checkpoints.others import read_source
    from gem_lite.checkpoints.ours import load

    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder, "it.pt"), Path(folder, "out.safetensors")
        path.write_bytes(data)
        try:
            source = read_source(path)
            # As if a configuration lay beside it: the smallest model, under any name.
            source = replace(source, config=source.config or smallest(), claims={})
            config = resolve_config(source, "it", activation="quick_gelu")
            write(source, output, layouts.header_of(config))
        except (ValueError, FileNotFoundError):
            assert not output.exists()
            return
        network, _ = load(output)
        assert all(bool(each.isfinite().all()) for each in network.parameters())


def evaluation(data: bytes) -> None:
    """What an evaluation reads: the first byte says which file these bytes are."""
    from gem_lite.tools.evaluation.context import json_labels
    from gem_lite.tools.evaluation.datasets import open_folder
    from gem_lite.tools.evaluation.names import read_names
    from gem_lite.tools.evaluation.openimages import open_points
    from gem_lite.tools.evaluation.run import read_partial

    kind, content = data[:1], data[1:]
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(ValueError, FileNotFoundError):
        folder = Path(name)
        if kind == b"n":
            (folder / "names.txt").write_bytes(content)
            assert all(read_names(folder / "names.txt"))
        elif kind == b"p":
            (folder / "partial-0.npz").write_bytes(content)
            read_partial(folder / "partial-0.npz", '{"a": 1}', (2, 2))
        elif kind == b"j":
            (folder / "it.json").write_bytes(content)
            for read in json_labels(folder / "it.json", "val").values():
                assert read().max() <= 59
        elif kind == b"c":
            listing, _, names = content.partition(b"\0")
            (folder / "validation").mkdir()
            (folder / "validation" / "a.jpg").write_bytes(b"")
            (folder / "oidv7-val-annotations-point-labels.csv").write_bytes(listing)
            (folder / "oidv7-class-descriptions.csv").write_bytes(names)
            assert open_points(folder).items
        else:
            for part in ("images", "labels"):
                (folder / part).mkdir()
            (folder / "images" / "a.png").write_bytes(b"")
            (folder / "labels" / "a.png").write_bytes(content)
            (folder / "names.txt").write_text("background\ncat\n")
            data_set = open_folder(folder / "images", folder / "labels", folder / "names.txt")
            assert set(data_set.truth(data_set.items[0]).flat) <= {-1, 0, 1, 2}


def vendor(data: bytes) -> None:
    """The record in a copy made before, and the changes that are shown because of it."""
    from gem_lite.tools.commands.vendor import RECORD, _read_record, local_changes, part_files

    with tempfile.TemporaryDirectory() as name, contextlib.suppress(ValueError):
        target = Path(name, "into")
        target.mkdir()
        Path(name, "secret").write_text("not for showing")
        (target / RECORD).write_bytes(data)
        changes = local_changes(target, _read_record(target), part_files("method"))
        assert "not for showing" not in "".join(changes)


# What is watched for coverage: packages, and their modules to load anew.
INSTRUMENTED = {
    "zipfile": ["zipfile"],
    "pickle": ["pickle"],
    "torch": ["torch._weights_only_unpickler", "torch.serialization"],
    "PIL": ["PIL.Image"],
    "ftfy": ["ftfy"],
    "gem_lite": [
        *("gem_lite.checkpoints.others", "gem_lite.pictures.opening", "gem_lite.tokenizer"),
        *("gem_lite.checkpoints.convert", "gem_lite.tools.commands.vendor"),
        *("gem_lite.tools.evaluation.openimages", "gem_lite.tools.evaluation.run"),
    ],
    "csv": ["csv"],
    "json": ["json.decoder"],
}

EACH = (checkpoint, safetensors, image, tokenizer, convert, evaluation, vendor)
TARGETS = {each.__name__: each for each in EACH}


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
    elif target in ("evaluation", "vendor"):
        other_files(folder, target)
    else:
        weight_files(folder)
        for path in folder.glob("*.pt") if target == "safetensors" else ():
            path.unlink()


def smallest() -> "ModelConfig":
    """A CLIP of 1,200 numbers."""
    from gem_lite.method.config import ImageConfig, ModelConfig, TextConfig

    return ModelConfig(
        embed=2,
        activation="quick_gelu",
        image=ImageConfig(size=1, patch=1, width=2, layers=1, heads=1, mlp_width=2),
        text=TextConfig(context=4, vocab=514, width=2, layers=1, heads=1, mlp_width=2),
    )


def other_files(folder: Path, target: str) -> None:
    """What an evaluation reads, a kind a first byte; or records of vendored copies."""
    if target == "vendor":
        from gem_lite.tools.commands.vendor import _record, part_files

        files = part_files("method")
        (folder / "whole").write_text(_record("it", "method", dict(list(files.items())[:3])))
        row = f"| `%s` | `{'0' * 64}` |\n"
        (folder / "outside").write_text("--part method\n" + row % "../secret")
        (folder / "row").write_text("--part all\n" + row % "base.py" + row % "none.py")
        return
    import numpy as np
    from PIL import Image

    def labels(name: str, kind: str, **options: Any) -> None:
        Image.fromarray(np.eye(3, dtype=np.uint8)).save(out := io.BytesIO(), kind, **options)
        (folder / name).write_bytes(b"l" + out.getvalue())

    labels("labels", "PNG")
    labels("gif", "GIF")
    (folder / "names").write_bytes(b"nbackground\ncat, kitten\n# no name\n")
    for name, key in (("partial", '{"a": 1}'), ("other", '{"a": 2}'), ("none", "[")):
        np.savez(out := io.BytesIO(), key=key, counts=np.zeros((2, 2), int), done=np.arange(2))
        (folder / name).write_bytes(b"p" + out.getvalue())
    picture = {"image_id": 1, "file_name": "a.jpg", "height": 2, "width": 3, "phase": "val"}
    area = {"image_id": 1, "category_id": 2, "segmentation": {"counts": "123"}}
    (folder / "json").write_text(
        "j" + json.dumps({"images": [picture], "annos_segmentation": [area]})
    )
    head = "ImageId,X,Y,Label,EstimatedYesNo\n"
    (folder / "csv").write_text(f'c{head}a,0.1,0.2,/m/1,yes\na,1,0,/m/1,no\n\0/m/1,"a, b"\n')


def weight_files(folder: Path) -> None:
    """A whole CLIP of 1,200 numbers in every layout, and files of two tensors, which go faster."""
    import layouts
    import torch
    from safetensors.torch import save_file

    from gem_lite.checkpoints.ours import write

    config = smallest()
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
