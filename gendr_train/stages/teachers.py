"""What the stages of GenDR-Pix share: a UNet of an earlier stage as teacher, as discriminator and as start of the next.

Role: used by ``adc`` and ``pix``.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from gendr_core.checkpoint import UNetCheckpoint, read_unet, write_unet
from gendr_core.nets import UNet
from gendr_core.nets.frame import WholeFrame
from gendr_core.spec import Back, Front

from ..adversary import FeatureHead, frozen
from ..errors import TrainingError
from ..frames import TrainingFrame, middle
from ..losses import adversarial
from ..schema import ExportConfig
from ..sections import OneStep
from ..settings import AdcSettings, PixSettings
from .networks import FrozenVAE, half, placed, unet_spec
from .stage import Adversary, Losses


class FrozenUNet:
    """A UNet that a stage uses but does not own: no part of its parameters, its state or its engine."""

    def __init__(self, file: UNetCheckpoint) -> None:
        """Build and freeze the network.

        Args:
            file: its weights, prompts and spec.
        """
        self.spec = file.spec
        self.positive = file.positive.float()
        self.negative = None if file.negative is None else file.negative.float()
        network = UNet(file.spec.arch)
        network.load_state_dict({name: value.float() for name, value in file.state.items()})
        self.network = placed(network.requires_grad_(False).eval())

    @classmethod
    def load(cls, path: str, *, front: Front, back: Back, vae: FrozenVAE) -> "FrozenUNet":
        """Return the UNet of a file.

        Args:
            path: UNet file.
            front: what it has to take.
            back: what it has to give.
            vae: of its latents.

        Raises:
            CheckpointError: the file is not usable.
            TrainingError: it is of another stage, or its latents are not those of the VAE.
        """
        file = read_unet(path)
        spec, channels = file.spec, vae.network.arch.latent_channels
        if (spec.front, spec.back) != (front, back):
            raise TrainingError(
                f"expected a teacher from {front} to {back}, got one from {spec.front} to {spec.back} in {path}:"
                " name the file of the stage before"
            )
        if (spec.arch.out_channels, spec.latent_scaling) != (channels, vae.latent_scaling):
            raise TrainingError(
                f"expected a teacher with the VAE's {channels} latent channels scaled by {vae.latent_scaling}, got"
                f" {spec.arch.out_channels} scaled by {spec.latent_scaling} in {path}: name the VAE it learned with"
            )
        return cls(file)

    def predict(self, inputs: Tensor, run: WholeFrame | None = None) -> Tensor:
        """Return the network's output [B, C_out, h, w]; gradients pass through to the inputs.

        Args:
            inputs: [B, C_in, h, w], scaled; the network follows to their device.
            run: how the frame goes through.
        """
        return self.run(self.network.to(inputs.device), inputs, run)

    def run(self, unet: UNet, inputs: Tensor, run: WholeFrame | None = None) -> Tensor:
        """Return the output [B, C_out, h, w] of a network at this one's timestep and positive prompt.

        Args:
            unet: this network, or one made by ``copy_with``.
            inputs: [B, C_in, h, w], on the device of ``unet``.
            run: how the frame goes through.
        """
        context = self.positive.to(inputs.device).expand(inputs.shape[0], -1, -1)
        return unet(inputs, self.spec.timestep, context, run=run)

    @torch.no_grad()
    def one_step(self, inputs: Tensor) -> Tensor:
        """Return z = c_skip x + c_out UNet(x), scaled, without gradient   (docs/algorithm.md, A2).

        Args:
            inputs: [B, C_in, h, w], scaled.
        """
        result = self.spec.c_out * self.predict(inputs)
        return result if self.spec.c_skip == 0.0 else result + self.spec.c_skip * inputs

    def copy_with(self, *, in_channels: int, out_channels: int, without: str) -> UNet:
        """Return a trainable copy in which one layer is of another shape and all zeros.

        Args:
            in_channels: of the copy.
            out_channels: of the copy.
            without: name of the layer.
        """
        unet = UNet(replace(self.spec.arch, in_channels=in_channels, out_channels=out_channels))
        kept = {n: value for n, value in self.network.state_dict().items() if not n.startswith(f"{without}.")}
        unet.load_state_dict({**unet.state_dict(), **kept})
        for parameter in unet.get_submodule(without).parameters():
            nn.init.zeros_(parameter)
        return placed(unet)

    def write_student(self, path: Path, student: UNet, about: ExportConfig, *, latent_scaling: float | None) -> None:
        """Write a network that learned from this one: the same step and prompts, no skip, unshuffled pixels in front.

        Args:
            path: the file to write.
            student: made by ``copy_with``; its output is the result itself.
            about: what the file says about itself.
            latent_scaling: of the latents that it gives; None where it gives unshuffled pixels.

        Raises:
            CheckpointError: the weights are not finite, or the file cannot be written.
        """
        one_step = OneStep(timestep=self.spec.timestep, c_skip=0.0, c_out=1.0, scale=self.spec.scale)
        in_pixels = (True, latent_scaling is None)
        spec = unet_spec(student.arch, one_step, about, in_pixels=in_pixels, latent_scaling=latent_scaling or 1.0)
        state = {name: half(value) for name, value in student.state_dict().items()}
        write_unet(path, spec, state, half(self.positive), None if self.negative is None else half(self.negative))


class FeatureAdversary(Adversary):
    """A head that tells made from real by what a frozen UNet sees in its middle, and how that pulls."""

    def __init__(self, backbone: FrozenUNet, *, weight: float, rate: float, checkpointing: bool) -> None:
        """Build the head.

        Args:
            backbone: whose features it judges; takes what ``losses`` is given.
            weight: of the adversarial loss of the network in training.
            rate: factor of the run's learning rate.
            checkpointing: compute the backbone's blocks a second time for the gradients, which saves memory.
        """
        super().__init__(weight=weight, rate=rate)
        self._backbone, self._checkpointing = backbone, checkpointing
        self.head = placed(FeatureHead(backbone.spec.arch.block_out_channels[-1]))

    @classmethod
    def of(
        cls, settings: AdcSettings | PixSettings, backbone: FrozenUNet, *, checkpointing: bool
    ) -> "FeatureAdversary | None":
        """Return the adversary that a stage's settings ask for, None where its weight is 0.

        Args:
            settings: of the stage.
            backbone: as in ``__init__``.
            checkpointing: likewise.
        """
        if not settings.adversary:
            return None
        rate = settings.discriminator_rate
        return cls(backbone, weight=settings.adversary, rate=rate, checkpointing=checkpointing)

    def losses(self, output: Tensor, real: Tensor) -> Losses:
        """Return the losses of both sides, [B] each.

        Args:
            output: [B, C, h, w] of the network in training, with gradient.
            real: the same shape.
        """
        made, genuine = self._features(output), self._features(real.detach(), learns=False)
        with frozen(self.head):
            fooled = adversarial.fool(self.head(made))
        return {
            "generator/adversarial": fooled,
            "discriminator/real": adversarial.tell_real(self.head(genuine)),
            "discriminator/fake": adversarial.tell_fake(self.head(made.detach())),
        }

    def _features(self, inputs: Tensor, *, learns: bool = True) -> Tensor:
        taps: Mapping[nn.Module, str] = {middle(self._backbone.network): "middle"}
        run = TrainingFrame(checkpointing=self._checkpointing, taps=taps, taps_only=True)
        with nullcontext() if learns else torch.no_grad():
            self._backbone.predict(inputs, run)
        return run.tapped["middle"]


class LastFeatures(WholeFrame):
    """A pass that keeps what the last convolution sees."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.kept = torch.empty(0)

    def output(self, norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, *, guidance: float | None = None) -> Tensor:
        """Return [B, C_out, H, W], as ``WholeFrame``."""
        del guidance
        self.kept = functional.silu(norm(x))
        return conv(self.kept)
