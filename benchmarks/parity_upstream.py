"""Compare gem_lite with upstream gem_torch at full ViT-B/16 size, in every weight layout.

    python benchmarks/parity_upstream.py                             # both in one environment
    python benchmarks/parity_upstream.py --upstream-python UPSTREAM_ENV/bin/python

Draws one set of random weights per activation, writes it in each layout, lets upstream (gem_torch
1.0.1 on open_clip_torch 2.23.0) score two pictures of noise with it, and compares stage by stage.
Prints a table; the exit code is 1 when an error is above its tolerance.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import torch
from torch import Tensor

PROMPTS = ["cat", "remote control", "a très long château &amp; 犬 🐱!", "elon musk"]
OWN_PROMPTS = [PROMPTS[:1], PROMPTS[1:]]  # of each image, for batched_forward
MODELS = {"quick_gelu": "ViT-B/16-quickgelu", "gelu": "ViT-B/16"}  # by activation
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "iter2": {"ss_attn_iter": 2},
    "temp5": {"ss_attn_temp": 5.0},
    "depth4": {"gem_depth": 4},
}
# Features relative to the largest value, maps absolute.
TOLERANCES = {
    "text": 2e-5,
    "clip": 2e-5,
    "gem": 2e-5,
    "heat": 1e-4,
    "cosine": 1e-4,
    "heat_ori": 1e-4,
    "batched": 1e-4,
}


def images(size: tuple[int, int]) -> Tensor:
    """Two pictures [2, 3, h, w]: blobs of three scales, so that patches differ and agree."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(2, 3, *size)
    for cells in (4, 16, 64):
        noise = torch.randn(2, 3, cells, cells, generator=generator)
        total += torch.nn.functional.interpolate(noise, size=size, mode="bilinear")
    return total


def upstream_outputs(folder: Path, activation: str, size: tuple[int, int]) -> None:
    """Runs in upstream's environment; writes folder/upstream.npz."""
    import gem  # type: ignore[import-not-found]

    outputs: dict[str, Tensor] = {}
    pictures = images(size)
    for variant, settings in VARIANTS.items():
        model = gem.create_gem_model(MODELS[activation], str(folder / "plain.pt"), **settings)
        model.eval()
        gem_stream, clip_stream = model.model.visual(pictures)
        outputs[f"{variant}/gem"] = gem_stream
        outputs[f"{variant}/clip"] = clip_stream
        outputs[f"{variant}/heat"] = model(pictures, PROMPTS)
        if variant == "default":
            outputs[f"{variant}/text"] = model.encode_text(PROMPTS)
            outputs[f"{variant}/cosine"] = model(pictures, PROMPTS, normalize=False)
            outputs[f"{variant}/heat_ori"] = model(pictures, PROMPTS, return_ori=True)
            for i, maps in enumerate(model.batched_forward(pictures, OWN_PROMPTS)):
                outputs[f"{variant}/batched{i}"] = maps
    arrays: dict[str, Any] = {key: value.numpy() for key, value in outputs.items()}
    np.savez(folder / "upstream.npz", **arrays)


def errors(
    expected: Mapping[str, Tensor], activation: Any, weights: Path, variants: Iterable[str]
) -> dict[str, float]:
    """The largest error of gem_lite by stage, over the variants."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # installed or not
    import gem_lite as gem

    worst: dict[str, float] = {}

    def compare(stage: str, found: Tensor, wanted: Tensor, *, relative: bool) -> None:
        if found.shape != wanted.shape:
            raise ValueError(f"{stage}: {list(found.shape)} against {list(wanted.shape)}")
        error = float((found - wanted).abs().max() / (wanted.abs().max() if relative else 1))
        worst[stage] = max(worst.get(stage, 0.0), error)

    height, width = expected["default/heat"].shape[-2:]
    pictures = images((height, width))
    for variant in variants:
        model = gem.create_gem_model(
            MODELS[activation], weights, activation=activation, **VARIANTS[variant]
        )
        features = model.encode_image(pictures)
        clip = torch.cat([features.class_embedding[:, None], features.clip], dim=1)
        compare("clip", clip, expected[f"{variant}/clip"], relative=True)
        compare("gem", features.gem, expected[f"{variant}/gem"][:, 1:], relative=True)
        compare("heat", model(pictures, PROMPTS), expected[f"{variant}/heat"], relative=False)
        if variant == "default":
            text = model.encode_text(PROMPTS)
            compare("text", text, expected["default/text"], relative=True)
            cosine = model(pictures, PROMPTS, normalize=False)
            compare("cosine", cosine, expected["default/cosine"], relative=False)
            plain = model(pictures, PROMPTS, return_ori=True)
            compare("heat_ori", plain, expected["default/heat_ori"], relative=False)
            for i, maps in enumerate(model.batched_forward(pictures, OWN_PROMPTS)):
                compare("batched", maps, expected[f"default/batched{i}"], relative=False)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--upstream-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--folder", type=Path, help="keep files here, and use what is there (5 GB)")
    parser.add_argument("--size", type=int, nargs=2, default=(448, 448), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--as-upstream", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    if args.as_upstream:
        upstream_outputs(args.folder, args.as_upstream, tuple(args.size))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return compare_all(args, args.folder or Path(temporary))


def compare_all(args: argparse.Namespace, root: Path) -> int:
    """Print the table; 1 when an error is above its tolerance."""
    print("| activation | layout | " + " | ".join(TOLERANCES) + " |")
    print("|---" * (2 + len(TOLERANCES)) + "|")
    print("| tolerance | | " + " | ".join(f"{value:.0e}" for value in TOLERANCES.values()) + " |")
    failed = False
    for activation in MODELS:
        folder = root / activation
        paths = layouts.layout_paths(folder, activation)
        if not all(path.exists() for path in paths.values()):
            layouts.write_all(layouts.VIT_B_16, activation, folder)
        if not (folder / "upstream.npz").exists():
            command = [args.upstream_python, __file__, "--as-upstream", activation]
            command += ["--folder", str(folder), "--threads", str(args.threads)]
            subprocess.run([*command, "--size", *map(str, args.size)], check=True)
        with np.load(folder / "upstream.npz") as arrays:
            expected = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        for layout, path in paths.items():
            # The layouts hold the same numbers: GEM's settings need one of them only.
            variants = VARIANTS if layout == "plain state dict" else ["default"]
            worst = errors(expected, activation, path, variants)
            failed |= any(not worst[stage] <= limit for stage, limit in TOLERANCES.items())
            cells = " | ".join(f"{worst[stage]:.1e}" for stage in TOLERANCES)
            print(f"| {activation} | {layout} | {cells} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
