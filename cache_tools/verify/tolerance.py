"""How far a teacher that is run again may be off what a cache holds, and whether it is.

Two runs of one teacher differ by rounding: in the last bits of the dtype that it computes in, and then by a step of
what the cache stores (float16, 1 / 1024 nat, a code of a map). The tolerances, in `cache_tools.signals`, hold for the
coarser dtype of the two. Those of float32 are two to four steps. Those of the others are about four times the largest
error seen in any row (of shares of ids: in all rows together), on a CPU, with two real teachers of 4 and 6 layers:
twice for a depth of 24, with whose root rounding grows, and twice for other devices. Batches of other sizes or lengths
alone give up to half of what a coarser dtype does, so an equal dtype is given no less. To see such figures for a
teacher, build with `--rows-per-shard 1 --dtype float32` and verify with `--teacher … --dtype bfloat16`; the worst shard
is then the worst row.
"""

import math
from dataclasses import asdict, dataclass, field

import numpy as np

from cache_tools.signals import DTYPES, MEASURES, Tolerance
from cache_tools.teacher.comparison import Errors


@dataclass(frozen=True)
class Summary:
    """The errors of one measure in the rows of one shard, in the unit of the measure."""

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
        return MEASURES[measure].tolerances[max(DTYPES.index(self.built_in), DTYPES.index(self.run_in))]

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
                | ({"allowed_largest": tolerated[name].largest} if MEASURES[name].unit != "share" else {})
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
            allowed, unit = self.allowed(name), MEASURES[name].unit
            if unit == "share":
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

    Of a share the count may be four standard deviations, and one, above the share: a shard may give a few ids only.
    """
    if MEASURES[measure].unit == "share":
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
