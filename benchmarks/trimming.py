"""Check that trimmed tokenizers read text of kept tokens exactly as whole ones, over five languages; print their sizes.

The tokens of a language's first lines are kept; every line of every language that has only kept tokens is compared.

    python benchmarks/trimming.py --shared ../shared --tokenizer gemma-2/tokenizer.json --tokenizer modernbert/…
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
from quality_measures import lines_of
from tokenizers import Tokenizer

from comet.student.trimming import required_ids, trimmed_state

LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")


def measured(tokenizer: Tokenizer, corpora: dict[str, list[str]], lines: int, language: str | None) -> str:
    """Return what keeping the tokens of the first lines of one language, or of all, comes to."""
    names = list(corpora) if language is None else [language]
    seen = {i for name in names for one in tokenizer.encode_batch(corpora[name][:lines]) for i in one.ids}
    state = json.loads(tokenizer.to_str())
    special = {token["id"] for token in state["added_tokens"] if token["special"]}
    started = time.monotonic()
    kept = sorted(seen | special | set(required_ids(state["model"], seen | special)))
    student_id = dict.fromkeys(range(tokenizer.get_vocab_size()), -1) | {i: new for new, i in enumerate(kept)}
    trimmed = Tokenizer.from_str(json.dumps(trimmed_state(state, list(student_id.values()))))
    seconds = time.monotonic() - started
    compared = different = total = 0
    for texts in corpora.values():
        for whole, other in zip(tokenizer.encode_batch(texts), trimmed.encode_batch(texts), strict=True):
            ids = [student_id[i] for i in whole.ids]
            total += 1
            if min(ids, default=0) >= 0:
                compared += 1
                different += ids != other.ids
    return (
        f"{language or 'all five'}: seen {len(seen):,}, kept {len(kept):,} of {tokenizer.get_vocab_size():,} "
        f"({len(kept) / len(seen):.2f} times), merges {len(state['model'].get('merges', [])):,} → "
        f"{len(json.loads(trimmed.to_str())['model'].get('merges', [])):,}, {seconds:.1f} s; "
        f"of {total:,} lines {compared:,} are of kept tokens, {different:,} of them read otherwise"
    )


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--tokenizer", "files", multiple=True, type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--lines", default=5000, show_default=True, help="Of each language, whose tokens are kept.")
def main(shared: Path, files: Sequence[Path], lines: int) -> None:
    corpora = {language: lines_of(shared, language)[:20_000] for language in LANGUAGES}
    for file in files:
        tokenizer = Tokenizer.from_file(str(file))
        for language in (*LANGUAGES[:1], None):
            print(f"{file.parent.name:<16} {measured(tokenizer, corpora, lines, language)}", flush=True)


if __name__ == "__main__":
    main()
