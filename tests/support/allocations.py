"""What torch's CPU allocator hands out: the truth that estimates of memory are held against."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def allocated_peak(run: Callable[[], object]) -> int:
    """Return the most bytes that torch's CPU allocator had handed out at once; ``run`` is called twice."""
    with torch.inference_mode():
        run()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = run()
    del result
    # The profiler's typed interface sums allocations up; only its raw events tell when each of them happened.
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
