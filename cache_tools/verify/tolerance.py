"""Errors of a rerun of the teacher, and their tolerances.

Two runs of one teacher differ by rounding: in the last bits of the compute dtype, and then by a step of the stored
values (float16, 1 / 1024 nat, a code of a map). The tolerances, in `cache_tools.signals`, hold for the coarser dtype of
the two. Those of float32 are two to four steps. Those of the others are about four times the largest error seen in any
row (of shares of ids: in all rows together), on a CPU, with two real teachers of 4 and 6 layers: twice for a depth of
24, as rounding grows with the root of the depth, and twice for other devices. Other batch sizes or row lengths alone
give up to half the error of a coarser dtype, so an equal dtype has no smaller tolerance. To measure a teacher, build
with `--rows-per-shard 1 --dtype float32` and verify with `--teacher … --dtype bfloat16`; the worst shard is then the
worst row.
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
    """The errors of a rerun in all shards that were built in one dtype on one kind of device.

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
        """Add the errors of one shard's rows. Return those beyond tolerance, in words."""
        self.shards, self.rows = self.shards + 1, self.rows + rows
        messages = []
        for measure, values in errors.items():
            if not len(values):
                continue
            new = summarise(values)
            old = self.worst.get(measure, Summary(0, 0.0, 0.0, 0.0, 0.0))
            largest = (max(getattr(old, n), getattr(new, n)) for n in ("mean", "median", "p99", "largest"))
            self.worst[measure] = Summary(old.count + new.count, *largest)
            if message := beyond(measure, new, self.allowed(measure)):
                messages.append(message)
        return messages

    def facts(self) -> dict[str, object]:
        """Return the fields for JSON, infinite numbers as None."""
        facts = asdict(self)
        facts["worst_shard"] = facts.pop("worst")
        for name, numbers in facts["worst_shard"].items():
            allowed = self.allowed(name)
            numbers.update({n: None for n, x in numbers.items() if not math.isfinite(x)}, allowed_mean=allowed.mean)
            if MEASURES[name].unit != "share":
                numbers["allowed_largest"] = allowed.largest
        return facts

    def lines(self) -> list[str]:
        """Return a table for the terminal, one line for each measure."""
        lines = [
            f"teacher rerun on {self.rows} rows of {self.shards} shards, in {self.run_in} on {self.run_on}; "
            f"built in {self.built_in} on {self.built_on}",
            f"  {'error in the worst shard':<26}{'mean':>9}{'median':>9}{'99 %':>9}{'max':>9}   allowed mean, max",
        ]
        for name, worst in self.worst.items():
            allowed, unit = self.allowed(name), MEASURES[name].unit
            if unit == "share":
                share = f"{allowed.mean:.2%}" if allowed.mean < 1 else "any"
                lines.append(f"  {f'{name}, share':<26}{worst.mean:>9.2%}{'':27}   {share}")
            else:
                numbers = "".join(f"{x:>9.5f}" for x in (worst.mean, worst.median, worst.p99, worst.largest))
                lines.append(f"  {f'{name}, {unit}':<26}{numbers}   {allowed.mean:g}, {allowed.largest:g}")
        return lines


def summarise(errors: np.ndarray) -> Summary:
    """Summarise errors [n], n at least 1, which may be infinite."""
    median, p99 = np.quantile(errors, [0.5, 0.99], method="higher")  # never interpolated, as errors may be infinite
    return Summary(len(errors), float(errors.mean()), float(median), float(p99), float(errors.max()))


def beyond(measure: str, found: Summary, allowed: Tolerance) -> str | None:
    """Return the error beyond tolerance, in words, or None.

    Of a share the count may be four standard deviations, and one, above the share, as a shard may hold few ids.
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
