"""What a run will take before it is started: parameters, memory of a GPU, work and days.

Role: behind ``gendr-train STAGE CONFIG --dry-run``; ``passes`` says what an update consists of, ``shapes`` what each
pass costs. Needs neither a GPU nor weights. Memory is that of tensors: CUDA itself, fragmentation and what kernels take
for a moment come on top, some gigabytes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from gendr_core.memory import UNITS

from .passes import Update, update_of
from .schema import TrainConfig
from .shapes import cost

FLOAT32, BFLOAT16 = 4, 2
MOMENTS = 2 * FLOAT32
"""Bytes of AdamW per parameter."""
SHARDS = 8
"""GPUs that ZeRO-2 and FSDP divide among in the table: one machine of the papers."""
GPUS = (1, 8, 64)
SUSTAINED_TFLOPS = {"A100": 250.0, "H100": 790.0, "H200": 790.0}
"""bf16 matrix products, as measured for long ones (docs/algorithm.md, D3); H100 and H200 have the same processor."""
UTILISATION = 0.4
"""Share of it that training reaches: an assumption. Norms, the optimiser and waiting for others take the rest."""
SECONDS_PER_DAY = 86_400.0


class Memory(NamedTuple):
    """Bytes of one GPU."""

    weights: int
    gradients: int
    """With the buckets that DDP sends them in."""
    moments: int
    """Of AdamW; in ZeRO-2 with the float32 weights that it changes."""
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """Return all of it."""
        return sum(self)


class Work(NamedTuple):
    """FLOPs of one pass for one image; a multiply-add counts 2."""

    forward: float
    backward: float
    """Without what checkpointing computes a second time."""
    again: float
    """What checkpointing computes a second time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a run takes."""

    trained: dict[str, int]
    """Role -> parameters."""
    frozen: dict[str, int]
    """Network -> parameters."""
    memory: dict[str, Memory]
    """Way of spreading the run -> what a GPU holds; the first is the run as configured, by itself."""
    work: dict[str, Work]
    """Pass -> for one image."""
    images: int
    """Length of the run."""
    checkpointing: bool
    notes: tuple[str, ...]
    """What was assumed."""

    @property
    def num_trained(self) -> int:
        """Return the parameters of all roles."""
        return sum(self.trained.values())

    @property
    def flops_per_image(self) -> float:
        """Return the work of one image in all passes, what is computed twice included where the config says so."""
        work = self.work.values()
        return sum(w.forward + w.backward + (w.again if self.checkpointing else 0.0) for w in work)

    def days(self, gpu: str, count: int) -> float:
        """Return how long the run takes, in days.

        Args:
            gpu: a name in ``SUSTAINED_TFLOPS``.
            count: of such GPUs.
        """
        rate = SUSTAINED_TFLOPS[gpu] * 1e12 * UTILISATION * count
        return self.flops_per_image * self.images / rate / SECONDS_PER_DAY


def budget(config: TrainConfig) -> Budget:
    """Return what a run takes.

    Args:
        config: any run; the weight files that it names need not exist.

    Raises:
        TrainingError: peft is not installed, in stage cida.
    """
    update = update_of(config)
    work: dict[str, Work] = {}
    held = dict.fromkeys((False, True), 0)
    passing = dict.fromkeys((False, True), 0)
    for name, one in update.passes:
        plain, twice = (cost(one, checkpointing=again, precision=config.loop.precision) for again in (False, True))
        images = config.data.batch
        again = twice.backward_flops - plain.backward_flops
        work[name] = Work(plain.forward_flops / images, plain.backward_flops / images, again / images)
        for checkpointing, found in ((False, plain), (True, twice)):
            held[checkpointing] += found.kept_bytes
            passing[checkpointing] = max(passing[checkpointing], found.passing_bytes)
    activations = {checkpointing: held[checkpointing] + passing[checkpointing] for checkpointing in held}
    return Budget(
        trained=update.trained,
        frozen=update.shared | update.beside,
        memory=_memory(config, update, activations),
        work=work,
        images=config.loop.images,
        checkpointing=config.loop.checkpointing,
        notes=tuple(dict.fromkeys(update.notes)),
    )


def _memory(config: TrainConfig, update: Update, activations: dict[bool, int]) -> dict[str, Memory]:
    trained, averaged = sum(update.trained.values()), update.trained["generator"]
    shared, beside = sum(update.shared.values()), FLOAT32 * sum(update.beside.values())
    own, chosen = trained + shared, config.loop.checkpointing
    one = Memory(FLOAT32 * own + beside, FLOAT32 * trained, MOMENTS * trained, FLOAT32 * averaged, activations[chosen])
    # DDP copies gradients into buckets of the same size in all.
    ddp = one._replace(gradients=2 * one.gradients)
    # DeepSpeed has weights and gradients in the run's precision, and divides gradients, float32 weights and moments.
    size = BFLOAT16 if config.loop.precision == "bf16" else FLOAT32
    zero = Memory(
        weights=size * own + beside,
        gradients=size * trained // SHARDS,
        moments=(FLOAT32 + MOMENTS) * trained // SHARDS,
        averages=size * averaged,
        activations=activations[True],
    )
    # Besides its share a GPU holds the block that runs just now; that is small beside the rest.
    fsdp = Memory(
        weights=FLOAT32 * own // SHARDS + beside,
        gradients=one.gradients // SHARDS,
        moments=one.moments // SHARDS,
        averages=one.averages // SHARDS,
        activations=activations[True],
    )
    return {
        "one GPU": one,
        "DDP": ddp._replace(activations=activations[False]),
        "DDP, checkpointing": ddp._replace(activations=activations[True]),
        f"ZeRO-2 over {SHARDS}, checkpointing": zero,
        f"FSDP over {SHARDS}, checkpointing": fsdp,
    }


def estimate(config: TrainConfig) -> str:
    """Return what a run takes, as text for a terminal.

    Args:
        config: any run; the weight files that it names need not exist.

    Raises:
        TrainingError: peft is not installed, in stage cida.
    """
    found, data = budget(config), config.data
    twice = "with" if found.checkpointing else "without"
    lines = [
        f"{config.run.name}: stage {config.run.stage}, {found.images:,} images, crops of {data.crop_px} px, batches of"
        f" {data.batch} per GPU, {config.loop.precision}, {twice} checkpointing",
        *(f"assumed: {note}" for note in found.notes),
        "",
        "parameters",
        *(f"  {name:<32} {count:>15,} trained" for name, count in found.trained.items()),
        *(f"  {name:<32} {count:>15,} frozen" for name, count in found.frozen.items()),
        f"  {'all':<32} {found.num_trained + sum(found.frozen.values()):>15,}, of which"
        f" {found.num_trained:,} are trained",
        "",
        "memory per GPU in GiB                weights  gradients    moments   averages  activations    in all",
        *(_memory_line(name, memory) for name, memory in found.memory.items()),
        "",
        "work per image in TFLOP              forward   backward  twice by checkpointing",
        *(_work_line(name, work) for name, work in found.work.items()),
        f"  in all, as configured {found.flops_per_image / 1e12:>21.3f}",
        "",
        f"days, at {UTILISATION:.0%} of the TFLOP/s that bf16 matrix products reach"
        + "".join(f"{f'{count} GPUs' if count > 1 else '1 GPU':>12}" for count in GPUS),
        *(_days_line(found, gpu) for gpu in SUSTAINED_TFLOPS),
    ]
    return "\n".join(lines)


def _memory_line(name: str, memory: Memory) -> str:
    columns = "".join(f"{value / UNITS['GiB']:>11.2f}" for value in memory)
    return f"  {name:<30} {columns}  {memory.total / UNITS['GiB']:>10.2f}"


def _work_line(name: str, work: Work) -> str:
    return f"  {name:<30} {work.forward / 1e12:>11.3f} {work.backward / 1e12:>10.3f} {work.again / 1e12:>11.3f}"


def _days_line(found: Budget, gpu: str) -> str:
    columns = "".join(f"{found.days(gpu, count):>12.2f}" for count in GPUS)
    return f"  {gpu} ({SUSTAINED_TFLOPS[gpu]:.0f} TFLOP/s)".ljust(65) + columns
