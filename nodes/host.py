"""ComfyUI's side of the core's host protocols, and its model folders: the only file that imports the host's own code.

Role: between the nodes and ``gendr_core``. Networks are built of the host's layer classes, live under its ModelPatcher
and are moved by it alone, so that it can load them in part, offload and free them. The patcher belongs to what the
loader returned: nothing here keeps a model alive.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch

from ..gendr_core.checkpoint import SUFFIXES, inspect
from ..gendr_core.errors import CheckpointError, OptionError
from ..gendr_core.host import Host
from ..gendr_core.model import GenDRUNet, GenDRVAE, bundled_weights, load_unet, load_vae

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfy.model_patcher import ModelPatcher

UNET_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
VAE_DTYPES = (torch.bfloat16, torch.float32)
"""What the networks run well in, the preferred one first; this family of VAEs overflows float16."""

CORE_VAE_WIDTH = 128
"""Channels at full resolution of the VAEs that the host's memory estimates were made for."""


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


def file_stamp(folder: str, name: str) -> str:
    """Return a text that changes when the file is replaced."""
    status = _weight_path(folder, name).stat()
    return f"{status.st_mtime_ns} {status.st_size}"


def load_hosted_unet(name: str) -> HostedUNet:
    """Return the UNet of a file from ``weight_files``, in the dtypes that the host prefers for its device.

    Raises:
        CheckpointError: the file cannot be used.
    """
    path = _weight_path("diffusion_models", name)
    device = comfy.model_management.get_torch_device()
    dtypes = list(UNET_DTYPES)
    stored = comfy.model_management.unet_dtype(device, inspect(path).num_parameters, dtypes)
    # Some devices keep weights in a dtype that they cannot compute in; the layers then cast as they go.
    computed = comfy.model_management.unet_manual_cast(stored, device, dtypes) or stored
    operations = comfy.ops.disable_weight_init if computed == stored else comfy.ops.manual_cast
    unet = replace(load_unet(path, dtype=stored, operations=operations), dtype=computed)
    return HostedUNet(unet=unet, patcher=_patcher(unet.network, device, comfy.model_management.unet_offload_device()))


def load_hosted_vae(name: str) -> HostedVAE:
    """Return the host's own VAE object around our VAE, from a file of ``weight_files``.

    The host's constructor knows no VAE of these widths, so it gets a throwaway network of the same family, which sets
    ratios, value ranges and devices; then ours takes its place.

    Raises:
        CheckpointError: the file cannot be used.
    """
    device = comfy.model_management.vae_device()
    dtype = comfy.model_management.vae_dtype(device, list(VAE_DTYPES))
    ours = load_vae(_weight_path("vae", name), dtype=dtype, operations=comfy.ops.disable_weight_init)
    vae = _empty_vae(device, dtype)
    vae.first_stage_model = ours.network
    vae.patcher = _patcher(ours.network, device, comfy.model_management.vae_offload_device())
    vae.latent_channels = ours.spec.arch.latent_channels
    # Later hosts measure the network once; this makes them measure ours.
    vae.size = None
    encode_bytes, decode_bytes = vae.memory_used_encode, vae.memory_used_decode
    share = ours.spec.arch.block_out_channels[0] / CORE_VAE_WIDTH
    vae.memory_used_encode = lambda shape, dtype: share * encode_bytes(shape, dtype)
    vae.memory_used_decode = lambda shape, dtype: share * decode_bytes(shape, dtype)
    vae.gendr = ours
    return vae


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
    return Host(progress=_Progress(), interrupt=_Interrupt(), residency=_Residency(patchers))


class _Progress:
    """The progress bar of the running node."""

    def __init__(self) -> None:
        self._bar: comfy.utils.ProgressBar | None = None

    def update(self, done: int, total: int) -> None:
        """Show it; raises the host's own exception where the user has asked to stop."""
        bar = self._bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(done, total)
        self._bar = bar


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
        patcher = next(patcher for patcher in self._patchers if patcher.model is network)
        comfy.model_management.load_models_gpu([patcher], memory_required=activation_bytes)
        return patcher.load_device


def _weight_path(folder: str, name: str) -> Path:
    """Return the file of that name: the host's if it has one, else the bundled one."""
    path = folder_paths.get_full_path(folder, name)
    if path is not None:
        return Path(path)
    if name not in bundled_weights():
        raise CheckpointError(
            f"expected a file {name!r} in models/{folder}, found none: choose another or put it there"
        )
    return bundled_weights()[name]


def _patcher(network: torch.nn.Module, device: torch.device, offload_device: torch.device) -> "ModelPatcher":
    """Return the host's handle on ``network``, which holds its weights on the CPU in their final dtype."""
    if hasattr(comfy.model_management, "archive_model_dtypes"):  # Hosts that stream weights ask for this first.
        comfy.model_management.archive_model_dtypes(network)
    # Looked up when called: such hosts choose the class as they start.
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher_class(network, load_device=device, offload_device=offload_device)


def _empty_vae(device: torch.device, dtype: torch.dtype) -> HostedVAE:
    """Return a VAE object with 8 pixels per latent cell around the smallest network that its constructor takes."""
    ddconfig = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": ddconfig, "embed_dim": 4}
    # With its own weights the constructor finds nothing missing and logs nothing.
    weights = comfy.ldm.models.autoencoder.AutoencoderKL(**params).state_dict()
    return HostedVAE(sd=weights, device=device, config={"params": params}, dtype=dtype)
