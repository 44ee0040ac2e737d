"""Whether a student from the cache is as good as one with the teacher in the loop: the same student, the same rows in
the same order and as many steps, from every kind of signal, with paired seeds; measured densely on unseen text.

Every finished training leaves a JSON file in the folder, and is not repeated when the command is given again. With one
language, five seeds and the shared teacher it takes about four hours on two cores, with `--quick` ten minutes.

    python benchmarks/quality.py --shared ../shared --folder quality
"""

import json
import lzma
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PrinterCallback, XLMRobertaForMaskedLM

from cache_tools import Cache, build_cache, open_cache
from cache_tools.pooling import AttentionCapture
from cache_tools.settings import BuildSettings
from cache_tools.teacher.model import Teacher, load_teacher
from comet.closeup import calibration, expected_calibration_error
from comet.data import CacheRows, collate, shards_of
from comet.distillation import arrays_needed, choose_vocabulary, training_arguments
from comet.distiller import Distiller, match_layers
from comet.losses import attention_kl
from comet.recipes import DEFAULT, PAPER, TrainingRecipe
from comet.settings import StudentConfig
from comet.student import choose_shape, new_student
from comet.trainer import DistillationTrainer
from comet.validation import validation_rows
from comet.vocabulary import StudentVocabulary, in_vocabulary

ROW_TOKENS = 126
MASK_PROB = 0.15
UNSEEN_LINES = 1500
PLAIN = replace(DEFAULT, name="plain", kd_weight=0.0, hard_weight=1.0, attention_weight=0.0)
LOGITS = replace(DEFAULT, name="logits", attention_weight=0.0)


@dataclass(frozen=True)
class Arm:
    """One way to train: from which cache, with which recipe."""

    name: str
    cache: str  # a key of CACHES
    recipe: TrainingRecipe = DEFAULT
    vocabulary: str = "full"
    init: str = "cache"
    online: bool = False


CACHES: dict[str, dict[str, Any]] = {
    "topk-64": {"top_k": 64},
    "topk-16": {"top_k": 16},
    "threshold-64": {"top_k": 64, "keep": "threshold"},
    "threshold-16": {"top_k": 16, "keep": "threshold"},
}
ARMS = (
    Arm("plain", "topk-64", PLAIN),
    Arm("online", "topk-64", online=True),
    Arm("online, logits only", "topk-64", LOGITS, online=True),
    Arm("cache, top-64", "topk-64"),
    Arm("cache, threshold 64", "threshold-64"),
    Arm("cache, top-64, logits only", "topk-64", LOGITS),
    Arm("cache, threshold 64, logits only", "threshold-64", LOGITS),
    Arm("cache, top-16, logits only", "topk-16", LOGITS),
    Arm("cache, threshold 16, logits only", "threshold-16", LOGITS),
    Arm("cache, top-64, residual", "topk-64", replace(LOGITS, name="residual", logit_loss="residual")),
    Arm(
        "cache, threshold 64, half true tokens",
        "threshold-64",
        replace(DEFAULT, name="half", kd_weight=0.5, hard_weight=0.5),
    ),
    Arm("paper", "topk-64", PAPER),
    Arm("cache, top-64, trimmed", "topk-64", vocabulary="trimmed"),
    Arm("cache, top-64, random start", "topk-64", init="random"),
    Arm("plain, random start", "topk-64", PLAIN, init="random"),
)


