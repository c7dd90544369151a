"""Imports point towards lower layers only, and what must stay light stays light.

    errors <- corpus | forest <- samples <- model <- train | generate <- evaluate <- report <- recipe <- run <- cli

Read off the syntax trees of all files, so imports inside functions count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stylora

SOURCE = Path(stylora.__file__).parent
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
LAYERS = [
    {"errors"}, {"corpus", "forest"}, {"samples"}, {"model"}, {"train", "generate"}, {"evaluate"}, {"report"}, {"recipe"}, {"run"}, {"cli"},
    {"__main__"},
]  # fmt: skip
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
MODELS = {"torch", "transformers", "peft", "accelerate", "safetensors"}
FORBIDDEN = {"corpus": MODELS | {"tokenizers"}, "forest": MODELS | {"tokenizers"}, "samples": MODELS, "errors": MODELS | {"tokenizers"}}
LIGHT = ["cli", "run.plan", "recipe.recipe", "samples.text", "samples.objective", "train.settings", "train.steps", "model.tokenizer_file"]


def imports(file: str) -> Iterator[str]:
    """Full dotted names of the modules a file imports, relative ones resolved; `from a import b` gives both a and a.b."""
    package = ["stylora", *Path(file).parent.parts]
    for node in ast.walk(ast.parse((SOURCE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str | None:
    """The layer's folder or file that a module of the package lies in; None for the package itself and what `stylora.__init__` defines."""
    names = module.split(".")
    return names[1] if names[0] == "stylora" and len(names) > 1 and names[1] in HEIGHT else None


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_imports_point_to_lower_layers(file):
    own = Path(file).parts[0].removesuffix(".py")
    assert own in HEIGHT, f"{own} has no place in the layers"
    for module in imports(file):
        other = part_of(module)
        if other is not None and other != own:
            assert HEIGHT[other] < HEIGHT[own], f"{file} imports {module}"
        elif module.startswith("stylora.") and other is None:
            assert module == "stylora.__version__", f"{file} imports {module}, which has no place in the layers"


def test_the_package_itself_imports_nothing_until_it_is_asked():
    assert {name for name in imports("__init__.py") if name.startswith("stylora.")} <= {
        "stylora.run.loaded", "stylora.run.loaded.LoadedModel", "stylora.run.predictor", "stylora.run.predictor.Predictor"
    }  # fmt: skip
    code = "import sys, stylora; assert not {name for name in sys.modules if name.startswith(('stylora.', 'torch'))}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_libraries_a_layer_does_without(part):
    for file in FILES:
        if Path(file).parts[0].removesuffix(".py") == part:
            assert not FORBIDDEN[part] & {module.split(".")[0] for module in imports(file)}, file


def test_every_layer_has_files_or_the_test_is_blind():
    found = {Path(file).parts[0].removesuffix(".py") for file in FILES}
    assert set(HEIGHT) <= found
    assert "stylora.forest" in set(imports("samples/clm.py")) and "stylora.train.steps" in set(imports("train/trainer.py"))
    assert "stylora.run.demo" in set(imports("cli.py")), "imports inside functions are seen"


def test_reading_data_and_recipes_loads_no_torch():
    modules = ", ".join(f"stylora.{name}" for name in LIGHT)
    code = f"import sys, {modules}; print(*sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
