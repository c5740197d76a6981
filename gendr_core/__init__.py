"""GenDR: image restoration in one diffusion step. ``restore(image, load_unet())`` is all it takes.

Role: the public interface; everything else may change between versions.
"""

from .checkpoint import SpecOverrides
from .config import RestoreOptions
from .errors import GenDRError
from .finish import Guides
from .model import GenDRUNet, GenDRVAE, bundled_weights, load_unet, load_vae
from .pipeline import restore
from .spec import ModelSpec, VAESpec

__all__ = [
    "GenDRError",
    "GenDRUNet",
    "GenDRVAE",
    "Guides",
    "ModelSpec",
    "RestoreOptions",
    "SpecOverrides",
    "VAESpec",
    "bundled_weights",
    "load_unet",
    "load_vae",
    "restore",
]