class OnlineDistiller(Distiller):
    """The teacher in the loop: dense logits at every target and attention maps that are not pooled."""

    def __init__(self, student: XLMRobertaForMaskedLM, cache: Any, recipe: TrainingRecipe, teacher: Teacher) -> None:
        super().__init__(student, cache, recipe)
        self.teacher = [teacher]  # not a module of its own: nothing of it is trained or saved

    def forward(
        self, progress: float = 0.0, targets: float | None = None, rows: float | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        recipe, (teacher,) = self.training_recipe, self.teacher
        length, seq_len = batch["length"], batch["input_ids"].shape[1]
        mask = torch.arange(seq_len) < length[:, None]
        pairs = match_layers(self.cache, self.student.config.num_hidden_layers) if self.matches_attention else ()
        theirs, ours = (AttentionCapture(tuple(pair[i] for pair in pairs), length, seq_len, seq_len) for i in (0, 1))
        at_targets = batch["target_row"], batch["target_position"]
        with torch.no_grad():
            hidden = teacher.hidden_states(batch["input_ids"], mask, theirs)
            p = teacher.head.logits(teacher.transform(hidden[at_targets])).float().log_softmax(1)  # [T, V]
        body = self.student.roberta(batch["input_ids"], attention_mask=mask, attention_capture=ours)
        head = self.student.lm_head
        features = head.layer_norm(torch.nn.functional.gelu(head.dense(body.last_hidden_state[at_targets])))
        q = head.decoder(features).log_softmax(1)
        parts = {"kd": (p.exp() * (p - q)).sum(1).mean()}
        if pairs:
            parts["attention"] = attention_kl(theirs.maps(), ours.maps(), length).mean()
        weights = {"kd": recipe.kd_weight, "attention": recipe.attention_weight}
        return {"loss": torch.stack([weights[n] * part for n, part in parts.items()]).sum()} | parts


def caches_of(language: str, shared: Path, teacher: str, folder: Path, tokens: int) -> dict[str, Path]:
    """The caches of a language, all of the same rows and masks, built where they are not there yet."""
    lines = lzma.decompress((shared / f"data/text/{language}.txt.xz").read_bytes()).decode().split("\n")
    text = folder / f"{language}.txt"
    text.write_text("\n".join(lines[UNSEEN_LINES:]), encoding="utf-8")
    found = {}
    for name, changes in CACHES.items():
        settings = BuildSettings(
            out=folder / f"{language}-{name}.zarr", language=language, teacher=teacher, text=(str(text),),
            max_tokens=tokens, rows_per_shard=256,
        )  # fmt: skip
        build_cache(replace(settings, **changes))
        found[name] = settings.out
    return found


def train(
    arm: Arm, cache: Cache, teacher: Teacher, student: str, steps: int, seed: int, folder: Path
) -> tuple[XLMRobertaForMaskedLM, StudentVocabulary, float]:
    """The student of the last step, its vocabulary, and the seconds that it took."""
    vocabulary = choose_vocabulary(arm.vocabulary, [cache])
    shape = choose_shape(student, cache, len(vocabulary))
    model = new_student(shape, [cache], vocabulary, arm.recipe.dropout, seed, arm.init == "cache")
    config = StudentConfig(folder, student=student, recipe=arm.recipe, steps=steps, seed=seed)
    distiller = (
        OnlineDistiller(model, cache.recipe, arm.recipe, teacher)
        if arm.online
        else Distiller(model, cache.recipe, arm.recipe, vocabulary)
    )
    arguments = training_arguments(replace(config, arguments=(("eval_strategy", "no"),)), shape)
    arguments.output_dir = str(folder)
    trainer = DistillationTrainer(
        distiller,
        arguments,
        CacheRows(shards_of([cache], "train"), arrays_needed(cache, distiller, vocabulary)),
        validation_rows(shards_of([cache], "validation")),
        collator=lambda arrays: in_vocabulary(collate(arrays), vocabulary),
    )
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    trainer.train()
    return model.eval(), vocabulary, time.monotonic() - started


@dataclass(frozen=True)
class Unseen:
    """Masked rows of text that neither cache nor student saw, and what the teacher says at the targets."""

    inputs: Tensor  # [R, L]
    target: Tensor  # [R, L] bool
    truth: Tensor  # [T]
    logprob: Tensor  # [T, V_seen] of the teacher among the tokens of the corpus
    seen: Tensor  # [V_seen] the ids of these tokens


@torch.no_grad()
def unseen_text(language: str, shared: Path, teacher: str, cache: Cache, rows: int) -> Unseen:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    lines = lzma.decompress((shared / f"data/text/{language}.txt.xz").read_bytes()).decode().split("\n")[:UNSEEN_LINES]
    stream = [
        i for ids in tokenizer(lines, add_special_tokens=False)["input_ids"] for i in [*ids, tokenizer.eos_token_id]
    ]
    starts = range(0, len(stream) - ROW_TOKENS, ROW_TOKENS)
    whole = torch.tensor(
        [[tokenizer.bos_token_id, *stream[s : s + ROW_TOKENS], tokenizer.eos_token_id] for s in starts][:rows]
    )
    seen = torch.from_numpy(cache.vocabulary.id.astype("int64"))
    eligible = torch.isin(whole, seen) & ~torch.isin(whole, torch.tensor(tokenizer.all_special_ids))
    target = (torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) < MASK_PROB) & eligible
    inputs = whole.masked_fill(target, tokenizer.mask_token_id)
    model = AutoModelForMaskedLM.from_pretrained(teacher, dtype=torch.float32).eval()
    return Unseen(inputs, target, whole[target], log_probs(model, inputs, target, seen), seen)


@torch.no_grad()
def log_probs(model: Any, inputs: Tensor, target: Tensor, columns: Tensor) -> Tensor:
    """[T, columns] at the targets, among these tokens."""
    parts = zip(inputs.split(16), target.split(16), strict=True)
    return torch.cat([model(i).logits[t][:, columns].float().log_softmax(-1) for i, t in parts])


