"""ComfyUI's side of the core's host protocols, and its model folders: with ``operations`` all that imports its code.

Role: between the nodes and ``gendr_core``. Networks are built of the host's layer classes, live under its ModelPatcher
and are moved by it alone, so that it can load them in part, offload and free them. The patcher belongs to what the
loader returned: nothing here keeps a model alive.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch

from ..gendr_core.checkpoint import SUFFIXES, UNetCheckpoint, inspect
from ..gendr_core.config import WeightFormat
from ..gendr_core.errors import CheckpointError, OptionError
from ..gendr_core.float8 import FLOAT8
from ..gendr_core.geometry import Extent
from ..gendr_core.host import Host, Meter
from ..gendr_core.model import GenDRUNet, GenDRVAE, bundled_weights, load_unet, load_vae
from ..gendr_core.plan import StagePlan, band_sizes
from ..gendr_core.sketch import decode_cost, encode_cost, vae_kind
from ..gendr_core.spec import UNET_FOLDS, VAE_FOLDS, Fold, ModelSpec, UNetArch
from ..gendr_core.windows import BandedFrame
from .operations import HostOperations
from .preview import MAX_EDGE, Display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfy.model_patcher import ModelPatcher
    from PIL.Image import Image

UNET_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
VAE_DTYPES = (torch.bfloat16, torch.float32)
"""What the networks run well in, the preferred one first; this family of VAEs overflows float16."""


HostedVAE: TypeAlias = comfy.sd.VAE
"""What a VAE socket carries: the host's own class, ours or another's network inside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostedUNet:
    """What a GENDR_MODEL socket carries: a restoration UNet and the host's handle on its memory."""

    unet: GenDRUNet
    patcher: "ModelPatcher"


def weight_files(folder: str) -> list[str]:
    """Return the file names to choose from: the host's and, after them, the bundled ones of that kind.

    Args:
        folder: ``diffusion_models`` or ``vae``.
    """
    own = [name for name in folder_paths.get_filename_list(folder) if name.endswith(SUFFIXES)]
    bundled = [name for name in bundled_weights() if ("vae" in name) == (folder == "vae")]
    return own + [name for name in bundled if name not in own]


