"""As much of ComfyUI v0.3.64 as the nodes touch, so that they are tested where no ComfyUI is.

Constructors take exactly the keywords of that version: an unknown one is an error here as it is there.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NAMES = ("comfy", "comfy_api", "folder_paths")


@dataclass
class Schema:
    """Fields of io.Schema in v0.3.64."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Any] | None = None
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False


@dataclass
class Input:
    """A socket."""

    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    extra_dict: dict[str, Any] = field(default_factory=dict)
    io_type: str = field(init=False)


@dataclass(kw_only=True)
class _Widget(Input):
    default: Any = None
    socketless: bool | None = None


@dataclass(kw_only=True)
class Number(_Widget):
    """An Int or Float widget."""

    min: float | None = None
    max: float | None = None
    step: float | None = None


@dataclass(kw_only=True)
class Combo(_Widget):
    """A drop-down list."""

    options: list[str]


@dataclass
class Output:
    """An output."""

    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False
    io_type: str = field(init=False)


class NodeOutput:
    """What execute returns."""

    def __init__(self, *args: Any, ui: Any = None) -> None:
        """Keep the values."""
        self.args, self.ui = args, ui


@dataclass
class PreviewText:
    """Text for the history of a prompt."""

    value: str


class Kind:
    """A type of socket or widget: what ``io.Image`` and its like are."""

    def __init__(self, io_type: str, widget: type[Input] = Input) -> None:
        """Make inputs of class ``widget``."""
        self.io_type, self._widget = io_type, widget

    def Input(self, id: str, *positional: Any, **options: Any) -> Any:  # noqa: N802
        """Return an input; the id may be given by position, as the host allows."""
        part = self._widget(id, *positional, **options)
        part.io_type = self.io_type
        return part

    def Output(self, id: str | None = None, **options: Any) -> Output:  # noqa: N802
        """Return an output."""
        part = Output(id, **options)
        part.io_type = self.io_type
        return part


class Patcher:
    """A ModelPatcher that never moves anything."""

    def __init__(self, model: torch.nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        """Keep the model."""
        self.model, self.load_device, self.offload_device = model, load_device, offload_device

    def model_size(self) -> int:
        """Return the bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())


@dataclass
class Record:
    """What the nodes asked of the host."""

    loaded: list[str] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)
    pictures: list[tuple[str, Any, int]] = field(default_factory=list)
    weights_asked: int = 0
    checks: int = 0
    cancel_at_check: int | None = None

    def clear(self) -> None:
        """Forget everything."""
        self.loaded.clear()
        self.progress.clear()
        self.pictures.clear()
        self.weights_asked = self.checks = 0
        self.cancel_at_check = None


class InterruptedByUserError(Exception):
    """The host's InterruptProcessingException."""


def install(models: Path) -> Record:
    """Enter the stub in ``sys.modules``, with ``models`` as its models folder, and return what it will record."""
    record = Record()
    cpu = torch.device("cpu")

    def load_models_gpu(patchers: list[Patcher], memory_required: float = 0) -> None:
        del memory_required
        record.loaded += [type(patcher.model).__name__ for patcher in patchers]

    def check() -> None:
        record.checks += 1
        if record.checks == record.cancel_at_check:
            raise InterruptedByUserError

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int, preview: tuple[str, Any, int] | None = None) -> None:
            record.progress.append((value, total))
            if preview is not None:
                record.pictures.append(preview)

    def cast_bias_weight(
        layer: Any, like: torch.Tensor, dtype: torch.dtype | None = None, bias_dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        record.weights_asked += 1
        weight = layer.weight.to(like.device, dtype or like.dtype)
        return weight, None if layer.bias is None else layer.bias.to(like.device, bias_dtype or like.dtype)

    io = SimpleNamespace(
        Schema=Schema,
        Input=Input,
        Output=Output,
        NodeOutput=NodeOutput,
        ComfyNode=type("ComfyNode", (), {}),
        Custom=Kind,
        Image=Kind("IMAGE"),
        Mask=Kind("MASK"),
        Latent=Kind("LATENT"),
        Vae=Kind("VAE"),
        Model=Kind("MODEL"),
        Conditioning=Kind("CONDITIONING"),
        UpscaleModel=Kind("UPSCALE_MODEL"),
        Int=Kind("INT", Number),
        Float=Kind("FLOAT", Number),
        Combo=Kind("COMBO", Combo),
        String=Kind("STRING", _Widget),
        Boolean=Kind("BOOLEAN", _Widget),
    )
    management = {
        "get_torch_device": lambda: cpu,
        "unet_offload_device": lambda: cpu,
        "unet_dtype": lambda _device, _parameters, _dtypes: torch.float32,
        "unet_manual_cast": lambda _stored, _device, _dtypes: None,
        "supports_cast": lambda device, _dtype: device.type != "mps",
        "load_models_gpu": load_models_gpu,
        "throw_exception_if_processing_interrupted": check,
    }
    modules: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.latent_formats": {},
        "comfy.ldm": {},
        "comfy.ldm.models": {},
        "comfy.ldm.models.autoencoder": {},
        "comfy.model_base": {},
        "comfy.model_management": management,
        "comfy.model_patcher": {"ModelPatcher": Patcher},
        "comfy.ops": {
            "disable_weight_init": torch.nn,
            "manual_cast": torch.nn,
            "cast_bias_weight": cast_bias_weight,
        },
        "comfy.sd": {"VAE": type("VAE", (), {"latent_channels": 4})},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy_api": {},
        "comfy_api.latest": {
            "io": io,
            "ui": SimpleNamespace(PreviewText=PreviewText),
            "ComfyExtension": type("ComfyExtension", (), {}),
        },
        "folder_paths": {
            "models_dir": str(models),
            "add_model_folder_path": lambda _folder, _path: None,
            "get_folder_paths": lambda folder: [str(models / folder)],
            "get_filename_list": lambda folder: sorted(path.name for path in (models / folder).glob("*")),
            "get_full_path": lambda folder, name: (
                str(models / folder / name) if (models / folder / name).is_file() else None
            ),
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return record
