"""Small data sets in the published formats, easy enough for a tiny model to learn in seconds."""

from pathlib import Path

NAMES = ["Mukamana", "Habimana", "Uwase", "Mugisha", "Ingabire", "Nshimiyimana"]
PLACES = ["Kigali", "Huye", "Musanze", "Rubavu", "Nyagatare"]
DAYS = ["uyu munsi", "ejo hashize", "ku cyumweru", "mu gitondo"]
SIZES = {"train": (0, 24), "dev": (24, 32), "test": (32, 44)}


def sentences(first: int, last: int) -> list[tuple[str, str, str, str]]:
    """(name, place, day, label) for each number; label says which of two topics the sentence has."""
    return [(NAMES[i % 6], PLACES[i % 5], DAYS[i % 4], ("sports", "health")[i % 2]) for i in range(first, last)]


def topic(name: str, place: str, day: str, label: str) -> str:
    said = "yatsinze umukino w'umupira" if label == "sports" else "yavuye umurwayi kwa muganga"
    return f"{name} {said} i {place} {day}."


def write_topics(folder: Path, sizes: dict[str, tuple[int, int]] = SIZES) -> Path:
    """SIB-200's format: two of its topics. A sentence of dev is labelled wrongly, so that its scores differ."""
    folder.mkdir(parents=True)
    for split, (first, last) in sizes.items():
        lines = [f"{i}\t{one[3]}\t{topic(*one)}\n" for i, one in enumerate(sentences(first, last))]
        if split == "dev":
            lines[0] = lines[0].replace("sports", "travel")
        (folder / f"{split}.tsv").write_text("".join(["index_id\tcategory\ttext\n", *lines]), encoding="utf-8")
    return folder


def write_entities(folder: Path) -> Path:
    """MasakhaNER's format, without a test split: a person and a place in every sentence."""
    folder.mkdir(parents=True)
    for split in ("train", "dev"):
        blocks = [
            f"{name} B-PER\nyagiye O\ni O\n{place} B-LOC\n" + "".join(f"{word} O\n" for word in day.split())
            for name, place, day, _ in sentences(*SIZES[split])
        ]
        (folder / f"{split}.txt").write_text("\n".join(blocks), encoding="utf-8")
    return folder
