"""GET /v1/models and /v1/models/{id}. It knows nothing of how a model runs."""

from typing import Any

from services.router.exchange import Exchange
from services.router.front import Front
from services.router.needs import ServedModel
from shared.errors import NotFound


async def list_models(exchange: Exchange, front: Front) -> None:
    """Every name the model answers to, for this caller."""
    model = front.plane.model
    names = [name for name in model.names if exchange.identity.may_use(name)]
    await exchange.answer_object({"object": "list", "data": [_entry(model, name) for name in names]})


async def one_model(exchange: Exchange, front: Front) -> None:
    """The model of that name, which may hold slashes. Raises NotFound, PermissionDenied."""
    name = exchange.path_params["name"]
    model = front.plane.model
    if name not in model.names:
        raise NotFound(f"The model '{name[:200]}' does not exist here.", param="model", code="model_not_found")
    exchange.identity.check_model(name)
    await exchange.answer_object(_entry(model, name))


def _entry(model: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "roadtrain",
        "root": model.names[0],
        "parent": None,
        "max_model_len": model.max_model_len or None,
    }
