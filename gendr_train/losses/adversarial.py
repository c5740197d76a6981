"""The two sides of the adversarial game, in its non-saturating form.

Role: called by ``stages`` on the logits of ``adversary``; a positive logit says "real". Each function takes
[B, ...] logits, computes in float32 and returns the mean over all but B. Which networks gradients reach is the
caller's choice, by ``adversary.frozen`` and by detaching images.
"""

import torch.nn.functional as F
from torch import Tensor


# softplus(-D(y))   (arXiv:1406.2661, section 3)
def fool(logits: Tensor) -> Tensor:
    """Return the generator's loss on the logits of its own images, [B], above 0; it falls as they look real."""
    return F.softplus(-logits.float()).flatten(1).mean(1)


# softplus(-D(x))   (arXiv:1406.2661, eq. 1: -ln sigmoid(D))
def tell_real(logits: Tensor) -> Tensor:
    """Return the adversary's loss on the logits of real images, [B], above 0."""
    return F.softplus(-logits.float()).flatten(1).mean(1)


# softplus(D(y))   (arXiv:1406.2661, eq. 1: -ln(1 - sigmoid(D)))
def tell_fake(logits: Tensor) -> Tensor:
    """Return the adversary's loss on the logits of the generator's images, [B], above 0."""
    return F.softplus(logits.float()).flatten(1).mean(1)
