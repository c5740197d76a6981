"""``gendr convert`` as a node: a relative's published file and its base become files of the host's, and are loaded.

Role: stands in for ``loaders`` where the weights are still another restorer's. Here is what an artist chooses;
``conversion`` does it.
"""

from pathlib import PurePath
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..gendr_core.convert import Conversion, Prompts, Sources
from ..gendr_core.errors import OptionError, errors_about
from ..gendr_core.header import read_header
from ..gendr_core.relatives import RELATIVES, Relative, find_relative
from .conversion import DTYPES, STEPS, Job, exists, targets_of, write
from .folders import base_files, base_path, named_after, published_files, published_path
from .host import host_for, load_hosted_unet, load_hosted_vae
from .prompt import SD2_WIDTH, embedding, of_one_length
from .sockets import GenDRModel, node_schema
from .widgets import advanced

if TYPE_CHECKING:
    from pathlib import Path

    from .prompt import Conditioning

BY_NAME = "by file name"


class Convert(io.ComfyNode):
    """Convert to GenDR."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        degradation = {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.05}
        of_images = " of the images to restore, from 0 (none) to 1. For S3Diff only."
        return node_schema(
            "GenDR_Convert",
            "Convert to GenDR",
            "Merges the published weights of OSEDiff, PiSA-SR, HYPIR-SD2, S3Diff or TVT with their base model into a"
            " UNet and a VAE for the GenDR nodes, writes both into the model folders and loads them. Run again, it"
            " loads what it wrote.",
            inputs=[
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Prompt that is stored in the new file, from CLIP Text Encode with an SD2.x CLIP; the text"
                    " may be empty. Needed for converting, not for loading what is there.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance leads away from, stored as well. S3Diff needs it.",
                ),
                io.Combo.Input(
                    "file",
                    options=published_files(),
                    tooltip="What the restorer publishes (.pkl, .pth or .safetensors), from models/gendr, or from"
                    " models/loras where the file has the restorer's name.",
                ),
                io.Combo.Input(
                    "relative",
                    display_name="restorer",
                    options=[BY_NAME, *(relative.key for relative in RELATIVES)],
                    default=BY_NAME,
                    tooltip="Whose file it is. 'by file name' looks for the restorer's name in that of the file.",
                ),
                io.Combo.Input(
                    "unet",
                    display_name="base_unet",
                    options=base_files("diffusion_models"),
                    tooltip="UNet of the base model (.safetensors), from models/diffusion_models or models/checkpoints:"
                    " SD2.1 base, the one for 512 pixels; for S3Diff SD-Turbo.",
                ),
                io.Combo.Input(
                    "vae_file",
                    display_name="base_vae",
                    options=base_files("vae"),
                    tooltip="VAE of the base model (.safetensors), from models/vae or models/checkpoints.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="What the names of the new files begin with. Empty takes the name of the file.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Converts again and replaces files of an earlier conversion. Off, such files are loaded.",
                ),
                advanced(io.Float.Input("blur", tooltip=f"Blur{of_images}", **degradation)),
                advanced(io.Float.Input("noise", tooltip=f"Noise{of_images}", **degradation)),
                advanced(
                    io.Combo.Input(
                        "dtype",
                        options=list(DTYPES),
                        default="fp16",
                        tooltip="How exactly the weights are written; they are merged in fp32. fp32 takes twice the"
                        " disk.",
                    )
                ),
            ],
            outputs=[
                GenDRModel.Output(display_name="model", tooltip="The restoration model, for the GenDR nodes."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE, for the GenDR nodes and ComfyUI's own VAE nodes."),
                io.String.Output(display_name="files", tooltip="Names of the files, one per line, the VAE last."),
            ],
            search_aliases=["OSEDiff", "PiSA-SR", "HYPIR", "S3Diff", "TVT", "merge lora", "import weights"],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, unet: str, vae_file: str, **others: object) -> str:
        """Return a text that changes with the files that are read, so that the node runs again when one is replaced."""
        del others
        sources = _sources(file, unet, vae_file)
        found = (path.stat() for path in (sources.adapter, sources.unet, sources.vae))
        return " ".join(f"{status.st_mtime_ns} {status.st_size}" for status in found)

    @classmethod
    def execute(
        cls,
        file: str,
        relative: str,
        unet: str,
        vae_file: str,
        name: str,
        overwrite: bool,
        blur: float,
        noise: float,
        dtype: str,
        positive: "Conditioning | None" = None,
        negative: "Conditioning | None" = None,
    ) -> io.NodeOutput:
        """Convert what is not there yet, and load it."""
        whose, sources = _relative(file, relative), _sources(file, unet, vae_file)
        conversion = Conversion(
            relative=whose,
            sources=sources,
            degradation=(blur, noise) if whose.needs_degradation else None,
            dtype=DTYPES[dtype],
        )
        job = Job(
            conversion=conversion,
            prompts=_prompts(positive, negative, sources.unet),
            targets=targets_of(whose, name.strip() or PurePath(file).stem),
        )
        host = host_for()
        host.progress.update(0, STEPS)
        if overwrite or not exists(job):
            write(job, host)
        names = [path.name for path in job.targets]
        model, vae = load_hosted_unet(names[0]), load_hosted_vae(names[-1])
        host.progress.update(STEPS, STEPS)
        text = "\n".join(names)
        return io.NodeOutput(model, vae, text, ui=ui.PreviewText(text))


def _relative(file: str, chosen: str) -> Relative:
    found = named_after(file) if chosen == BY_NAME else find_relative(chosen)
    if found is None:
        keys = ", ".join(relative.key for relative in RELATIVES)
        raise OptionError(f"{file}: expected a file with the name of one of {keys}: choose whose it is in 'restorer'")
    return found


def _sources(file: str, unet: str, vae: str) -> Sources:
    return Sources(adapter=published_path(file), unet=base_path("diffusion_models", unet), vae=base_path("vae", vae))


def _prompts(positive: "Conditioning | None", negative: "Conditioning | None", unet: "Path") -> Prompts | None:
    """Return the prompts to store: both [tokens, width], float32, on the CPU, of one length."""
    if positive is None:
        if negative is not None:
            raise OptionError("expected a positive prompt beside the negative one: connect CLIP Text Encode to it, too")
        return None
    width = _prompt_width(unet)
    wanted = embedding("positive", positive, width)
    if negative is None:
        return Prompts(wanted, None)
    return Prompts(*of_one_length(wanted, embedding("negative", negative, width)))


def _prompt_width(unet: "Path") -> int:
    with errors_about(unet):
        shapes = read_header(unet).shapes
    # In every layout of UNets. Where there is none, the file is no UNet, and reading it says so.
    return next((shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), SD2_WIDTH)
