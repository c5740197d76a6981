"""Weights from public hubs: which there are, where they belong, and how they get there whole.

Role: beside ``checkpoint``, used by the command line only; nodes never download. ``catalog`` lists models, ``folders``
knows ComfyUI's, ``fetch`` brings one file, ``transfer`` alone talks to a hub, ``integrity`` compares checksums.
"""

from .catalog import License, Model, RemoteFile, Source, find_model, load_catalog
from .fetch import Fetched, check_space, choose_offer, fetch_file, find_present
from .folders import ModelFolders, comfyui_around, comfyui_folders, plain_folder
from .integrity import Digest, digest_of, fits
from .transfer import DEFAULT_ENDPOINT, Hub, Offer

__all__ = [
    "DEFAULT_ENDPOINT",
    "Digest",
    "Fetched",
    "Hub",
    "License",
    "Model",
    "ModelFolders",
    "Offer",
    "RemoteFile",
    "Source",
    "check_space",
    "choose_offer",
    "comfyui_around",
    "comfyui_folders",
    "digest_of",
    "fetch_file",
    "find_model",
    "find_present",
    "fits",
    "load_catalog",
    "plain_folder",
]
