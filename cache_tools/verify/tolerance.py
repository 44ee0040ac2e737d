"""How far a teacher that is run again may be off what a cache holds, and whether it is.

Two runs of one teacher differ by rounding: in the last bits of the dtype that it computes in, and then by a step of
what the cache stores (float16, 1 / 1024 nat, a code of a map). TOLERANCES hold for the coarser dtype of the two. Those
of float32 are two to four steps. Those of the others are about four times what was seen of any row, of shares of ids
of all rows together, on a CPU, with two real teachers of 4 and 6 layers: twice for a depth of 24, with whose root
rounding grows, and twice for other devices. Batches of other sizes or lengths alone give up to half of what a coarser
dtype does, so an equal dtype is given no less. To see such figures for a teacher, build with `--rows-per-shard 1
--dtype float32` and verify with `--teacher … --dtype bfloat16`; the worst shard is then the worst row.
"""

import math
from dataclasses import asdict, dataclass, field

import numpy as np

from cache_tools.teacher.comparison import RATES, Errors

DTYPES = ("float32", "float16", "bfloat16")  # finest first


@dataclass(frozen=True)
class Tolerance:
    """What the mean and the largest error in the rows of one shard may be; of RATES the mean only."""

    mean: float
    largest: float = math.inf


TOLERANCES: dict[str, tuple[Tolerance, Tolerance, Tolerance]] = {  # in the order of DTYPES
    "topk_logprob": (Tolerance(0.002, 0.032), Tolerance(0.012, 0.1), Tolerance(0.13, 0.7)),
    "tail_logmass": (Tolerance(0.002, 0.004), Tolerance(0.01, 0.06), Tolerance(0.1, 0.5)),
    "tail_logmass_seen": (Tolerance(0.002, 0.004), Tolerance(0.01, 0.06), Tolerance(0.1, 0.5)),
    "topk_id": (Tolerance(0.001), Tolerance(0.01), Tolerance(0.07)),
    "sample_logweight": (Tolerance(0.002, 0.032), Tolerance(0.012, 0.1), Tolerance(0.13, 0.7)),
    "entropy": (Tolerance(0.002, 0.004), Tolerance(0.01, 0.06), Tolerance(0.1, 0.5)),
    "entropy_seen": (Tolerance(0.002, 0.004), Tolerance(0.01, 0.06), Tolerance(0.1, 0.5)),
    "certain_id": (Tolerance(0.001), Tolerance(0.01), Tolerance(0.08)),
    "drawn_id": (Tolerance(0.01), Tolerance(1.0), Tolerance(1.0)),  # a coarser dtype draws others, as probable
    "drawn_logprob": (Tolerance(0.1, 0.1), Tolerance(0.1, 0.1), Tolerance(0.1, 0.1)),  # from rounding of entropies
    "kl": (Tolerance(1e-5, 1e-4), Tolerance(1e-4, 5e-4), Tolerance(1e-3, 5e-3)),
    "attention": (Tolerance(0.001, 0.016), Tolerance(0.008, 0.035), Tolerance(0.03, 0.1)),
}


@dataclass(frozen=True)
class Summary:
    """The errors of one measure in the rows of one shard, in the unit of `comparison.errors_of`."""

    count: int
    mean: float
    median: float
    p99: float
    largest: float


@dataclass
class Deviations:
    """What the shards that were built in one dtype on one kind of device gave when the teacher was run again.

    `worst`: by measure, each number the largest of any shard.
    """

    built_in: str
    built_on: str
    run_in: str
    run_on: str
    shards: int = 0
    rows: int = 0
    worst: dict[str, Summary] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[str, str, str, str]:
        return self.built_in, self.built_on, self.run_in, self.run_on

    def allowed(self, measure: str) -> Tolerance:
        return TOLERANCES[measure][max(DTYPES.index(self.built_in), DTYPES.index(self.run_in))]

    def add(self, rows: int, errors: Errors) -> list[str]:
        """Takes in the rows of one shard. Returns what is beyond tolerance, in words."""
        self.shards, self.rows = self.shards + 1, self.rows + rows
        found = []
        for measure, values in errors.items():
            if not len(values):
                continue
            one = summary(values)
            before = self.worst.get(measure, one)
            self.worst[measure] = Summary(
                before.count + (one.count if measure in self.worst else 0),
                *(max(getattr(before, n), getattr(one, n)) for n in ("mean", "median", "p99", "largest")),
            )
            if too_far := beyond(measure, one, self.allowed(measure)):
                found.append(too_far)
        return found

    def facts(self) -> dict[str, object]:
        """For machines."""
        tolerated = {name: self.allowed(name) for name in self.worst}
        return {
            "built_in": self.built_in,
            "built_on": self.built_on,
            "run_in": self.run_in,
            "run_on": self.run_on,
            "shards": self.shards,
            "rows": self.rows,
            "worst_shard": {
                name: {n: x if math.isfinite(x) else None for n, x in asdict(one).items()}
                | {"allowed_mean": tolerated[name].mean}
                | ({"allowed_largest": tolerated[name].largest} if name not in RATES else {})
                for name, one in self.worst.items()
            },
        }

    def lines(self) -> list[str]:
        """For a person: a table with a line for each measure."""
        lines = [
            f"the teacher again on {self.rows} rows of {self.shards} shards, in {self.run_in} on {self.run_on}; "
            f"built in {self.built_in} on {self.built_on}",
            f"  {'off in the worst shard':<26}{'mean':>9}{'median':>9}{'99 %':>9}{'most':>9}   allowed mean, most",
        ]
        for name, one in self.worst.items():
            allowed, unit = self.allowed(name), "radians" if name == "attention" else "nats"
            if name in RATES:
                share = f"{allowed.mean:.2%}" if allowed.mean < 1 else "any"
                lines.append(f"  {f'{name}, share':<26}{one.mean:>9.2%}{'':27}   {share}")
            else:
                numbers = "".join(f"{x:>9.5f}" for x in (one.mean, one.median, one.p99, one.largest))
                lines.append(f"  {f'{name}, {unit}':<26}{numbers}   {allowed.mean:g}, {allowed.largest:g}")
        return lines


def summary(errors: np.ndarray) -> Summary:
    """Of errors [n], n at least 1, which may be infinite."""
    median, p99 = np.quantile(errors, [0.5, 0.99], method="higher")  # a value itself: none between infinite ones
    return Summary(len(errors), float(errors.mean()), float(median), float(p99), float(errors.max()))


def beyond(measure: str, found: Summary, allowed: Tolerance) -> str | None:
    """What is too far off, in words; None when nothing is.

    Of RATES the count may be four standard deviations, and one, above the share: a shard may give a few ids only.
    """
    if measure in RATES:
        expected = found.count * allowed.mean
        if found.mean * found.count <= expected + 4 * math.sqrt(expected) + 1:
            return None
        return f"{measure}: {found.mean:.2%} of {found.count} differ, allowed {allowed.mean:.2%}"
    if found.mean <= allowed.mean and found.largest <= allowed.largest:
        return None
    return (
        f"{measure}: off by {found.mean:.4g} on average and {found.largest:.4g} at most, "
        f"allowed {allowed.mean:g} and {allowed.largest:g}"
    )
