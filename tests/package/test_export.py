"""`gem_lite.export`: files for other programs, run there, give what the model gives here."""

import json
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from small import random_images, small_model, tracing
from torch import Tensor

import gem_lite
from gem_lite.exporting import export as exporting
from gem_lite.exporting import files, graphs
from gem_lite.method import semantic
from gem_lite.method.methods import make_method, method_classes
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.predictor import GEMPredictor

pytestmark = tracing

WORDS = ["cat", "red dog", "sky"]
NAMES = [["cat", "kitten"], "red dog", "sky"]
SETTINGS: dict[str, Any] = {"background": ["wall"], "threshold": 0.4, "scale": 20.0}
SIZES = [(1, 64, 40), (3, 48, 72), (2, 101, 133), (1, 40, 40)]
ENGINES = ["onnxruntime", "openvino"]  # of ONNX
Run = Callable[[Tensor], Sequence[Tensor]]


@cache
def model() -> GEMPredictor:
    return small_model(GEMConfig(blocks=1), text_layers=1, layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@cache
def program(path: Path) -> tuple[Any, dict[str, Any]]:
    """A .pt2 file's program and metadata."""
    extra = {"gem_lite.json": ""}
    loaded = torch.export.load(path, extra_files=extra)
    return loaded, json.loads(extra["gem_lite.json"])


def runner(path: Path, engine: str) -> Run:
    if engine == "pt2":
        return program(path)[0].module()
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]
    from openvino import Core

    compiled = Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: [torch.from_numpy(compiled(x.numpy())[port]) for port in compiled.outputs]


def with_method(name: str, **settings: Any) -> GEMPredictor:
    return model().with_method(make_method(name, settings))


def exported(folder: Path, engine: str, outputs: str) -> Path:
    """A file of that name, made once: maps by GEM, labels by the method that is traced soonest."""
    words, options = {"maps": (WORDS, {}), "labels": (NAMES, SETTINGS)}.get(outputs, (None, {}))
    path = folder / f"{outputs}.{'pt2' if engine == 'pt2' else 'onnx'}"
    if not path.exists():
        maker = with_method("clip") if outputs == "labels" else model()
        gem_lite.export(maker, path, words, outputs=outputs, **options)
    return path


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a - b).abs().max() / b.abs().max())


# ---- the same as here, on each engine


@pytest.mark.parametrize("engine", ENGINES)
def test_maps(engine: str, folder: Path) -> None:
    run = runner(exported(folder, "onnx", "maps"), engine)
    for size in SIZES:
        images = random_images(*size, seed=1)
        with torch.no_grad():
            expected = model()(images, WORDS)
        (maps,) = run(images)
        assert maps.shape == expected.shape and maps.dtype == torch.float32
        assert (maps - expected).abs().max() <= 1e-3, size


@pytest.mark.parametrize("engine", ["pt2", *ENGINES])
def test_labels(engine: str, folder: Path) -> None:
    """Synonyms, background words and a threshold, as `segment` has them."""
    run = runner(exported(folder, engine, "labels"), engine)
    for size in SIZES:
        images = random_images(*size, seed=2)
        expected = with_method("clip").segment(images, NAMES, **SETTINGS)
        labels, confidence = run(images)
        assert labels.dtype == torch.int64 and labels.shape == expected.labels.shape
        assert (labels == expected.labels).float().mean() >= 0.999, size
        assert (confidence - expected.confidence).abs().max() <= 1e-3
        assert len(expected.labels.unique()) > 2


@pytest.mark.parametrize("engine", ["pt2", *ENGINES])
def test_text(engine: str, folder: Path) -> None:
    run = runner(exported(folder, engine, "text"), engine)
    for words in (["cat"], ["a very long name of a thing", "dog", "sky"]):
        tokens = model().tokenizer([f"a photo of a {word}." for word in words])
        for columns in (tokens.shape[1], int(tokens.argmax(dim=1).max()) + 1):
            with torch.no_grad():
                (text,) = run(tokens[:, :columns])
            assert relative(text, model().encode_text(words)[0]) <= 1e-4


