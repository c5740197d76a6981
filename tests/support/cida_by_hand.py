"""The losses of stage cida by another way: one plain UNet per role, with its adapter merged into the weights."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gendr_core import load_vae
from gendr_core.checkpoint import read_unet
from gendr_core.nets import UNet
from gendr_train.data.dataset import Batch
from gendr_train.diffusion import add_noise, alpha_bars, to_clean, training_target
from gendr_train.features import build_features
from gendr_train.frames import TrainingFrame, first_level, middle
from gendr_train.lora import merged_state
from gendr_train.losses.adversarial import fool, tell_fake, tell_real
from gendr_train.losses.alignment import alignment
from gendr_train.losses.consistency import cid
from gendr_train.losses.score_identity import denoising, sid, vsd
from gendr_train.rng import Draws
from gendr_train.settings import CidaSettings
from gendr_train.stages.cida import PROMPT_DROPOUT, CidaStage
from gendr_train.stages.stage import Losses, to_pair

ROLES = ["generator", "real", "fake", "discriminator"]


class CidaByHand:
    """The losses of the stage, recomputed with one plain UNet per role."""

    dropped: list[bool]
    """Whether the real score learned an image under the negative prompt; set by ``losses``."""

    def __init__(self, stage: CidaStage, settings: CidaSettings) -> None:
        """Merge each adapter into a network of its own.

        Args:
            stage: with all roles.
            settings: those of the stage.
        """
        self.stage, self.settings = stage, settings
        self.file = read_unet(settings.base)
        self.networks = {name: self._merged(name) for name in ROLES}
        self.vae = load_vae(settings.vae, folds=())

    def _merged(self, role: str) -> UNet:
        unet = UNet(self.file.spec.arch)
        unet.load_state_dict(merged_state(self.stage.unet, role))
        return unet

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        """Return what the stage's forward has to return.

        Args:
            batch: the same batch.
            draws: started anew.
        """
        pair, scaling, step = to_pair(batch), self.vae.spec.latent_scaling, self.settings.one_step
        damaged, original = (self.vae.network.encode(x) * scaling for x in (pair.upsampled, pair.original))
        restored = step.c_skip * damaged + step.c_out * self._predict("generator", damaged, step.timestep)
        losses = {"generator/distillation": self._distillation(draws, restored, original)}
        losses["fake/denoising"] = self._score("fake", draws, restored)
        losses["real/denoising"] = self._score("real", draws, original)
        t, noise = self._draw(draws, restored)
        assert self.stage.head is not None
        assert self.stage.alignment is not None
        made, real = (
            self.stage.head(self._tapped("discriminator", add_noise(z, noise, t), t, middle))
            for z in (restored, original)
        )
        losses |= {"generator/adversarial": fool(made), "discriminator/real": tell_real(real)}
        losses["discriminator/fake"] = tell_fake(made)
        assert self.settings.alignment is not None
        (target,) = build_features(self.settings.alignment.features)(pair.original)
        features = self._tapped("generator", damaged, step.timestep, first_level)
        losses["generator/alignment"] = alignment(self.stage.alignment.projection(features), target)
        losses["generator/latent"] = (restored - original).abs().mean((1, 2, 3))
        return losses

    def _predict(self, role: str, noised: Tensor, timestep: Tensor | int, prompt: Tensor | None = None) -> Tensor:
        prompt = self.file.positive if prompt is None else prompt
        return self.networks[role](noised, timestep, prompt.expand(noised.shape[0], -1, -1))

    def _tapped(self, role: str, noised: Tensor, timestep: Tensor | int, block: Callable[[UNet], nn.Module]) -> Tensor:
        unet = self.networks[role]
        run = TrainingFrame(taps={block(unet): "tap"})
        unet(noised, timestep, self.file.positive.expand(noised.shape[0], -1, -1), run=run)
        return run.tapped["tap"]

    def _draw(self, draws: Draws, latent: Tensor) -> tuple[Tensor, Tensor]:
        return draws.integers(354, 981), draws.normal(*latent.shape[1:])

    def _distillation(self, draws: Draws, restored: Tensor, original: Tensor) -> Tensor:
        t, noise = self._draw(draws, restored)
        noised = add_noise(restored, noise, t)
        assert self.file.negative is not None
        predictions = [self._predict("real", noised, t), self._predict("real", noised, t, self.file.negative)]
        predictions.append(self._predict("fake", noised, t))
        kind = self.settings.prediction
        real, unguided, fake = (to_clean(noised, predicted, t, kind) for predicted in predictions)
        guided = unguided + self.settings.guidance * (real - unguided)
        return {
            "vsd": partial(vsd, restored, guided, fake),
            "sid": partial(sid, restored, guided, fake, alpha=self.settings.xi),
            "cid": partial(cid, original, real, guided, fake, xi=self.settings.xi),
        }[self.settings.distillation]()

    def _score(self, role: str, draws: Draws, clean: Tensor) -> Tensor:
        t, noise = self._draw(draws, clean)
        prompt = self.file.positive
        if role == "real":
            self.dropped = (draws.uniform(0.0, 1.0) < PROMPT_DROPOUT).tolist()
            assert self.file.negative is not None
            prompt = torch.stack([self.file.negative if drop else self.file.positive for drop in self.dropped])
        predicted = self._predict(role, add_noise(clean, noise, t), t, prompt)
        kind = self.settings.prediction
        # snr / (snr + 1) = ab
        weight = None if kind == "epsilon" else alpha_bars()[t]
        return denoising(predicted, training_target(clean, noise, t, kind), weight)
