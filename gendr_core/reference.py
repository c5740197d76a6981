"""The same restoration written the way a diffusers user would write it: what we are compared with.

Role: stands beside ``pipeline``; parity tests and benchmarks run both on the same weights. This is the only file that
needs diffusers, and nothing in the package imports it. Left neighbour ``model`` (weights and spec); nothing follows.
Not covered: colour matching, gray and alpha, tiles, images smaller than the padding that reflects them, saving, VAEs
without a middle block.
"""
# diffusers annotates in part, and in part wrongly: a tuple of any length is tuple[str], a Tensor is a FloatTensor.
# pyright: reportUnknownMemberType=false, reportArgumentType=false

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from .errors import OptionError
from .geometry import Extent, pad_multiple, padding_to_multiple
from .model import GenDRUNet, GenDRVAE, required_vae
from .spec import SPATIAL_FACTOR, ModelSpec, UNetArch, VAESpec

if TYPE_CHECKING:
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from torch import nn


class GenDRReferencePipeline(DiffusionPipeline):
    """One-step restoration on diffusers' own UNet2DConditionModel and AutoencoderKL, eager and unoptimised."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | None,
        spec: ModelSpec,
        positive: Tensor,
        negative: Tensor | None = None,
    ) -> None:
        """Keep the networks and how to run them.

        Args:
            unet: of the shape ``spec.arch``.
            vae: None where the spec needs none.
            spec: how the UNet is run.
            positive: prompt embedding [tokens, cross_attention_dim].
            negative: as ``positive``, for guidance.
        """
        super().__init__()
        self.register_modules(unet=unet, vae=vae)
        self.spec = spec
        self.positive = positive
        self.negative = negative

    @property
    def components(self) -> dict[str, object]:
        """Return the arguments of ``__init__``; diffusers asks, and finds its modules among them."""
        return {
            "unet": self.unet,
            "vae": self.vae,
            "spec": self.spec,
            "positive": self.positive,
            "negative": self.negative,
        }

    @classmethod
    def from_gendr(cls, unet: GenDRUNet, vae: GenDRVAE | None = None) -> GenDRReferencePipeline:
        """Return a pipeline on the very tensors of our networks: shared, not copied, and on the same device.

        Args:
            unet: from ``load_unet``.
            vae: from ``load_vae``; needed where ``unet.spec.needs_vae``, ignored otherwise.

        Raises:
            OptionError: the model needs a VAE and none was given.
        """
        reference_unet = diffusers_unet(unet.spec.arch)
        _share_weights(unet.network, reference_unet)
        reference_vae = None
        if unet.spec.needs_vae:
            vae = required_vae(vae)
            reference_vae = diffusers_vae(vae.spec)
            _share_weights(vae.network, reference_vae)
        return cls(reference_unet, reference_vae, unet.spec, unet.positive, unet.negative)

    @torch.inference_mode()
    def __call__(self, image: Tensor, extent: Extent, guidance: float | None = None) -> Tensor:
        """Return the restored images [B, extent.height, extent.width, 3] in 0 to 1, float32, CPU.

        z_SR = c_skip * z_LQ + c_out * network(z_LQ, t, prompt) on scaled latents (docs/algorithm.md, A2 and A3).

        Args:
            image: [B, H, W, 3] in 0 to 1, float; the batch goes through the networks together.
            extent: final size; the padding to ``pad_multiple`` must be narrower than each edge.
            guidance: classifier-free guidance weight; None takes the model's own.

        Raises:
            OptionError: guidance is asked of a model without a negative prompt.
        """
        planes = image.to(self.device, torch.float32).permute(0, 3, 1, 2)
        size = (extent.height, extent.width)
        pixels = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True).clamp(0.0, 1.0)
        padding = padding_to_multiple(extent, pad_multiple(self.spec))
        sides = (padding.left, padding.right, padding.top, padding.bottom)
        pixels = F.pad(pixels * 2.0 - 1.0, sides, mode="reflect")

        latent = self.encode(pixels) * self.spec.input_scaling
        # In float32 as diffusers' schedulers do: bfloat16 would round the skip.
        restored = self.spec.c_out * self.predict(latent, guidance)
        if self.spec.c_skip != 0.0:
            restored = restored + self.spec.c_skip * latent
        pixels = self.decode(restored / self.spec.output_scaling)

        rows = slice(padding.top, padding.top + extent.height)
        columns = slice(padding.left, padding.left + extent.width)
        restored_image = (pixels[:, :, rows, columns] / 2.0 + 0.5).clamp(0.0, 1.0)
        return restored_image.permute(0, 2, 3, 1).contiguous().cpu()

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the unscaled latent [B, C, h, w], float32, of ``pixels`` [B, 3, H, W] in -1 to 1."""
        if self.vae is None or self.spec.front == "pixel_unshuffle8":
            return F.pixel_unshuffle(pixels, SPATIAL_FACTOR)
        output = cast("AutoencoderKLOutput", self.vae.encode(pixels.to(self.vae.dtype)))
        return cast("Tensor", output.latent_dist.mode()).float()

    def predict(self, latent: Tensor, guidance: float | None) -> Tensor:
        """Return the network's guided prediction [B, out_channels, h, w], float32, for a scaled ``latent``.

        Raises:
            OptionError: guidance is asked of a model without a negative prompt.
        """
        weight = self.spec.guidance if guidance is None else guidance
        inputs, prompts = latent, [self.positive]
        if weight != 1.0:
            if self.negative is None:
                raise OptionError(f"expected a negative prompt for guidance {weight}, got none: set guidance to 1")
            inputs, prompts = torch.cat([latent, latent]), [self.negative, self.positive]
        embeddings = torch.stack(prompts).repeat_interleave(latent.shape[0], dim=0)
        output = self.unet(
            inputs.to(self.unet.dtype),
            self.spec.timestep,
            encoder_hidden_states=embeddings.to(self.device, self.unet.dtype),
            return_dict=False,
        )
        prediction = cast("Tensor", output[0]).float()
        if weight == 1.0:
            return prediction
        unguided, guided = prediction.chunk(2)
        return unguided + weight * (guided - unguided)

    def decode(self, latent: Tensor) -> Tensor:
        """Return pixels [B, 3, H, W], nominally in -1 to 1, float32, of an unscaled ``latent`` [B, C, h, w]."""
        if self.vae is None or self.spec.back == "pixel_shuffle8":
            return F.pixel_shuffle(latent, SPATIAL_FACTOR)
        output = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)
        return cast("Tensor", output[0]).float()