def weight_path(folder: str, name: str) -> Path:
    """Return the file of that name: the host's if it has one, else the bundled one.

    Raises:
        CheckpointError: there is neither.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is not None:
        return Path(path)
    if name not in bundled_weights():
        raise CheckpointError(
            f"expected a file {name!r} in models/{folder}, found none: choose another or put it there"
        )
    return bundled_weights()[name]


def file_stamp(folder: str, name: str) -> str:
    """Return a text that changes when the file is replaced."""
    status = weight_path(folder, name).stat()
    return f"{status.st_mtime_ns} {status.st_size}"


def load_hosted_unet(name: str, weights: WeightFormat = "dtype") -> HostedUNet:
    """Return the UNet of a file from ``weight_files``, in the dtypes that the host prefers for its device.

    Raises:
        CheckpointError: the file cannot be used.
        OptionError: the device has no weights in 8 bits.
    """
    path = weight_path("diffusion_models", name)
    device = comfy.model_management.get_torch_device()
    dtypes = list(UNET_DTYPES)
    stored = comfy.model_management.unet_dtype(device, inspect(path).num_parameters, dtypes)
    # Some devices keep weights in a dtype that they cannot compute in; the layers then cast as they go.
    computed = comfy.model_management.unet_manual_cast(stored, device, dtypes) or stored
    layers = comfy.ops.disable_weight_init if computed == stored else comfy.ops.manual_cast
    folds = (*UNET_FOLDS, *_asked(weights, device))
    unet = replace(load_unet(path, dtype=stored, operations=HostOperations(layers), folds=folds), dtype=computed)
    return HostedUNet(unet=unet, patcher=_patcher(unet.network, device, comfy.model_management.unet_offload_device()))


def host_diffusion_model(checkpoint: UNetCheckpoint, ldm_shape: dict[str, object]) -> "ModelPatcher":
    """Return a UNet as a model of the host's own, for its samplers, with the file's prediction and latent scaling.

    Args:
        checkpoint: of the shape of SD2.1 but for its channels; its prompts are left out.
        ldm_shape: that shape in the words of ``comfy.utils.unet_to_diffusers``.
    """
    spec, names = checkpoint.spec, comfy.utils.unet_to_diffusers(ldm_shape)
    state = {names[name]: weight for name, weight in checkpoint.state.items()}
    patcher = comfy.sd.load_diffusion_model_state_dict(state)
    model, latents = patcher.model, comfy.latent_formats.LatentFormat()
    latents.scale_factor, latents.latent_channels = spec.latent_scaling, spec.arch.in_channels
    # The host takes any SD2 UNet of more than 4 channels for an inpainting model of 4-channel latents.
    model.latent_format, model.concat_keys = latents, ()
    kinds = comfy.model_base.ModelType
    model.model_type = kinds.EPS if spec.prediction == "epsilon" else kinds.V_PREDICTION
    model.model_sampling = comfy.model_base.model_sampling(model.model_config, model.model_type)
    return patcher


def load_hosted_vae(name: str, weights: WeightFormat = "dtype") -> HostedVAE:
    """Return the host's own VAE object around our VAE, from a file of ``weight_files``.

    The host's constructor knows no VAE of these widths, so it gets a throwaway network of the same family, which sets
    ratios, value ranges and devices; then ours takes its place.

    Raises:
        CheckpointError: the file cannot be used.
        OptionError: the device has no weights in 8 bits.
    """
    device = comfy.model_management.vae_device()
    dtype = comfy.model_management.vae_dtype(device, list(VAE_DTYPES))
    operations = HostOperations(comfy.ops.disable_weight_init)
    folds = (*VAE_FOLDS, *_asked(weights, device))
    ours = load_vae(weight_path("vae", name), dtype=dtype, operations=operations, folds=folds)
    vae = _empty_vae(device, dtype)
    vae.first_stage_model = ours.network
    vae.patcher = _patcher(ours.network, device, comfy.model_management.vae_offload_device())
    vae.latent_channels = ours.spec.arch.latent_channels
    # The constructor takes every network of this family for one with 8 pixels per cell.
    vae.downscale_ratio = vae.upscale_ratio = ours.spec.arch.spatial_factor
    # Later hosts measure the network once; this makes them measure ours.
    vae.size = None
    _run_in_bands(vae, ours, device.type)
    vae.gendr = ours
    return vae


def _asked(weights: WeightFormat, device: torch.device) -> "tuple[Fold, ...]":
    """Return the fold that keeps weights as is asked, of networks that will run on ``device``."""
    if weights == "dtype":
        return ()
    if not comfy.model_management.supports_cast(device, FLOAT8):
        raise OptionError(f"expected a device with float8 for weights in 8 bits, got {device.type}: choose dtype")
    return ("fp8",)


def _run_in_bands(vae: HostedVAE, ours: GenDRVAE, device_type: str) -> None:
    """Have the host's own nodes run our network as our stages do, and free as much memory for it as that takes."""
    way = StagePlan(bands=band_sizes(device_type)[0])
    meter = Meter(Host(interrupt=_Interrupt()))
    ours.network.run = BandedFrame(way.bands, ours.network.operations, meter=meter)
    channels, cell_px = ours.spec.arch.latent_channels, ours.spec.arch.spatial_factor
    unet = ModelSpec(arch=UNetArch(in_channels=channels, out_channels=channels), cell_px=cell_px)
    kind = vae_kind(ours)

    def encode_bytes(shape: "Sequence[int]", _dtype: torch.dtype) -> int:
        """Return the peak for one of the images [B, C, H, W]."""
        # Cut off to whole cells by the host before they are encoded.
        height, width = (max(cell_px, edge // cell_px * cell_px) for edge in shape[-2:])
        return encode_cost(unet, kind, Extent(height, width), way, device_type).peak_bytes

    def decode_bytes(shape: "Sequence[int]", _dtype: torch.dtype) -> int:
        """Return the peak for one of the latents [B, C, h, w]."""
        height, width = (cell_px * edge for edge in shape[-2:])
        return decode_cost(unet, kind, Extent(height, width), way, device_type).peak_bytes

    vae.memory_used_encode, vae.memory_used_decode = encode_bytes, decode_bytes


def gendr_vae(vae: HostedVAE | None) -> GenDRVAE | None:
    """Return our side of a VAE that ``load_hosted_vae`` made; None stays None.

    Raises:
        OptionError: it is another VAE.
    """
    if vae is None:
        return None
    ours = getattr(vae, "gendr", None)
    if ours is None:
        raise OptionError(
            f"expected a VAE from Load GenDR VAE16, got another one ({vae.latent_channels} latent channels):"
            " connect Load GenDR VAE16, or nothing if the model works on pixels"
        )
    return ours


def host_for(model: HostedUNet | None = None, vae: HostedVAE | None = None) -> Host:
    """Return the services for one run of one node, which may use these networks."""
    patchers = [owner.patcher for owner in (model, vae) if owner is not None]
    display = Display(_ProgressBar())
    return Host(progress=display, preview=display, interrupt=_Interrupt(), residency=_Residency(patchers))


class _ProgressBar:
    """The progress bar of the running node, and the picture on it."""

    def __init__(self) -> None:
        self._bar: comfy.utils.ProgressBar | None = None

    def __call__(self, done: int, total: int, picture: "Image | None") -> None:
        """Show them; raises the host's own exception where the user has asked to stop."""
        bar = self._bar = self._bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(done, total, None if picture is None else ("JPEG", picture, MAX_EDGE))


class _Interrupt:
    """The cancel button."""

    def check(self) -> None:
        """Raise the host's own exception if it was pressed."""
        comfy.model_management.throw_exception_if_processing_interrupted()


class _Residency:
    """The host's memory management."""

    def __init__(self, patchers: "Sequence[ModelPatcher]") -> None:
        self._patchers = patchers

    def acquire(self, network: torch.nn.Module, activation_bytes: int) -> torch.device:
        """Have the host load what fits of the network, beside ``activation_bytes``, and return where it runs."""
        patcher = self._patcher_of(network)
        comfy.model_management.load_models_gpu([patcher], memory_required=activation_bytes)
        return patcher.load_device

    def device_of(self, network: torch.nn.Module) -> torch.device:
        """Return where the host runs the network."""
        return self._patcher_of(network).load_device

    def resident_bytes(self, network: torch.nn.Module, others: "Sequence[torch.nn.Module]") -> int:
        """Return the bytes of the network: the host unloads the others for it, unless they live on the processor."""
        resident = [network, *others] if self.device_of(network).type == "cpu" else [network]
        # Asked of the patchers, who remember it: counting hundreds of tensors for every stage shows in short runs.
        return sum(self._patcher_of(network).model_size() for network in resident)

    def room_bytes(self, network: torch.nn.Module) -> int | None:
        """Return what ``acquire`` can make free for activations by unloading everything else; None on a processor."""
        device, management = self.device_of(network), comfy.model_management
        if device.type == "cpu":
            return None
        loaded = [x for x in management.current_loaded_models if x.device == device and x.model is not None]
        available = management.get_free_memory(device) + sum(x.model_loaded_memory() for x in loaded)
        reserve = management.extra_reserved_memory()
        # The host keeps its minimum for activations in any case: weights that do not fit beside that are streamed.
        least = min(available, management.minimum_inference_memory()) - reserve
        return int(max(available - self._patcher_of(network).model_size() - reserve, least))

    def _patcher_of(self, network: torch.nn.Module) -> "ModelPatcher":
        return next(patcher for patcher in self._patchers if patcher.model is network)


def _patcher(network: torch.nn.Module, device: torch.device, offload_device: torch.device) -> "ModelPatcher":
    """Return the host's handle on ``network``, which holds its weights on the CPU in their final dtype."""
    if hasattr(comfy.model_management, "archive_model_dtypes"):  # Hosts that stream weights ask for this first.
        comfy.model_management.archive_model_dtypes(network)
    # Looked up when called: such hosts choose the class as they start.
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher_class(network, load_device=device, offload_device=offload_device)


def _empty_vae(device: torch.device, dtype: torch.dtype) -> HostedVAE:
    """Return a VAE object with 8 pixels per latent cell around the smallest network that its constructor takes."""
    ddconfig: dict[str, object] = {"double_z": True, "z_channels": 4, "resolution": 8, "in_channels": 3, "out_ch": 3}
    ddconfig |= {"ch": 32, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": ddconfig, "embed_dim": 4}
    # With its own weights the constructor finds nothing missing and logs nothing.
    weights = comfy.ldm.models.autoencoder.AutoencoderKL(**params).state_dict()
    return HostedVAE(sd=weights, device=device, config={"params": params}, dtype=dtype)
