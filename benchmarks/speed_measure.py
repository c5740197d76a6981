"""Speed: one setting measured. Times, memory, the distance to what the arithmetic allows, and to the right image.

Role: a part of ``speed``; ``speed_report`` makes tables of what comes from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from coefficients import peak_bytes
from speed_contenders import DIFFUSERS, OURS, PLAIN, Contender, Ours, Work, references
from speed_networks import DTYPES, photo
from speed_timing import Call, StageClock, interleave, peak_flops, tapped
from torch import Tensor

from gendr_core.config import AttentionRange, GraphMode
from gendr_core.geometry import Extent

MORE_WARM_UPS = {"cpu": 0, "cuda": 2}
"""Untimed calls besides the two of the memory's measurement; CUDA chooses its kernels in the first ones."""
SCALE = 4
GUIDANCE = {1: 1.0, 2: 1.5}
"""By passes of the UNet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is measured."""

    arch: str
    """``mini`` or ``full``."""
    size: int
    """Output edge in pixels; the input is a quarter of it."""
    passes: int
    """Of the UNet: 2 with guidance."""
    dtype: str
    device: str
    attention: AttentionRange
    graphs: GraphMode
    kernels: str
    """``fused``: ours takes part once more, with fused norms; else ``torch``."""
    against: str | None
    compiled: bool
    errors: bool
    repeat: int

    def work(self) -> Work:
        """Return the restoration: the example photo, enlarged to ``size``."""
        edge = max(1, self.size // SCALE)
        return Work(
            image=photo(Extent(edge, edge)),
            extent=Extent(self.size, self.size),
            guidance=GUIDANCE[self.passes],
            attention=self.attention,
            graphs=self.graphs,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Of one contender. Times are medians over the rounds, images have values in 0 to 1."""

    ms: float
    """End to end, CPU image in and out; ours with its default colour matching."""
    stages_ms: Mapping[str, float]
    """The same by stage; on CUDA of calls of their own, since reading the clock waits for the device."""
    weight_bytes: int
    activation_bytes: int
    """Most bytes that torch's allocator handed out during one call."""
    ratio_to_diffusers: float | None
    """The reference's ms over these: above 1 this contender is faster."""
    max_difference: float | None
    """Largest distance to the image of the eager reference in the same dtype, colour matching left out."""
    rms_difference: float | None
    """Root of the mean square of the same."""
    rms_error: float | None
    """As ``rms_difference``, to the reference in float32."""

    @property
    def peak_bytes(self) -> int:
        """Weights and activations."""
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one setting gave; ``ours`` is specialised where nothing else is said."""

    contenders: Mapping[str, Figures]
    skipped: Mapping[str, str]
    """Contenders that could not take part, and why."""
    ours_ms: float
    diffusers_ms: float | None
    ratio_to_diffusers: float | None
    plain_ratio_to_diffusers: float | None
    memory_ratio_to_diffusers: float | None
    """Weights and activations of ours over the reference's: below 1 ours takes less."""
    activation_ratio_to_diffusers: float | None
    flops: int
    """Of ours, as planned: convolutions, products, attention; a multiply-add counts 2."""
    peak_flops: float
    """FLOP/s that this machine reached beside it."""
    floor_ms: float
    """flops / peak_flops: what no program with these operations goes below."""
    floor_distance: float
    """ours_ms / floor_ms."""
    max_difference: float | None
    rms_difference: float | None
    error_ratio: float | None
    """rms_error of ours over that of the reference in the same dtype."""
    image_spread: float
    """Standard deviation of the image: what the differences are small beside, or not."""


def exact_images(settings: Sequence[Setting]) -> dict[Setting, Tensor]:
    """Return the image that the reference in float32 gives for every setting; all of one architecture and device."""
    (exact,) = references(settings[0].arch, "fp32", settings[0].device, compiled=False)
    return {setting: exact.restore(setting.work()) for setting in settings}


def measure(setting: Setting, present: Sequence[Contender], exact: Tensor | None) -> Result:
    """Return what one setting gives.

    Args:
        setting: what is measured.
        present: who takes part, ours among them; made for the setting's architecture, dtype and device.
        exact: image of the reference in float32; None where errors are not asked for.
    """
    work, device, dtype = setting.work(), setting.device, DTYPES[setting.dtype]
    seen, skipped = _examine_all(present, work, device)
    present = [contender for contender in present if contender.name in seen]
    rate = peak_flops(device, dtype)
    times = _times(present, work, setting)
    rate = max(rate, peak_flops(device, dtype))
    reference = seen[DIFFUSERS][0] if DIFFUSERS in seen else None
    figures: dict[str, Figures] = {}
    for contender in present:
        image, activation_bytes = seen[contender.name]
        ms, stages_ms = times[contender.name]
        figures[contender.name] = Figures(
            ms=ms,
            stages_ms=stages_ms,
            weight_bytes=contender.weight_bytes,
            activation_bytes=activation_bytes,
            ratio_to_diffusers=times[DIFFUSERS][0] / ms if DIFFUSERS in times else None,
            max_difference=None if reference is None else (image - reference).abs().max().item(),
            rms_difference=None if reference is None else _rms(image, reference),
            rms_error=None if exact is None else _rms(image, exact),
        )
    flops = next(x.flops(work) for x in present if isinstance(x, Ours) and x.name == OURS)
    spread = (seen[OURS][0] if exact is None else exact).std().item()
    return _result(figures, skipped, flops=flops, rate=rate, spread=spread)


def _examine_all(
    present: Sequence[Contender], work: Work, device: str
) -> tuple[dict[str, tuple[Tensor, int]], dict[str, str]]:
    """Return what ``_examine`` says of everybody, and of those who cannot take part why."""
    seen: dict[str, tuple[Tensor, int]] = {}
    skipped: dict[str, str] = {}
    for contender in present:
        try:
            seen[contender.name] = _examine(contender, work, device)
        except RuntimeError as error:
            if not contender.may_fail:
                raise
            skipped[contender.name] = str(error).strip().partition("\n")[0]
    return seen, skipped


def _examine(contender: Contender, work: Work, device: str) -> tuple[Tensor, int]:
    """Return the image without colour matching, and the most bytes that a call with it allocates; both untimed."""
    images: list[Tensor] = []

    def call() -> Tensor:
        # The first of the two calls, in which nobody looks at memory, is the one whose image is kept.
        if images:
            return contender.restore(work)
        images.append(contender.restore(work, color="none"))
        return images[0]

    num_bytes = peak_bytes(call, device)
    for _ in range(MORE_WARM_UPS[device]):
        contender.restore(work)
    return images[0], num_bytes


def _times(present: Sequence[Contender], work: Work, setting: Setting) -> dict[str, tuple[float, dict[str, float]]]:
    """Return the median milliseconds of everybody, end to end and by stage."""
    clocks = {contender.name: StageClock(setting.device) for contender in present}
    calls: dict[str, Call] = {}
    for contender in present:
        watched = partial(_restore_tapped, contender, work, clocks[contender.name])
        if setting.device == "cpu":
            calls[contender.name] = watched
        else:
            calls[contender.name] = partial(contender.restore, work)
            calls[f"{contender.name}, stages"] = watched
    medians = interleave(calls, setting.repeat, setting.device)
    return {name: (medians[name], clock.medians_ms()) for name, clock in clocks.items()}


def _restore_tapped(contender: Contender, work: Work, clock: StageClock) -> Tensor:
    with tapped(contender.taps, clock):
        return contender.restore(work)


def _rms(image: Tensor, other: Tensor) -> float:
    return (image - other).double().square().mean().sqrt().item()


def at_rate(result: Result, rate: float) -> Result:
    """Return ``result`` with the floor of a machine that reaches ``rate`` FLOP/s."""
    floor_ms = result.flops / rate * 1e3
    return replace(result, peak_flops=rate, floor_ms=floor_ms, floor_distance=result.ours_ms / floor_ms)


def _result(
    figures: Mapping[str, Figures], skipped: Mapping[str, str], *, flops: int, rate: float, spread: float
) -> Result:
    """Return the figures with those that follow from them."""
    ours, base = figures[OURS], figures.get(DIFFUSERS)
    floor_ms = flops / rate * 1e3
    return Result(
        contenders=figures,
        skipped=skipped,
        ours_ms=ours.ms,
        diffusers_ms=base and base.ms,
        ratio_to_diffusers=ours.ratio_to_diffusers,
        plain_ratio_to_diffusers=figures[PLAIN].ratio_to_diffusers,
        memory_ratio_to_diffusers=base and ours.peak_bytes / base.peak_bytes,
        activation_ratio_to_diffusers=base and ours.activation_bytes / base.activation_bytes,
        flops=flops,
        peak_flops=rate,
        floor_ms=floor_ms,
        floor_distance=ours.ms / floor_ms,
        max_difference=ours.max_difference,
        rms_difference=ours.rms_difference,
        error_ratio=_ratio(ours.rms_error, base and base.rms_error),
        image_spread=spread,
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    """Return ``value / base``; None where one of them is not known, or the base is no distance at all."""
    return None if value is None or not base else value / base