def diffusers_unet(arch: UNetArch) -> UNet2DConditionModel:
    """Return diffusers' UNet of this shape on the meta device, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            in_channels=arch.in_channels,
            out_channels=arch.out_channels,
            down_block_types=tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in arch.attention_levels),
            up_block_types=tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(arch.attention_levels)),
            block_out_channels=arch.block_out_channels,
            layers_per_block=arch.layers_per_block,
            # Misnamed in diffusers: this is the number of heads.
            attention_head_dim=tuple(width // arch.head_dim for width in arch.block_out_channels),
            cross_attention_dim=arch.cross_attention_dim,
            norm_num_groups=arch.norm_groups,
            use_linear_projection=True,
        )


def diffusers_vae(spec: VAESpec) -> AutoencoderKL:
    """Return diffusers' KL VAE of this shape on the meta device, without weights.

    Raises:
        OptionError: it has no middle block, which diffusers' always has.
    """
    arch = spec.arch
    if not arch.mid_block:
        raise OptionError("expected a VAE with a middle block, got one without: diffusers has no such class")
    num_levels = len(arch.block_out_channels)
    with torch.device("meta"):
        return AutoencoderKL(
            in_channels=arch.in_channels,
            out_channels=arch.out_channels,
            down_block_types=("DownEncoderBlock2D",) * num_levels,
            up_block_types=("UpDecoderBlock2D",) * num_levels,
            block_out_channels=arch.block_out_channels,
            layers_per_block=arch.layers_per_block,
            latent_channels=arch.latent_channels,
            norm_num_groups=arch.norm_groups,
            scaling_factor=spec.latent_scaling,
            use_quant_conv=arch.quant_conv,
            use_post_quant_conv=arch.quant_conv,
            mid_block_add_attention=arch.mid_attention,
        )


def _share_weights(source: nn.Module, target: nn.Module) -> None:
    """Make the parameters of ``target`` those of ``source``, for inference."""
    target.load_state_dict(source.state_dict(), assign=True)
    target.requires_grad_(False).train(False)
