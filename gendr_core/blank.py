"""Networks without weights, in the form that a file's weights have: plain ones, or with some folds.

Role: below ``checkpoint``, which compares files with them, and ``model``, which fills them.
"""

from collections.abc import Collection

from .cost import measure
from .nets import TORCH_OPERATIONS, VAE, Operations, UNet
from .spec import UNET_FOLDS, VAE_FOLDS, Fold, ModelSpec, VAESpec
from .specialise import check_order, specialise_unet, specialise_vae


def blank_unet(spec: ModelSpec, folds: Collection[Fold] = (), operations: Operations = TORCH_OPERATIONS) -> UNet:
    """Return a UNet on the meta device, for weights that have ``folds``.

    Raises:
        CheckpointError: a fold that is left cannot follow those.
    """
    check_order(UNET_FOLDS, folds)
    network = UNet(spec.arch, operations=operations, device="meta")
    # Measured for the sake of what it does not run: torch's kernels for tensors without memory, slow to import.
    measure(lambda: specialise_unet(network, spec, folds))
    return network


def blank_vae(spec: VAESpec, folds: Collection[Fold] = (), operations: Operations = TORCH_OPERATIONS) -> VAE:
    """Return a VAE on the meta device, for weights that have ``folds``.

    Raises:
        CheckpointError: a fold that is left cannot follow those.
    """
    check_order(VAE_FOLDS, folds)
    network = VAE(spec.arch, operations=operations, device="meta")
    measure(lambda: specialise_vae(network, folds))
    return network