def test_features_of_one_size(tmp_path: Path) -> None:
    """Positions are those of the size; the batch stays open."""
    gem_lite.export(model(), tmp_path / "x.onnx", size=(64, 48))
    for engine in ENGINES:
        run = runner(tmp_path / "x.onnx", engine)
        for batch in (1, 3):
            images = random_images(batch, 64, 48)
            with torch.no_grad():
                expected = model().network.encode_image(images)
            clip, gem = run(images)
            assert relative(clip, expected.clip) <= 1e-4  # seen 5e-7
            assert relative(gem, expected.gem) <= 1e-4
        with pytest.raises(Exception, match=r"(?i)invalid dimension|shape"):
            run(random_images(1, 48, 64))
    assert model().network.visual.native_grid == (5, 5)


@pytest.mark.parametrize(("precision", "outputs"), [("fp16", "cosines"), ("bf16", "patches")])
def test_half_precision(precision: Any, outputs: Any, tmp_path: Path) -> None:
    """As exact as the dtype. onnxruntime has no bf16 on a CPU."""
    path = tmp_path / "x.onnx"
    gem_lite.export(model(), path, WORDS, outputs=outputs, precision=precision, size=(64, 40))
    images = random_images(2, 64, 40)
    size = None if outputs == "cosines" else "patches"
    with torch.no_grad():
        expected = model()(images, WORDS, normalize=False, size=size)
    limit = 5e-3 if precision == "fp16" else 4e-2
    for engine in ENGINES if precision == "fp16" else ["openvino"]:
        assert 0 < relative(runner(path, engine)(images)[0], expected) <= limit


# ---- methods

# GEM is above. Of all sizes those that stand for a way to resample positions, and in ONNX those
# whose operations differ; the rest of one size as .pt2, to save time.
FORM_OF = {name: "pt2" for name in method_classes() if name not in ("gem", "legrad")}
FORM_OF |= {"naclip": "onnx", "clip_surgery": "onnx"}
ALL_SIZES = ["naclip", "clip_surgery"]


