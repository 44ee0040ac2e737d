"""Save a student's tokenizer, and check it against the teacher's.

A student was trained on the teacher's tokens of the corpus: the tokenizer in its folder must give the same ones.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cache_tools.errors import CometError
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import TEXT_FORM
from cache_tools.text.masking import unmasked
from cache_tools.text.model_tokenizer import save_tokenizer
from cache_tools.text.tokenizer import load_tokenizer
from comet.student.vocabulary import StudentVocabulary

ROWS = 64
FOREIGN = (
    "The rain did not stop until the evening.",
    "Le marché ouvre à six heures, même le dimanche.",
    "Watoto wanacheza mpira uwanjani.",
    "Àwọn ọmọ náà ń kàwé ní ilé-ìwé.",
    "ልጆቹ ወደ ትምህርት ቤት ሄዱ።",
    "ذهب الأطفال إلى المدرسة صباحا.",
    "Дети пошли в школу.",
    "बच्चे स्कूल गए।",
    "孩子们去学校了。",
    "Igiciro: 1,250.50 Frw (≈ €0.80) 🙂 @umuntu #amakuru",
)
"""Text that a corpus may lack; NFC."""


def save_student_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    inputs: Iterable[str],
    folder: Path,
    caches: Sequence[Cache],
    vocabulary: StudentVocabulary,
) -> None:
    """Write a student's tokenizer, then check the written one on lines of all corpora and of other languages.

    `inputs` are the names of the student's inputs. Raises CometError if it reads a line differently from the teacher's
    tokenizer, OSError if the disk refuses.
    """
    # only what is among the arguments of its creation is saved, with the value of the attribute
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = list(inputs)
    save_tokenizer(tokenizer, folder)
    saved = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    teacher = load_tokenizer(caches[0].tokenizer_folder, caches[0].recipe.vocab_size)
    lines = (line for cache in caches for line in corpus_lines(cache, teacher))
    require_same_reading(saved, teacher, vocabulary, [*lines, *FOREIGN])


def require_same_reading(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    vocabulary: StudentVocabulary,
    lines: Iterable[str],
) -> None:
    """Raise CometError if the student's tokenizer gives a line other ids, special tokens and all, than the teacher's.

    Where the student lacks some of the teacher's tokens, it has to spell them: without further unknown ones.
    """
    for line in lines:
        wanted, found = teacher.backend_tokenizer.encode(line), student.backend_tokenizer.encode(line)
        ids = vocabulary.student_id[torch.tensor(wanted.ids)]
        if (ids >= 0).all():
            same = ids.tolist() == found.ids
        else:
            same = found.ids.count(student.unk_token_id) <= wanted.ids.count(teacher.unk_token_id)
        if not same:
            raise CometError(
                f"the student's tokenizer reads {line[:60]!r} as {' '.join(found.tokens[:12])}, the teacher's as "
                f"{' '.join(wanted.tokens[:12])}: this tokenizer cannot be "
                + ("trimmed; use --vocabulary full" if vocabulary.trimmed else "saved; use another teacher")
            )


def corpus_lines(cache: Cache, teacher: PreTrainedTokenizerBase) -> list[str]:
    """Return the documents of some validation rows as text. Raises CometError as `read_shard` does."""
    shard = cache.extent.indices("validation")[0]
    arrays = cache.read_shard("validation", shard, ("input_ids", "length", "target_position", "target_id"))
    lines = []
    for row, length in zip(unmasked(arrays)[:ROWS], arrays["length"][:ROWS], strict=True):
        tokens = row[:length]
        documents = np.split(tokens, np.flatnonzero(tokens == cache.recipe.eos_id))
        lines += [str(teacher.decode(document, skip_special_tokens=True)) for document in documents]
    return [unicodedata.normalize(TEXT_FORM, line) for line in lines if line.strip()]
