"""What is shown while a student trains."""

import re
import time
from types import SimpleNamespace

from comet.train.callbacks import LiveLine


def test_the_rate_after_a_resume_is_that_of_the_steps_since() -> None:
    state = SimpleNamespace(max_steps=10_000, global_step=5_000, is_world_process_zero=True)
    live = LiveLine()
    live.on_train_begin(None, state, None)
    time.sleep(0.1)
    state.global_step += 1
    live.on_step_end(None, state, None)
    rate = re.search(r"([\d.]+)step/s", str(live.bar))
    live.on_train_end(None, state, None)
    assert rate and float(rate[1]) < 100, "one step, not 5,001"