@pytest.mark.parametrize(("name", "form"), FORM_OF.items())
def test_methods(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few_steps(*arguments: Any, steps: int, **options: Any) -> Tensor:
        return refine(*arguments, steps=min(steps, 2), **options)

    # ResCLIP's ten steps and two distances are the same operations again and again, 1,300 of them.
    refine = semantic.refine
    monkeypatch.setattr(semantic, "PAMR", (8,))
    monkeypatch.setattr(semantic, "refine", few_steps)
    settings = {"blocks": 1} if name == "clip_surgery" else {}
    path, other = tmp_path / f"x.{form}", with_method(name, **settings)
    size = None if name in ALL_SIZES else (32, 24)
    gem_lite.export(other, path, WORDS, outputs="patches", size=size)
    run = runner(path, "pt2" if form == "pt2" else "onnxruntime")
    for batch, h, w in [(3, 32, 24)] if size else [(1, 64, 40), (3, 48, 72), (2, 40, 40)]:
        images = random_images(batch, h, w, seed=3)
        with torch.no_grad():
            expected = other(images, WORDS, normalize=False, size="patches")
        assert relative(run(images)[0], expected) <= 1e-3  # seen 7e-7


def test_a_method_without_a_form_in_onnx(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method 'registers' has no form in ONNX: .*median"):
        gem_lite.export(with_method("registers"), tmp_path / "x.onnx", WORDS, size=(32, 24))
    assert not list(tmp_path.iterdir())


def test_a_method_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method 'legrad' \(of any size\) cannot be exported: "):
        gem_lite.export(with_method("legrad"), tmp_path / "x.pt2", WORDS)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_does_something_else_is_refused() -> None:
    """What is traced is held against the module itself, at another size."""

    class Remembers(graphs.Features):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            clip, gem = super().forward(images)
            return clip, gem * (1.0 if torch.compiler.is_exporting() else 2.0)

    graph = Remembers(model().network.visual)
    with pytest.raises(ValueError, match=r"method 'x' cannot be exported: .*differs by 0\.[45]"):
        with torch.no_grad():
            graphs.traced(graph, random_images(2, 24, 40), [random_images(3, 40, 24)], "method 'x'")


# ---- the file


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_metadata(form: str, folder: Path) -> None:
    path = exported(folder, form, "labels")
    if form == "pt2":
        found = program(path)[1]
    else:
        import onnx

        properties = onnx.load(path).metadata_props
        found = json.loads(next(each.value for each in properties if each.key == "gem_lite"))
    header = model().header
    assert found["words"] == NAMES and found["outputs"] == "labels"
    assert {name: found[name] for name in SETTINGS} == SETTINGS
    assert found["templates"] == ["a photo of a {}."]
    assert found["mean"] == list(header.mean) and found["std"] == list(header.std)
    assert found["size"] == [64, 64] and found["any_size"] and found["patch"] == 8
    assert found["method"] == "clip" and found["settings"]["positions"] == "bicubic_antialias"
    for name in ("model", "pretrained", "source", "sha256", "licence", "verified"):
        assert found[name] == getattr(header, name), name
    assert found["library"] == f"gem_lite {gem_lite.__version__}"


def test_onnx_has_one_file_with_named_sides(folder: Path) -> None:
    import onnx

    path = exported(folder, "onnx", "maps")
    assert not list(folder.glob("*.data"))
    graph = onnx.load(path).graph
    assert [each.name for each in graph.input] == ["images"]
    assert [each.name for each in graph.output] == ["maps"]
    sides = [bool(side.dim_param) for side in graph.input[0].type.tensor_type.shape.dim]
    assert sides == [True, False, True, True]


class Linear(torch.nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (super().forward(x),)


@cache
def quick() -> tuple[Linear, Any]:
    """A graph that is written sooner than a tower, and its program."""
    graph = Linear(100, 60)
    with torch.no_grad():
        return graph, graphs.traced(graph, torch.randn(2, 100), [torch.randn(3, 100)], "this")


def write(path: Path) -> None:
    if path.suffix == ".pt2":
        files.write_pt2(quick()[1], path, "{}")
    else:
        files.write_onnx(quick()[1], path, "{}", what="this", inputs=("x",), outputs=("y",))


def test_weights_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ONE_FILE", 10_000)
    write(tmp_path / "x.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.onnx", "x.onnx.data"]
    x = torch.randn(4, 100)
    with torch.no_grad():
        assert relative(runner(tmp_path / "x.onnx", "onnxruntime")(x)[0], quick()[0](x)[0]) <= 1e-5


def test_only_what_is_used_is_written(folder: Path) -> None:
    """No text tower beside images, no image tower beside text."""
    tower = model().network.visual.parameters()
    image = sum(parameter.numel() for parameter in tower)
    total = sum(parameter.numel() for parameter in model().network.parameters())
    words = 5 * model().network.config.embed  # cat, kitten, red dog, sky and wall
    for outputs, expected in (("labels", image + words), ("text", total - image)):
        path = exported(folder, "pt2", outputs)
        numbers = sum(tensor.numel() for tensor in program(path)[0].state_dict.values())
        assert numbers == expected
        assert zipfile.is_zipfile(path)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    own = small_model(text_layers=1).half()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    gem_lite.export(own, tmp_path / "x.pt2", size=48)
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    assert own.kernels == small_model().half().kernels
    # Written in float32 from half weights.
    clip, gem = runner(tmp_path / "x.pt2", "pt2")(random_images(1, 48, 48))
    with torch.no_grad():
        expected = own.float().network.encode_image(random_images(1, 48, 48))
    assert relative(clip, expected.clip) <= 1e-4 and relative(gem, expected.gem) <= 1e-4


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "words", "options", "error", "message"),
    [
        ("x.tflite", None, {}, ValueError, "ends neither in .pt2 nor in .onnx"),
        ("x.pt2", None, {"format": "jit"}, ValueError, r"expected one of \['pt2', 'onnx'\]"),
        ("x.pt2", None, {"outputs": "boxes"}, ValueError, "outputs is 'boxes'; expected one of"),
        ("x.pt2", None, {"outputs": "maps"}, ValueError, "needs words"),
        ("x.pt2", ["cat"], {"outputs": "text"}, ValueError, "takes no words"),
        ("x.pt2", "cat", {}, TypeError, "words is a string"),
        ("x.pt2", [], {}, ValueError, "at least one class"),
        ("x.pt2", [["cat", "kitten"]], {}, ValueError, "synonyms are for 'labels'"),
        ("x.pt2", ["cat"], {"threshold": 0.5}, ValueError, "for 'labels'"),
        ("x.pt2", ["cat"], {"templates": "photo"}, ValueError, "no {} where the word goes"),
        ("x.pt2", None, {"precision": "int8"}, ValueError, "precision is 'int8'"),
        ("x.pt2", None, {"size": 4}, ValueError, "at least one patch, 8 x 8"),
        ("none/x.pt2", None, {}, FileNotFoundError, "no folder .*none to write x.pt2 to"),
    ],
)
def test_mistakes(
    name: str, words: Any, options: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        gem_lite.export(model(), tmp_path / name, words, **options)
    assert not list(tmp_path.iterdir())


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="create_gem_model"):
        gem_lite.export(model().network, tmp_path / "x.pt2")  # type: ignore[arg-type]


def test_an_encode_image_of_ones_own(tmp_path: Path) -> None:
    own = small_model()
    own.network.encode_image = own.network.encode_image  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="an encode_image of its own"):
        gem_lite.export(own, tmp_path / "x.pt2")


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r"ONNX files need onnxscript; .*'gem_lite\[onnx\]'"):
        gem_lite.export(model(), tmp_path / "x.onnx")


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_failure_spares_what_is_there(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"as before")

    def full(program: Any, target: Any, **options: Any) -> None:
        _ = target.write(b"half") if suffix == "pt2" else Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    place = "torch.export.save" if suffix == "pt2" else "torch.onnx.ONNXProgram.save"
    monkeypatch.setattr(place, full)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_bytes() == b"as before" and list(tmp_path.iterdir()) == [path]


