"""Stage cida: a diffusion model becomes a one-step restorer by consistent score identity distillation and an adversary.

Role: takes the file of stage ``base``, gives the file that ``gendr restore`` runs; ``adc`` and ``pix`` start from it.
Four roles share one frozen UNet, each with an adapter of its own: the generator, the real score (which learns how
originals are distributed), the fake score (how the generator's latents are) and the discriminator. All of them make
their step in the same update.

Symbols: z_l, z_h = scaled latents of the enlarged damaged image and of the original; z_g = c_skip z_l + c_out G(z_l);
z_t = sqrt(ab) z + sqrt(1 - ab) eps; f, c, g = z_0 by the real score, by the real score with guidance, by the fake one.

What is known (docs/algorithm.md, A5; arXiv:2503.06790). Stated: L = lambda1 L_cid + lambda2 L_adv + lambda3 L_repa;
L_cid = L3 - xi L1, of which L3 is guided and compares with z_h; the real score learns from z_h; the discriminator is
the UNet with a head on its features; rank 64, alpha 128, one base for all. Read in public code of SiD: both scores see
one z_t, gradients pass through their inputs, the fake score's squared error weighs snr / (snr + 1) where v is
predicted, timesteps are uniform. Inferred: the products in L_cid, softplus in L_adv, that z_t is made of z_g, and that
the discriminator sees z_t too, at timesteps of the same range. Unknown, and so settings or constants: lambda1 to 3,
xi, kappa, timesteps, rates, how often the real score is trained without its prompt.

Choices of ours: one update of each role per batch, where SiD's code alternates; the guided c takes the place of f in
VSD and SiD too, as in OSEDiff and SiD-LSG, while the fake score stays unguided, having seen one prompt only; the fixed
positive prompt stands in for captions; posterior modes instead of samples, so that the exported file sees what
training saw. Guidance of the generator itself (one_step.guidance) is applied to results, never in training.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from gendr_core.checkpoint import UNetCheckpoint, read_unet, write_unet
from gendr_core.nets import UNet

from ..adversary import FeatureHead, frozen
from ..data.dataset import Batch
from ..diffusion import add_noise, snr, to_clean, training_target
from ..errors import TrainingError
from ..frames import TrainingFrame, first_level, middle
from ..lora import acting, adapter_parameters, add_adapters, merged_state, without_adapters
from ..losses import adversarial, reconstruction
from ..losses.consistency import cid
from ..losses.score_identity import denoising, sid, vsd
from ..rng import Draws
from ..schema import ExportConfig
from ..settings import CidaSettings
from .align import Alignment
from .networks import FrozenVAE, half, placed, unet_spec
from .stage import Losses, Pair, Role, Stage, to_pair

PROMPT_DROPOUT = 0.1
"""How often the real score learns under the negative prompt [?]; 0.1 or 0.2 in arXiv:2207.12598, section 4."""


class CidaStage(Stage):
    """Four adapters of one UNet, and the heads of two of them."""

    positive: Tensor
    negative: Tensor | None

    def __init__(self, settings: CidaSettings, *, checkpointing: bool = False) -> None:
        """Read the base, and start every adapter as the base; heads and adapters draw from torch's global generator.

        A loss without weight is left out, and so are the roles that only serve it. With ``real_rate`` 0 the real score
        is the base itself, which is what VSD and SiD mean.

        Args:
            settings: of the stage.
            checkpointing: compute the inside of blocks twice to save memory.

        Raises:
            CheckpointError: the base or the VAE is not usable.
            TrainingError: the base predicts something else or lacks the negative prompt that guidance needs, or a
                package is missing.
        """
        super().__init__()
        self._settings = settings
        self._checkpointing = checkpointing
        self._vae = FrozenVAE.load(settings.vae)
        base = read_unet(settings.base)
        _check_base(settings, base)
        self._arch = base.spec.arch
        self.unet = placed(UNet(self._arch))
        self.unet.load_state_dict({name: value.float() for name, value in base.state.items()})
        self.register_buffer("positive", base.positive.float(), persistent=False)
        self.register_buffer("negative", None if base.negative is None else base.negative.float(), persistent=False)
        self.weights = _weights(settings)
        self._rates = _rates(settings)
        add_adapters(self.unet, list(self._rates), settings.lora, encoders=("discriminator",))
        self.head = FeatureHead(self._arch.block_out_channels[-1]) if settings.adversary_weight else None
        self.alignment = None
        if settings.alignment is not None and settings.alignment.weight:
            self.alignment = Alignment(settings.alignment, self._arch.block_out_channels[0])

    def roles(self) -> dict[str, Role]:
        """Return the adapters with their heads: generator, and as the weights ask, real, fake and discriminator."""
        heads = {"generator": self.alignment, "discriminator": self.head}
        roles: dict[str, Role] = {}
        for name, rate in self._rates.items():
            head = heads.get(name)
            parameters = adapter_parameters(self.unet, name) + ([] if head is None else list(head.parameters()))
            roles[name] = Role(parameters=parameters, rate=rate)
        return roles

    def forward(self, batch: Batch, draws: Draws, images: int) -> Losses:
        """Return the losses of all roles.

        Drawn in this order, each as far as it has a loss: timestep and noise of the distillation, of the fake score,
        of the real score and its prompt, of the discriminator.
        """
        del images
        pair = to_pair(batch)
        damaged, original = self._vae.encode(pair.upsampled), self._vae.encode(pair.original)
        restored, features = self._one_step(damaged, self.positive)
        losses: Losses = {}
        if "generator/distillation" in self.weights:
            losses["generator/distillation"] = self._distillation(restored, original, draws)
            prompts = self.positive.expand(restored.shape[0], -1, -1)
            losses["fake/denoising"] = self._denoising("fake", restored.detach(), prompts, draws)
        if "real/denoising" in self.weights:
            losses["real/denoising"] = self._denoising("real", original, None, draws)
        if self.head is not None:
            losses |= self._adversary(restored, original, draws, self.head)
        if self.alignment is not None:
            losses["generator/alignment"] = self.alignment.loss(features, pair.original)
        if "generator/latent" in self.weights:
            losses["generator/latent"] = reconstruction.l1(restored, original)
        return losses

    @torch.no_grad()
    def restored(self, pair: Pair) -> Tensor:
        """Return the restored images, with the guidance of the file to be exported."""
        damaged = self._vae.encode(pair.upsampled)
        result, _ = self._one_step(damaged, self.positive)
        guidance = self._settings.one_step.guidance
        if guidance != 1.0 and self.negative is not None:
            unguided, _ = self._one_step(damaged, self.negative)
            result = unguided + guidance * (result - unguided)
        return self._vae.decode(result).float().clamp(-1.0, 1.0)

    def export(self, path: Path, about: ExportConfig) -> None:
        """Write the UNet file: the base with the generator's adapter in its weights.

        Raises:
            CheckpointError: the spec is not usable.
        """
        one_step = self._settings.one_step
        spec = unet_spec(
            self._arch,
            one_step,
            about,
            in_pixels=(False, False),
            latent_scaling=self._vae.latent_scaling,
            prediction=self._settings.prediction,
        )
        state = {name: half(value) for name, value in merged_state(self.unet, "generator").items()}
        negative = None if self.negative is None or one_step.guidance == 1.0 else half(self.negative)
        write_unet(path, spec, state, half(self.positive), negative)

    # z_g = c_skip z_l + c_out G(z_l, t*, c)   (docs/algorithm.md, A2)
    def _one_step(self, damaged: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Return the restored latent and the generator's features after its first level."""
        step = self._settings.one_step
        with acting(self.unet, "generator", trains=True) as again:
            taps = {first_level(self.unet): "first"}
            run = TrainingFrame(checkpointing=self._checkpointing, taps=taps, again=again)
            predicted = self.unet(damaged, step.timestep, prompt.expand(damaged.shape[0], -1, -1), run=run)
        return step.c_skip * damaged + step.c_out * predicted.float(), run.tapped["first"]

    def _distillation(self, restored: Tensor, original: Tensor, draws: Draws) -> Tensor:
        settings = self._settings
        timestep, noise = self._noise(restored, draws)
        noised = add_noise(restored, noise, timestep)
        with torch.no_grad() if settings.distillation == "vsd" else nullcontext():
            real = guided = self._clean("real", noised, timestep, self.positive)
            if settings.guidance != 1.0 and self.negative is not None:
                # Of z_0 or of the prediction is the same: one is linear in the other.
                unguided = self._clean("real", noised, timestep, self.negative)
                guided = unguided + settings.guidance * (real - unguided)
            fake = self._clean("fake", noised, timestep, self.positive)
        if settings.distillation == "vsd":
            return vsd(restored, guided, fake)
        if settings.distillation == "sid":
            return sid(restored, guided, fake, alpha=settings.xi)
        return cid(original, real, guided, fake, xi=settings.xi)

    def _denoising(self, role: str, clean: Tensor, prompts: Tensor | None, draws: Draws) -> Tensor:
        """Return the loss of a score that learns from ``clean``; without prompts, some of them are the negative one."""
        timestep, noise = self._noise(clean, draws)
        prompts = self._dropped(clean.shape[0], draws) if prompts is None else prompts
        prediction = self._settings.prediction
        predicted = self._predict(role, add_noise(clean, noise, timestep), timestep, prompts, trains=True)
        ratio = snr(timestep)
        # An error of v is sqrt((snr + 1) / snr) of the same error of eps.
        weight = None if prediction == "epsilon" else ratio / (ratio + 1.0)
        return denoising(predicted, training_target(clean, noise, timestep, prediction), weight)

    def _dropped(self, images: int, draws: Draws) -> Tensor:
        """Return the positive prompt, in place of which guidance needs the negative one now and then."""
        if self.negative is None or self._settings.guidance == 1.0:
            return self.positive.expand(images, -1, -1)
        dropped = draws.uniform(0.0, 1.0) < PROMPT_DROPOUT
        return torch.where(dropped[:, None, None], self.negative, self.positive)

    def _adversary(self, restored: Tensor, original: Tensor, draws: Draws, head: FeatureHead) -> Losses:
        """Return the losses of both sides; real and restored latents get the same noise."""
        timestep, noise = self._noise(restored, draws)
        made, real = (add_noise(latent, noise, timestep) for latent in (restored, original))
        with frozen(head):
            pulled = head(self._middle(made, timestep, trains=False))
        both = self._middle(torch.cat([real, made.detach()]), torch.cat([timestep, timestep]), trains=True)
        told_real, told_made = head(both).chunk(2)
        return {
            "generator/adversarial": adversarial.fool(pulled),
            "discriminator/real": adversarial.tell_real(told_real),
            "discriminator/fake": adversarial.tell_fake(told_made),
        }

    def _middle(self, noised: Tensor, timestep: Tensor, *, trains: bool) -> Tensor:
        """Return the discriminator's features at the coarsest level."""
        with acting(self.unet, "discriminator", trains=trains) as again:
            taps = {middle(self.unet): "middle"}
            run = TrainingFrame(checkpointing=self._checkpointing, taps=taps, taps_only=True, again=again)
            self.unet(noised, timestep, self.positive.expand(noised.shape[0], -1, -1), run=run)
        return run.tapped["middle"]

    def _clean(self, role: str, noised: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        """Return the z_0 that a score sees in z_t; gradients pass to z_t and not to the score."""
        prompts = prompt.expand(noised.shape[0], -1, -1)
        predicted = self._predict(role, noised, timestep, prompts, trains=False)
        return to_clean(noised, predicted, timestep, self._settings.prediction)

    def _predict(self, role: str, noised: Tensor, timestep: Tensor, prompts: Tensor, *, trains: bool) -> Tensor:
        acts = acting(self.unet, role, trains=trains) if role in self._rates else without_adapters(self.unet)
        with acts as again:
            run = TrainingFrame(checkpointing=self._checkpointing, again=again)
            return self.unet(noised, timestep, prompts, run=run)

    def _noise(self, latent: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        first, last = self._settings.steps
        return draws.integers(first, last + 1), draws.normal(*latent.shape[1:])


def _weights(settings: CidaSettings) -> dict[str, float]:
    """Return the factors of the losses; those of roles that serve another have 1, as they have rates."""
    weights = {
        "generator/distillation": settings.distillation_weight,
        "generator/adversarial": settings.adversary_weight,
        "generator/alignment": 0.0 if settings.alignment is None else settings.alignment.weight,
        "generator/latent": settings.latent,
    }
    if settings.distillation_weight:
        weights |= {"fake/denoising": 1.0, "real/denoising": 1.0 if settings.real_rate else 0.0}
    if settings.adversary_weight:
        weights |= {"discriminator/real": 1.0, "discriminator/fake": 1.0}
    return {name: weight for name, weight in weights.items() if weight}


def _rates(settings: CidaSettings) -> dict[str, float]:
    """Return the rate of each role that has a loss, by the name of its adapter."""
    rates = {
        "generator": 1.0,
        "real": settings.real_rate,
        "fake": settings.fake_rate,
        "discriminator": settings.discriminator_rate,
    }
    trained = {name.partition("/")[0] for name in _weights(settings)}
    return {name: rate for name, rate in rates.items() if name in trained}


def _check_base(settings: CidaSettings, base: UNetCheckpoint) -> None:
    """Refuse a base that predicts something else, and guidance away from a prompt that it does not have.

    Raises:
        TrainingError: the predictions differ, or a guidance is not 1 and the base has no negative prompt.
    """
    if base.spec.prediction != settings.prediction:
        raise TrainingError(
            f"expected cida.prediction {base.spec.prediction} as in {settings.base}, got {settings.prediction}"
        )
    asked = {"cida.one_step.guidance": settings.one_step.guidance}
    if settings.distillation_weight:
        asked["cida.guidance"] = settings.guidance
    for key, guidance in asked.items():
        if guidance != 1.0 and base.negative is None:
            raise TrainingError(
                f"expected a negative prompt in {settings.base} for {key} {guidance:g}, got none:"
                f" set {key} to 1, or export the base with prompt.negative"
            )
