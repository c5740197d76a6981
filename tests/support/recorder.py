"""A stand-in for CUDA graphs on the processor, an honest one: it does what it recorded again, on its own tensors."""

from collections.abc import Callable

import torch
from networks import seeded
from torch import Tensor, nn

from gendr_core.geometry import Extent, Span
from gendr_core.graphs import GraphCache, Pass
from gendr_core.host import Host, Meter
from gendr_core.plan import DEFAULT_PLAN, StagePlan

Work = Callable[[tuple[Tensor, ...]], Tensor]


class Recording:
    """Work with the tensors that it reads and the one that it writes, all fixed when it was recorded."""

    def __init__(self, owner: "Recorder", work: Work, inputs: tuple[Tensor, ...], num_bytes: int) -> None:
        """Record ``work``, once to warm up and once for good, as torch does."""
        self._owner, self._work, self.num_bytes = owner, work, num_bytes
        self._inputs = tuple(x.clone() for x in inputs)
        work(self._inputs)
        self._result = work(self._inputs)
        self.released = False

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return a copy of what the work makes of ``inputs``, copied into its own."""
        assert not self.released
        for own, given in zip(self._inputs, inputs, strict=True):
            assert own.shape == given.shape
            own.copy_(given)
        self._result.copy_(self._work(self._inputs))
        self._owner.replays += 1
        return self._result.clone()

    def release(self) -> None:
        """Forget everything."""
        self.released = True
        del self._work, self._inputs, self._result


class Recorder:
    """Records on the processor; each recording takes what the next of ``costs`` says, 1 byte where that is empty."""

    device_type = "cpu"

    def __init__(self, costs: tuple[int, ...] = (), *, errors: tuple[Exception, ...] = ()) -> None:
        """Begin; the first recordings fail with ``errors``, at their end."""
        self._costs, self._errors = list(costs), list(errors)
        self.captures = self.replays = self.resets = 0

    def capture(self, work: Work, inputs: tuple[Tensor, ...]) -> Recording:
        """Return ``work`` recorded."""
        self.captures += 1
        recording = Recording(self, work, inputs, self._costs.pop(0) if self._costs else 1)
        if self._errors:
            raise self._errors.pop(0)
        return recording

    def reset(self) -> None:
        """Count."""
        self.resets += 1


class Forgetful(Recorder):
    """Keeps no work, as a real graph keeps nothing of Python: only what the cache itself holds stays alive."""

    def capture(self, work: Work, inputs: tuple[Tensor, ...]) -> Recording:
        """Return a recording of the result alone."""
        with torch.inference_mode():
            result = work(inputs)
        return super().capture(lambda _: result, inputs)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return seeded normals of that shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Stop:
    """The user's interrupt, pressed when ``now`` is set."""

    def __init__(self) -> None:
        """Begin unpressed."""
        self.now = False
        self.checks = 0

    def check(self) -> None:
        """Stop if it is pressed."""
        self.checks += 1
        if self.now:
            raise InterruptedError


class Passes:
    """A small layer's passes through a cache, each of which must give what the layer itself gives."""

    def __init__(self, cache: GraphCache, *, plan: StagePlan = DEFAULT_PLAN) -> None:
        """Make the layer; nothing has run."""
        self.cache, self.plan = cache, plan
        self.network: nn.Module = seeded(nn.Conv2d(2, 2, 3, padding=1), 1)
        self.stop = Stop()
        self.meter = Meter(Host(interrupt=self.stop))
        self.eager = 0

    def run(self, size: int = 4, *, factor: float = 1.0, batch: int = 1, recordable: bool = True) -> Tensor:
        """Return the result of a frame of ``size`` squared that no pass had before."""
        network, meter = self.network, self.meter
        self.eager += 1
        x = noise(batch, 2, size, size, seed=self.eager)
        each = Pass(
            network=network,
            plan=self.plan,
            meter=meter,
            cells=Extent(size, size),
            constants=(factor,),
            recordable=recordable,
        )

        def compute(meter: Meter, inputs: tuple[Tensor, ...]) -> Tensor:
            meter.advance(100 * size, Span(0, 1), 1)
            return network(inputs[0]) * factor

        with torch.inference_mode():
            result = self.cache.run(each, compute, (x,))
            assert torch.equal(result, network(x) * factor)
        return result