def test_no_form_in_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> None:
        try:
            raise NotImplementedError("no decomposition of aten.quantile")
        except NotImplementedError as error:
            raise RuntimeError("step 3/3 failed") from error

    monkeypatch.setattr("torch.onnx.export", missing)
    with pytest.raises(ValueError, match="no form in ONNX: .*aten.quantile"):
        gem_lite.export(model(), tmp_path / "x.onnx", outputs="text")
    assert not list(tmp_path.iterdir())


# ---- PyTorch's own ways to record a network


def test_torch_export_with_open_sides() -> None:
    """Of the network itself, without ours: batch, height and width free."""
    from torch.export import Dim, export

    sides = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    network = model().network.visual
    with torch.no_grad():
        program = export(network, (random_images(2, 24, 40),), dynamic_shapes=(sides,)).module()
        for size in SIZES:
            images = random_images(*size)
            found, expected = program(images), network(images)
            assert relative(found.gem, expected.gem) <= 1e-5
            assert relative(found.clip, expected.clip) <= 1e-5


def test_compiled_into_one_graph_with_open_sides() -> None:
    torch._dynamo.reset()
    network = model().network
    compiled = torch.compile(network.encode_image, backend="eager", fullgraph=True, dynamic=True)
    network.encode_image(random_images(1, 8, 8))  # einops asks for its backend once
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        # A batch of 1 is compiled by itself, and one of 3 as if it were the colours.
        for size in [(2, 64, 40), (4, 48, 72), (5, 101, 133)]:
            images = random_images(*size)
            assert relative(compiled(images).gem, network.encode_image(images).gem) <= 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_forward_mode_gradients() -> None:
    """PyTorch has forward gradients of its plain attention only; that one is asked for here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    network = small_model().double().network
    images, tangent = random_images(1, 40, 48).double(), random_images(1, 40, 48, seed=1).double()

    def gem(x: Tensor) -> Tensor:
        return network.encode_image(x).gem

    with sdpa_kernel(SDPBackend.MATH):
        _, found = torch.func.jvp(gem, (images,), (tangent,))
        step = 1e-6
        with torch.no_grad():
            expected = (gem(images + step * tangent) - gem(images - step * tangent)) / (2 * step)
    assert relative(found, expected) <= 1e-6


def test_public_outputs_are_tested() -> None:
    assert {"features", "patches", "cosines", "maps", "labels", "text"} == set(exporting.OUTPUTS)
