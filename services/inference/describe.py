"""What the service says about itself and its model, the same through every door (OIP v2 metadata)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel

from services.inference.engine.engine import Engine
from services.inference.tensors import INPUTS
from shared.contracts.inference import MODEL_NAME
from shared.errors import NotFound, SilkrecError


class TensorMetadata(BaseModel):
    """-1: any length."""

    name: str
    datatype: str
    shape: list[int]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    """`actions` are the columns of `scores`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    actions: list[str]


def server() -> ServerMetadata:
    try:
        own = version("silkrec")
    except PackageNotFoundError:
        own = "unknown"
    return ServerMetadata(name="silkrec", version=own, extensions=["raw_tensor_contents"])


def is_ready(engine: Engine) -> bool:
    """A model is warm and the device's thread lives."""
    return engine.alive and engine.slot.active is not None


def is_model_ready(engine: Engine, name: str, model_version: str) -> bool:
    if name != MODEL_NAME or not engine.alive:
        return False
    try:
        engine.slot.resolve(model_version)
    except SilkrecError:
        return False
    return True


def check_name(name: str) -> None:
    """Raises NotFound."""
    if name != MODEL_NAME:
        raise NotFound(f"there is no model {name!r} here; it is called {MODEL_NAME!r}")


def model(engine: Engine, name: str, model_version: str) -> ModelMetadata:
    """Raises NotFound, and InferenceUnavailable before the first model."""
    check_name(name)
    serving = engine.slot.resolve(model_version)
    heads = len(serving.actions)
    return ModelMetadata(
        name=MODEL_NAME,
        versions=list(engine.slot.versions()),
        platform="silkrec_pytorch",
        inputs=[TensorMetadata(name=name, datatype=datatype, shape=[1, -1]) for name, datatype in INPUTS.items()],
        outputs=[
            TensorMetadata(name="user_vector", datatype="FP32", shape=[1, serving.vector_dim]),
            TensorMetadata(name="scores", datatype="FP32", shape=[1, -1, heads]),
            TensorMetadata(name="scored", datatype="BOOL", shape=[1, -1]),
        ],
        actions=[action for action, _ in serving.actions],
    )
