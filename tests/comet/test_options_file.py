"""What a training leaves beside the student: its options, which train the same student again."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.html_tree import Tree

from cache_tools import Cache
from comet.cli.train import train
from comet.distillation import distill
from comet.preparation import prepare
from comet.settings import StudentConfig
from comet.train.objective import DEFAULT, Schedule, Steps


def test_the_size_that_auto_stands_for_is_recorded(cache: Cache, tmp_path: Path) -> None:
    prepared, _ = prepare([cache], StudentConfig(tmp_path / "student"))
    assert (prepared.config.student, prepared.shape.name) == ("small", "small")


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_the_options_of_a_training_train_the_same_student_again(
    own: bool,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(DEFAULT, name="mine", hard_weight=Schedule(0.5, 0.0), temperature=Steps(((0, 2.0), (0.5, 1.0))))
    arguments = (("warmup_steps", 3), ("lr_scheduler_type", "constant_with_warmup")) if own else ()
    config = StudentConfig(
        tmp_path / "first", "nano", objective=recipe if own else DEFAULT, steps=8, seed=3, arguments=arguments
    )
    distill([cache], config)
    options = tomllib.loads((tmp_path / "first.toml").read_text(encoding="utf-8"))
    assert options["learning-rate"] > DEFAULT.learning_rate and options["dtype"] in ("float32", "bfloat16")
    assert options.get("set", {}) == dict(arguments) and options["cache"] == [str(cache.root)]

    page = (tmp_path / "first.html").read_text(encoding="utf-8")
    (title,) = Tree(page).of("h1")
    of = "Kinyarwanda, distilled from a teacher in the folder teacher on"
    assert re.fullmatch(rf"first: {of} [\d,]+ tokens of text, \d+% smaller", title)
    facts = dict(re.findall('<th scope="row">(.*?)</th><td>(.*?)</td>', page))
    assert facts["option: learning rate"] == f"{options['learning-rate']:g}"
    assert (facts["option: batch size"], facts["option: steps"]) == ("16", "8") and "option: epochs" not in facts
    assert facts["objective: layers, student ← teacher"] == "by depth"
    assert facts.get("option: set warmup_steps") == ("3" if own else None)
    assert facts.pop("objective") == ("mine" if own else "default")
    assert not {"default", "None", "True", "()", "[]", "{}"} & set(facts.values()), facts

    card = (tmp_path / "first" / "README.md").read_text(encoding="utf-8")
    assert "distilled from a teacher in the folder teacher (cc-by-4.0)" in card
    (example,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert len(re.findall(r"^\d+% .*Umwana yagiye ku", capsys.readouterr().out, re.MULTILINE)) == 5
    assert "\n  - text.txt\n" in card and "The licence of a model depends on" in card

    again = ["--config", str(tmp_path / "first.toml"), "--output", str(tmp_path / "again")]
    done = CliRunner().invoke(train, again)
    assert done.exit_code == 0, done.output
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again"))
    assert first == second
    refused = CliRunner().invoke(train, [*again[:2], "--steps", "9"])
    there = ", ".join(f"{tmp_path}/first{ending}" for ending in ("", ".html", ".toml"))
    assert refused.stderr == f"error: {there}: exist; choose another --output or remove them first\n"
