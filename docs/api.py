"""Write api.md beside this file: the public names with their docstrings.

python docs/api.py
"""

import ast
import inspect
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

PUBLIC = {
    "cache_tools": ("build_cache", "open_cache", "Cache"),
    "cache_tools.settings": ("BuildSettings", "RerunSettings", "LocalCache"),
    "cache_tools.build.workers": ("Worker",),
    "cache_tools.attention": ("decode_keys",),
    "cache_tools.verify.verify": ("verify",),
    "cache_tools.build.attach": ("attach",),
    "comet": ("distill", "StudentConfig", "Distilled", "DistillationTrainer", "open_for_training"),
    "comet.train.objective": ("Objective",),
    "comet.evaluate.evaluation": ("evaluate",),
    "comet.evaluate.settings": ("EvaluationSettings",),
    "comet.evaluate.metrics": ("weighted_f1", "accuracy", "entity_f1", "retained_interval"),
    "comet.train.losses": (
        *("sampled_kl", "bucketed_kl", "residual_kl", "hard_cross_entropy"),
        *("attention_cross_entropy", "attention_mse", "attention_projection"),
    ),
}
HEAD = """# Python

The public interface; everything else may change. `python docs/api.py` writes this page from the docstrings, and a test
checks that it is up to date. All errors of this project are `cache_tools.errors.CometError`.

The two stages, on the sample that ships with the project:

```python
from importlib.resources import files
from pathlib import Path

from cache_tools import build_cache
from cache_tools.settings import BuildSettings
from comet import StudentConfig, distill

sample = files("cache_tools.sample")
teacher, text = str(sample / "teacher"), str(sample / "text.txt")
build_cache(BuildSettings(out=Path("kin.zarr"), language="kin", teacher=teacher, text=(text,), views=2))
result = distill("kin.zarr", StudentConfig(output=Path("kin-student"), steps=40), say=print)
print(result.before, result.after, sep="\\n")
```

A cache, read and verified:

```python
from cache_tools import open_cache
from cache_tools.verify.verify import verify

cache = open_cache("kin.zarr")
arrays = cache.read_shard("train", 0)
print({name: array.shape for name, array in arrays.items()})
assert verify("kin.zarr", deep=True).damage == []
```

The [notebook](notebook.ipynb) shows more of what a cache holds. To push, pull and export, call the commands.
"""


def page() -> str:
    parts = [HEAD]
    for module, names in PUBLIC.items():
        parts += [f"## {module}\n", *(entry(getattr(import_module(module), name), module) for name in names)]
    return "\n".join(parts)


def entry(found: Any, module: str) -> str:
    """Return the section of a function, or of a class with its own documented methods and properties."""
    node = ast.parse(textwrap.dedent(inspect.getsource(found))).body[0]
    kind = "class " if isinstance(node, ast.ClassDef) else ""
    lines = [
        f"### {found.__name__}\n",
        f"```text\n{kind}{module}.{called(node)}\n```\n",
        ast.get_docstring(node) or "",
        "",
    ]
    if isinstance(node, ast.ClassDef):
        members = {one.name: ast.get_docstring(one) for one in node.body if isinstance(one, ast.FunctionDef)}
        documented = {name: text for name, text in members.items() if text and not name.startswith("_")}
        lines += [f"- `{node.name}.{name}`: {' '.join(text.split())}" for name, text in documented.items()]
        if documented:
            lines.append("")
    return "\n".join(lines)


def called(node: Any) -> str:
    """Return name, parameters or fields, and return type as in the source; one parameter a line if they are long."""
    returned = ""
    if isinstance(node, ast.FunctionDef):
        parameters, returned = parameters_of(node), f" -> {ast.unparse(node.returns)}" if node.returns else ""
    elif constructors := [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]:
        parameters = parameters_of(constructors[0])
    else:
        parameters = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign)]
    if len(", ".join(parameters)) > 80:
        return f"{node.name}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){returned}"
    return f"{node.name}({', '.join(parameters)}){returned}"


def parameters_of(node: ast.FunctionDef) -> list[str]:
    plain = node.args.args
    values = [None] * (len(plain) - len(node.args.defaults)) + [ast.unparse(one) for one in node.args.defaults]
    found = [
        ast.unparse(one) + ("" if value is None else f" = {value}")
        for one, value in zip(plain, values, strict=True)
        if one.arg != "self"
    ]
    return found + ([f"**{node.args.kwarg.arg}"] if node.args.kwarg else [])


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page(), encoding="utf-8")
