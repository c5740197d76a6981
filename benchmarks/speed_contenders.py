"""Speed: who is compared. The diffusers reference, eager and compiled, and ours as it is and specialised.

Role: a part of ``speed``. Each contender has networks of its own, made of the same weights: folding changes them in
place, and everybody keeps weights in the order that suits him.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from speed_networks import DTYPES, Networks, networks, place
from speed_timing import Tap
from torch import Tensor, nn

import gendr_core.pipeline
from gendr_core.config import AttentionRange, ColorMethod, GraphMode, MemoryOptions, RestoreOptions
from gendr_core.geometry import Extent
from gendr_core.model import GenDRUNet, GenDRVAE, fold_unet, fold_vae
from gendr_core.pipeline import restore
from gendr_core.planner import Planner, Task
from gendr_core.spec import UNET_FOLDS, VAE_FOLDS, Fold

if TYPE_CHECKING:
    from gendr_core.reference import GenDRReferencePipeline

DIFFUSERS, COMPILED, PLAIN, OURS, FUSED = "diffusers", "diffusers compiled", "ours plain", "ours", "ours fused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One restoration."""

    image: Tensor
    """[1, H, W, 3] in 0 to 1."""
    extent: Extent
    """Of the output; the aspect ratio is that of the image."""
    guidance: float
    """1 runs the UNet once."""
    attention: AttentionRange
    """What ours attends to; the reference always sees the whole frame."""
    graphs: GraphMode
    """Of ours, specialised, fused or not; plain runs without."""

    def options(self, color: ColorMethod, *, graphs: bool) -> RestoreOptions:
        """Return this for ``restore``; without ``graphs`` there are none."""
        longest = max(self.extent.height, self.extent.width)
        memory = MemoryOptions(attention=self.attention)
        mode = self.graphs if graphs else "off"
        return RestoreOptions(longest_edge=longest, guidance=self.guidance, color=color, memory=memory, graphs=mode)


class Contender(ABC):
    """Somebody who restores images."""

    name: str
    modules: Sequence[nn.Module]
    """Its networks."""
    taps: Sequence[Tap]
    """Where its stages begin and end."""
    may_fail = False
    """Whether it takes part only where it can."""

    @abstractmethod
    def restore(self, work: Work, color: ColorMethod = "wavelet") -> Tensor:
        """Return the restored image [1, H', W', 3] in 0 to 1, float32, CPU; with ``color`` if it knows how."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        # Weights in an order of oneDNN's own do not know their nbytes.
        return sum(x.numel() * x.element_size() for module in self.modules for x in module.parameters())


class Ours(Contender):
    """``pipeline.restore``."""

    taps = (
        Tap(gendr_core.pipeline, "prepare", "prepare"),
        Tap(gendr_core.pipeline, "encode", "encode"),
        Tap(gendr_core.pipeline, "one_step", "step"),
        Tap(gendr_core.pipeline, "decode", "decode"),
        Tap(gendr_core.pipeline, "finish", "color"),
    )

    def __init__(self, name: str, unet: GenDRUNet, vae: GenDRVAE | None) -> None:
        """Take the networks as they are."""
        self.name, self._unet, self._vae = name, unet, vae
        self.modules = [unet.network] if vae is None else [unet.network, vae.network]

    def restore(self, work: Work, color: ColorMethod = "wavelet") -> Tensor:
        """Return the restored image, in the colours of the input as users get it."""
        return restore(work.image, self._unet, self._vae, work.options(color, graphs=self.name != PLAIN))

    def flops(self, work: Work) -> int:
        """Return the FLOPs of the convolutions, products and attentions that the planner counts."""
        task = Task(source=Extent(height=work.image.shape[1], width=work.image.shape[2]))
        return Planner(self._unet, self._vae, task, work.options("wavelet", graphs=False)).plan().flops


class Reference(Contender):
    """The diffusers pipeline, which knows nothing of colours."""

    def __init__(self, name: str, pipeline: "GenDRReferencePipeline", *, compiled: bool = False) -> None:
        """Take the pipeline as it is, or let torch compile its networks at their first call."""
        self.name, self._pipeline, self.may_fail = name, pipeline, compiled
        self.modules = [pipeline.unet] if pipeline.vae is None else [pipeline.unet, pipeline.vae]
        self.taps = [
            Tap(pipeline, method, stage)
            for method, stage in (("encode", "encode"), ("predict", "step"), ("decode", "decode"))
        ]
        if compiled:
            parts = [pipeline.unet] if pipeline.vae is None else [pipeline.unet, *pipeline.vae.children()]
            for part in parts:
                part.compile(dynamic=False)  # pyright: ignore[reportUnknownMemberType]

    def restore(self, work: Work, color: ColorMethod = "wavelet") -> Tensor:
        """Return the restored image as the decoder gives it."""
        del color
        return self._pipeline(work.image, work.extent, guidance=work.guidance)


def references(arch: str, dtype: str, device: str, *, compiled: bool) -> list[Reference]:
    """Return the reference on weights as diffusers would hold them, and once more compiled if asked."""
    # Here, because it takes seconds and diffusers is often not installed.
    from gendr_core.reference import GenDRReferencePipeline

    made = networks(arch)
    place(made.unet.network, device, DTYPES[dtype])
    if made.vae is not None:
        place(made.vae.network, device, DTYPES[dtype])
    # Both share the weights, which neither changes.
    names = [DIFFUSERS, COMPILED] if compiled else [DIFFUSERS]
    return [
        Reference(name, GenDRReferencePipeline.from_gendr(made.unet, made.vae), compiled=name == COMPILED)
        for name in names
    ]


def contenders(arch: str, dtype: str, device: str, *, against: str | None, compiled: bool) -> list[Contender]:
    """Return who takes part, in the order of their turns.

    Args:
        arch: one of ``ARCHITECTURES``.
        dtype: one of ``DTYPES``.
        device: ``cpu`` or ``cuda``.
        against: ``diffusers``, or None for ours alone.
        compiled: whether the reference takes part compiled, too.
    """
    present: list[Contender] = []
    if against == DIFFUSERS:
        present += references(arch, dtype, device, compiled=compiled)
    present += [_ours(name, networks(arch), DTYPES[dtype], device) for name in (PLAIN, OURS)]
    return present


def fused(arch: str, dtype: str, device: str) -> list[Contender]:
    """Return ours once more, with fused norms; arguments as ``contenders``."""
    return [_ours(FUSED, networks(arch), DTYPES[dtype], device)]


def _ours(name: str, made: Networks, dtype: torch.dtype, device: str) -> Ours:
    """Return ours without folds if it is ``PLAIN``, else with the usual ones, and fused norms if it is ``FUSED``."""
    asked: tuple[Fold, ...] = ("fused",) if name == FUSED else ()
    folds, vae_folds = ((), ()) if name == PLAIN else (UNET_FOLDS + asked, VAE_FOLDS + asked)
    unet = fold_unet(replace(made.unet, dtype=dtype), folds, device=device)
    vae = made.vae and fold_vae(replace(made.vae, dtype=dtype), vae_folds, device=device)
    return Ours(name, unet, vae)
