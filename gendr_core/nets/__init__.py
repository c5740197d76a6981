"""The two networks, written once for any width and depth, with diffusers' parameter names.

Role: built by ``model`` from the architectures in ``spec``; they know nothing of files, tiles or hosts.
"""

from .frame import WholeFrame
from .layers import TORCH_OPERATIONS, Operations
from .unet import UNet
from .vae import VAE

__all__ = ["TORCH_OPERATIONS", "VAE", "Operations", "UNet", "WholeFrame"]
