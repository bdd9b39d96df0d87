"""The rules that make the package readable and vendorable, read from its syntax trees."""

import ast
import copy
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gem_lite"
FILES = sorted(PACKAGE.rglob("*.py"))
# `cli`, `commands.heatmap`, and a folder by its own name: `commands.__init__`.
NAMES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in NAMES.items()}

# Rooms, and which other rooms each may import. A folder is one room, a file at the top another.
ROOMS: dict[str, set[str]] = {
    "_version": set(),
    "background": set(),
    "fast": set(),
    "tokenizer": set(),
    "method": set(),
    "checkpoints": {"method"},
    "pictures": {"method"},
    "prompts": {"method", "tokenizer"},
    "inference": {"fast", "method", "prompts", "tokenizer"},
    "upstream": {"inference", "method"},
    "predictor": {
        "upstream",
        *("checkpoints", "fast", "inference", "method", "pictures", "prompts", "tokenizer"),
    },
    "factory": {"checkpoints", "method", "pictures", "predictor", "prompts", "tokenizer"},
    "labeller": {
        *("background", "factory", "inference", "method", "pictures", "predictor", "prompts"),
    },
    "locator": {
        *("background", "checkpoints", "factory", "inference", "method", "pictures", "predictor"),
        "prompts",
    },
    "exporting": {"_version", "checkpoints", "method", "predictor", "prompts"},
    "tools": {
        "_version",
        "background",
        "checkpoints",
        "exporting",
        "factory",
        "fast",
        "inference",
        "labeller",
        "method",
        "pictures",
        "predictor",
        "prompts",
        "tokenizer",
    },
    "__main__": {"tools"},
    "__init__": {
        *("_version", "checkpoints", "exporting", "factory", "labeller", "locator", "method"),
        *("pictures", "predictor"),
    },
}
# Inside a room, in the order in which a reader meets them: a file imports only what stands before.
ORDER: dict[str, list[str]] = {
    "fast": ["products", "forms", "layers", "switch"],
    "method": [
        *("config", "checks", "heatmap", "base", "replace", "attention", "blocks"),
        *("positions", "image"),
        *("model", "presence", "segment", "windows", "refine", "pipeline", "scores", "tokens"),
        *("semantic", "neurons", "methods.*"),
    ],
    "checkpoints": [
        *("files", "records", "header", "assemble", "ours"),
        *("pickles", "archive", "huggingface", "configs", "open_clip", "others", "convert"),
        *("transfer", "fetch", "table", "known", "hub", "verify", "describe", "settings"),
    ],
    "pictures": [
        *(
            "transform",
            "opening",
            "saving",
            "overlays",
            "sheets",
            "labels",
            "boxes",
            "outlines",
            "writers",
        ),
        *("coco", "shapes", "geo", "formats"),
    ],
    "exporting": ["forms", "graphs", "files", "export"],
    "tools": [
        *("commands.console", "progress", "ranks", "demo", "settings"),
        *("quality.sprites", "quality.scenes", "quality.measure"),
        *("quality.controls", "quality.compare", "quality.presence"),
        *("evaluation.confusion", "evaluation.names", "evaluation.context", "evaluation.layouts"),
        *("evaluation.datasets", "evaluation.openimages"),
        *("evaluation.protocols", "evaluation.report", "evaluation.run", "evaluation.resize"),
        *("evaluation.stages", "evaluation.tasks", "evaluation.evaluate"),
        *("app.limits", "app.question", "app.decoding", "app.engine"),
        *("app.connections", "app.server"),
        *(
            "commands.words",
            "commands.inputs",
            "commands.formats",
            "commands.model",
            "commands.pictures",
        ),
        *("commands.protocol", "commands.app", "commands.convert", "commands.demo"),
        *("commands.evaluate", "commands.segment", "commands.heatmap", "commands.models"),
        *("commands.quality", "commands.vendor", "commands.export", "cli"),
    ],
}
READ_ONLY = {"torch.backends.cpu.get_cpu_capability", "torch.backends.mps.is_available"}
THIRD_PARTY = {"torch", "safetensors", "PIL", "numpy", "einops", "ftfy", "regex"}


def imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def our_imports(name: str) -> set[str]:
    """Modules of the package that one of them imports, wherever in it."""
    found: set[str] = set()
    for node in imports(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = name.split(".")[: -node.level] + (node.module or "").split(".")
            module = ".".join(part for part in start if part)
            inside = {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {module} if module in TREES else inside
    return found


def foreign_imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in imports(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif not node.level:
            assert node.module is not None
            found.add(node.module.split(".")[0])
    return found


class _Outside(ast.NodeTransformer):
    """Takes the insides of functions out of a tree: they run later."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return ast.copy_location(ast.Pass(), node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return ast.copy_location(ast.Pass(), node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return ast.copy_location(ast.Constant(None), node)


def module_level(tree: ast.Module) -> ast.Module:
    """What of a tree runs at import (defaults of arguments and decorators apart)."""
    return _Outside().visit(copy.deepcopy(tree))


def each_module(*without: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in TREES if name not in without])


# ---- who imports whom


def room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


@each_module()
def test_imports_go_one_way(name: str) -> None:
    used = our_imports(name)
    if name.endswith(".__init__"):
        assert used <= {"method.base"} if name == "method.methods.__init__" else not used
        return
    outside = {room(other) for other in used} - {room(name)}
    assert outside <= ROOMS[room(name)], outside - ROOMS[room(name)]
    if room(name) in ORDER:
        # A method stands beside the others and knows none of them.
        inside = re.sub(r"methods\..*", "methods.*", name.split(".", 1)[1])
        order = ORDER[room(name)]
        assert inside in order, f"{name} is new: give it a place in ORDER"
        before = {f"{room(name)}.{other}" for other in order[: order.index(inside)]}
        own = {other for other in used if room(other) == room(name)}
        assert own <= before, own - before


def test_the_rules_have_no_circle() -> None:
    rest = dict(ROOMS)
    while rest:
        ready = [name for name, used in rest.items() if not used & set(rest)]
        assert ready, rest
        for name in ready:
            del rest[name]


def test_the_rules_name_files_that_exist() -> None:
    assert {room(name) for name in TREES} == set(ROOMS)
    for name, order in ORDER.items():
        files = {other for other in TREES if room(other) == name and "__init__" not in other}
        files = {file for file in files if ".methods." not in file}
        assert {f"{name}.{file}" for file in order if file != "methods.*"} == files


def test_the_network_needs_no_strings_and_no_pictures() -> None:
    """Who has token ids and image tensors needs only torch and einops; safetensors to load."""
    for name, tree in TREES.items():
        foreign = foreign_imports(tree) & THIRD_PARTY
        if room(name) == "method":
            assert foreign <= {"torch", "einops"}, name
        if room(name) == "checkpoints":
            assert foreign <= {"torch", "safetensors", "numpy"}, name
    assert not foreign_imports(TREES["method.config"]) & THIRD_PARTY


@each_module()
def test_ours_are_imported_relatively(name: str) -> None:
    assert "gem_lite" not in foreign_imports(TREES[name])
    for node in imports(TREES[name]):
        assert not isinstance(node, ast.ImportFrom) or node.level <= name.count(".") + 1, name
    for node in ast.walk(TREES[name]):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if name == "method.methods.__init__" and called == "importlib.import_module":
            continue  # lists the files beside it, by a relative name
        assert called.split(".")[-1] not in ("import_module", "__import__", "files"), called


@each_module()
def test_third_parties_are_the_core_packages(name: str) -> None:
    foreign = foreign_imports(module_level(TREES[name]))
    assert foreign <= THIRD_PARTY | set(sys.stdlib_module_names), foreign
    inside = foreign_imports(TREES[name]) - foreign - set(sys.stdlib_module_names) - THIRD_PARTY
    allowed = {
        "checkpoints.files": {"filelock"},  # of torch's own requirements
        "pictures.geo": {"rasterio"},
        "pictures.overlays": {"IPython"},
        "tools.app.connections": {"uvicorn"},
        "tools.app.server": {"starlette", "uvicorn"},
        "tools.evaluation.context": {"scipy"},
    }.get(name, set())
    assert inside <= allowed, inside


def test_nothing_is_imported_by_star() -> None:
    for name, tree in TREES.items():
        for node in imports(tree):
            assert all(alias.name != "*" for alias in node.names), name


# ---- what runs at import

# Calls that make constants; nothing else is called outside functions.
CONSTANT_CALLS = {
    "slice",
    "Layout",
    "_clip",
    "_context",
    "_laion",
    "_hub",
    "Result",
    "_metaclip",
    "_openai",
    "_voc",
    "format",
    "range",
    "Pretrained",
    "dataclass",
    "field",
    "frozenset",
    "get_args",
    "items",
    "removesuffix",
    "getLogger",
    "array",
    "compile",
    "tuple",
    "Path",
    "resolve",
    "TypeVar",
}


@each_module("__main__")
def test_only_definitions_and_constants_at_import(name: str) -> None:
    def check(body: list[ast.stmt]) -> None:
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                check(statement.body)
            elif isinstance(statement, ast.If):
                test = ast.unparse(statement.test)
                assert test.startswith(("TYPE_CHECKING", "sys.platform", "os.name")), test
                check(statement.body + statement.orelse)
            elif isinstance(statement, ast.Expr):
                assert isinstance(statement.value, ast.Constant), ast.unparse(statement)
            else:
                assert isinstance(
                    statement,
                    ast.Import
                    | ast.ImportFrom
                    | ast.FunctionDef
                    | ast.AsyncFunctionDef
                    | ast.Assign
                    | ast.AnnAssign
                    | ast.Pass,
                ), ast.unparse(statement)

    check(TREES[name].body)
    for node in ast.walk(module_level(TREES[name])):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func).split(".")[-1] in CONSTANT_CALLS, ast.unparse(node)


@each_module("tools.cli", "tools.commands.console", "tools.commands.evaluate")
def test_the_library_does_not_print(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "sys.stdout.write", "pprint"), name


@each_module()
def test_no_settings_of_the_host_program_are_changed(name: str) -> None:
    """Neither at import nor later: threads, default dtypes, seeds, backends, warning filters."""
    forbidden = (
        "torch.set_",
        "torch.manual_seed",
        "torch.use_deterministic",
        "torch.backends",
        "random.seed",
        "np.random.seed",
        "warnings.filterwarnings",
        "warnings.simplefilter",
        "logging.basicConfig",
        "os.environ.setdefault",
        "os.putenv",
    )
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) not in READ_ONLY:
            assert not ast.unparse(node.func).startswith(forbidden), ast.unparse(node)
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in map(ast.unparse, targets):
                assert not target.startswith((*forbidden, "os.environ", "sys.path")), target


@each_module("__init__")
def test_every_file_says_what_it_is(name: str) -> None:
    first = (ast.get_docstring(TREES[name]) or "").split("\n")[0]
    assert first.endswith((".", ":")) and len(first) > 10


def test_the_public_names_exist_and_are_sorted() -> None:
    import gem_lite

    assert len(set(gem_lite.__all__)) == len(gem_lite.__all__)
    for name in gem_lite.__all__:
        assert hasattr(gem_lite, name), name
    for name in (
        "available_models",
        "create_gem_model",
        "create_model_and_transforms",
        "get_gem_img_transform",
        "get_tokenizer",
        "visualize",
        "save",
    ):
        assert name in gem_lite.__all__, name
    assert (PACKAGE / "py.typed").is_file()


# ---- an import, from outside

WATCH = """
import json, os, random, sys, warnings
import numpy, torch
def state():
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "precision": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "seed": torch.initial_seed(),
        "random": hash(random.getstate()),
        "numpy": hash(str(numpy.random.get_state())),
        "filters": len(warnings.filters),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "cuda": torch.cuda.is_initialized(),
    }
before = state()
import gem_lite
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
print(json.dumps(sorted({"matplotlib", "cv2", "torchvision", "requests", "gradio", "transformers",
                         "IPython", "open_clip", "starlette", "uvicorn"} & set(sys.modules))))
"""


def python(code: str, cwd: Path, *flags: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(cwd),
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_import_changes_nothing(tmp_path: Path) -> None:
    out = python(WATCH, tmp_path)
    changed, heavy = map(json.loads, out.splitlines())
    assert changed == [] and heavy == []
    assert os.listdir(tmp_path) == []


def test_import_is_quick(tmp_path: Path) -> None:
    """Our own files take 0.1 s of an import, PyTorch's apart; bounded for a busy machine."""
    code = "import torch, numpy, PIL.Image, safetensors, ftfy, regex, einops, gem_lite"
    code += "; gem_lite.create_gem_model"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [line.split("|") for line in done.stderr.splitlines() if "gem_lite" in line]
    microseconds = [int(own.removeprefix("import time:")) for own, _, _ in rows]
    assert len(microseconds) > 20 and sum(microseconds) < 1_000_000


def test_programs_take_names_that_exist() -> None:
    """Examples and benchmarks are not imported by any test; what they import from us exists."""
    root = PACKAGE.parent
    listed = [
        path for room in ("examples", "benchmarks", "docs") for path in (root / room).rglob("*.py")
    ]
    programs = [path for path in listed if "/." not in path.relative_to(root).as_posix()]
    assert len(programs) > 10
    missing = [
        f"{path.relative_to(PACKAGE.parent)}: {node.module}.{alias.name}"
        for path in programs
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gem_lite"
        for alias in node.names
        if not hasattr(importlib.import_module(str(node.module)), alias.name)
        and importlib.util.find_spec(f"{node.module}.{alias.name}") is None
    ]
    assert not missing
