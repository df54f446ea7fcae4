"""A model as a file that runs elsewhere, without this project: bytes of pixels in, chances out.

Every file takes images[N, H, W] or [N, H, W, 3] uint8, N being any number, and gives
probabilities[N, C] float32, calibrated.  What is said of the model beside it, its metadata, is in
the file too.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tasks.caching.basics import LadderError
from tasks.caching.values import Weights, weights_bytes
from tasks.rungs.convolution import Conv, Norm, Turn
from tasks.rungs.measure import forward, load_model

NEAR = 1e-4  # between two ways to compute a probability; measured are 3e-8 and less


class Served(nn.Module):
    """A model with what comes before and after it."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        """images[N, H, W(, 3)] uint8 -> probabilities[N, C] float32."""
        return (forward(self.model, images, "float32") / self.temperature).softmax(1)


def onnx_file(weights: Weights) -> bytes:
    """An ONNX model, "images" -> "probabilities", that onnxruntime has been seen to agree about.

    Raises LadderError where its libraries are missing, or for a model that has no such form.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise LadderError(f"the format onnx needs {package}: "
                              "`pip install 'stepladder[onnx]'` installs it")  # fmt: skip
    program = exported(weights)
    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, verbose=False,
            input_names=["images"], output_names=["probabilities"],
            dynamic_shapes=({0: "batch"},),
        )  # fmt: skip
    assert made is not None
    model = made.model_proto
    model.producer_name = "stepladder"
    for name, text in weights.metadata.items():
        model.metadata_props.add(key=name, value=text)
    data: bytes = model.SerializeToString(deterministic=True)
    check_onnx(data, weights)
    return data


def torch_export_file(weights: Weights) -> bytes:
    """What `torch.export.load(file).module()` makes callable again, where only torch is there.

    The metadata lie in it as the extra file `metadata.json`.
    Raises LadderError for a model that has no such form.
    """
    file = io.BytesIO()
    extra = {"metadata.json": json.dumps(weights.metadata)}
    with _quiet():
        torch.export.save(exported(weights), file, extra_files=extra)
    return file.getvalue()


def exported(weights: Weights) -> torch.export.ExportedProgram:
    """A model as the operations it consists of, for any number of images.

    Raises LadderError where it has no such form: what it does depends on what it sees.
    """
    served = served_model(weights)
    images = some_images(weights, 2)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                served, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
    except Exception as error:  # of a model's own code, under torch's tracing
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise LadderError(f"the model {weights.metadata['model']} has no fixed list of operations "
                          f"that a file could hold; {said[:300]}") from error  # fmt: skip
    for node in program.graph.nodes:  # where its lines lie on this machine is nobody's business
        node.meta.pop("stack_trace", None)
    return program


def served_model(weights: Weights) -> Served:
    """The model of `Weights`, of torch's own layers, in evaluation mode."""
    model = plain(load_model(*weights))
    return Served(model, float(weights.metadata.get("temperature", 1))).eval()


def plain(module: nn.Module) -> nn.Module:
    """A model with torch's own layers in place of ours, which share their weights and names.

    Other runtimes have kernels for those, and none for our matrix products.  What is derived from
    ours stays as it is, for whatever it adds.
    """
    if type(module) is Turn:
        return nn.Identity()
    if type(module) is Conv:
        made: nn.Module = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size,  # type: ignore[arg-type]
            module.stride, module.padding, bias=False,  # type: ignore[arg-type]
        )  # fmt: skip
        made.weight = module.weight
        return made
    if type(module) is Norm:
        made = nn.BatchNorm2d(module.num_features, module.eps, module.momentum)
        made.load_state_dict(module.state_dict())
        return made.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, plain(child))
    return module


def check_onnx(data: bytes, weights: Weights) -> None:
    """Have onnxruntime say of some images what torch does, of one alone too.

    Raises LadderError where the two differ.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    images, served = some_images(weights, 5), served_model(weights)
    for some in (images[:1], images):
        with torch.no_grad():
            wanted = served(some)
        [said] = session.run(None, {"images": some.numpy()})
        if not torch.allclose(torch.from_numpy(said), wanted, rtol=0, atol=NEAR):
            raise LadderError(f"the model {weights.metadata['model']} says something else in "
                              "onnxruntime than in torch; give --format torch-export")  # fmt: skip


def some_images(weights: Weights, count: int) -> Tensor:
    """Noise of the shape that a model takes: images[count, H, W(, 3)] uint8."""
    shape = json.loads(weights.metadata["preprocessing"])["shape"]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says about itself while it exports off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS = {"onnx": onnx_file, "safetensors": weights_bytes, "torch-export": torch_export_file}