def measured(model: Any, vocabulary: StudentVocabulary, unseen: Unseen, unknown: int) -> dict[str, float]:
    """Means over the targets, among the tokens of the corpus, for a student or the teacher itself."""
    ids = vocabulary.student_id[unseen.inputs]
    logprob = log_probs(model, torch.where(ids < 0, unknown, ids), unseen.target, vocabulary.student_id[unseen.seen])
    place = torch.searchsorted(unseen.seen, unseen.truth)
    confidence, best = logprob.exp().max(1)
    correct = best == place
    return {
        "dense_kl": (unseen.logprob.exp() * (unseen.logprob - logprob)).sum(1).mean().item(),
        "loss": -logprob.gather(1, place[:, None]).mean().item(),
        "accuracy": correct.float().mean().item(),
        "calibration_error": expected_calibration_error(calibration(confidence.numpy(), correct.numpy())),
    }


def table(results: dict[tuple[str, int], dict[str, float]], arms: Sequence[str], columns: Sequence[str]) -> str:
    """Mean and standard deviation over the seeds, and the KL's ratio to the online student, seed by seed."""
    lines = []
    for arm in arms:
        of_arm = {seed: found for (name, seed), found in results.items() if name == arm}
        if not of_arm:
            continue
        cells = [arm.ljust(40)]
        for column in columns:
            values = [found[column] for found in of_arm.values()]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{column} {statistics.mean(values):.4f} ± {deviation:.4f}")
        paired = [
            f["dense_kl"] / results["online", seed]["dense_kl"]
            for seed, f in of_arm.items()
            if ("online", seed) in results
        ]
        if paired:
            cells.append(f"KL ÷ online {statistics.mean(paired):.4f}")
        lines.append("  ".join(cells))
    return "\n".join(lines)


@click.command(help=__doc__.split("\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Caches and results, to go on from.")
@click.option("--teacher", help="Folder of another teacher.  [default: the shared one]")
@click.option("--language", "languages", multiple=True, default=("kin",), show_default=True)
@click.option("--student", default="small", show_default=True)
@click.option("--tokens", default=600_000, show_default=True)
@click.option("--steps", default=600, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--arm", "wanted", multiple=True, help="Only these.  [default: all]")
@click.option("--quick", is_flag=True, help="Two seeds of five arms, few steps.")
def main(
    shared: Path,
    folder: Path,
    teacher: str | None,
    languages: tuple[str, ...],
    student: str,
    tokens: int,
    steps: int,
    seeds: int,
    wanted: tuple[str, ...],
    quick: bool,
) -> None:
    source = teacher or str(shared / "teacher")
    if quick:
        tokens, steps, seeds = 150_000, 120, 2
        wanted = wanted or (
            "plain",
            "online",
            "cache, top-64",
            "cache, threshold 64",
            "cache, threshold 16, logits only",
        )
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"teacher": Path(source).name, "student": student, "tokens": tokens, "steps": steps}
    loaded = load_teacher(source)
    for language in languages:
        caches = {name: open_cache(path) for name, path in caches_of(language, shared, source, folder, tokens).items()}
        unseen = unseen_text(language, shared, source, caches["topk-64"], 400)
        unknown = AutoTokenizer.from_pretrained(source).unk_token_id
        results: dict[tuple[str, int], dict[str, float]] = {}
        for seed in range(seeds):
            for arm in ARMS:
                if wanted and arm.name not in wanted:
                    continue
                path = folder / f"{language}-{arm.name.replace(', ', '-').replace(' ', '_')}-{seed}.json"
                if not path.exists():
                    model, vocabulary, seconds = train(
                        arm, caches[arm.cache], loaded, student, steps, seed, folder / "work"
                    )
                    own_unknown = int(vocabulary.student_id[unknown])
                    found = measured(model, vocabulary, unseen, own_unknown) | {"seconds": seconds}
                    path.write_text(json.dumps({"asked": asked, "found": found}))
                stored = json.loads(path.read_text())
                if stored["asked"] != asked:
                    raise SystemExit(f"{path}: measured with {stored['asked']}, now {asked}; take another --folder")
                results[arm.name, seed] = stored["found"]
        print(f"{language}, {len(unseen.truth):,} targets of unseen text, {steps} steps, {seeds} seeds")
        print(
            table(results, [arm.name for arm in ARMS], ("dense_kl", "loss", "accuracy", "calibration_error", "seconds"))
        )


if __name__ == "__main__":
    main()
