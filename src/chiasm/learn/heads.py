"""Small heads behind the encoders of a space, made of sentence-transformers' own modules, and the model they end up in.

A head starts as the identity (a residual layer of zeros), so training begins at the unaligned space. The pocket space's
pictures get more: their route is made anew of stock modules (`chiasm.encode.pocket.stock`), and its head reads all 1280
features of the image network; it starts as the space's bridge.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.base.modules.normalize import Normalize
from torch import nn

from chiasm.learn.frozen import pocket_route


def residual(dim: int) -> list[nn.Module]:
    """``[Dense, Normalize]``: x + W x + c with W and c zero at the start, scaled to unit length."""
    layer = Dense(dim, dim, activation_function=nn.Identity(), use_residual=True)
    with torch.no_grad():
        layer.linear.weight.zero_()
        layer.linear.bias.zero_()
    return [layer, Normalize()]


def head_for(space: Any, route: str) -> tuple[list[nn.Module], str]:
    """The untrained head of a route, and the kind of frozen features it reads (`chiasm.learn.frozen.KINDS`)."""
    modules = pocket_route(space)
    if route == "image" and modules is not None:
        from chiasm.encode.pocket.stock import stock_bridge

        return [*stock_bridge(modules[1], modules[0]), Normalize()], "image_features"
    return residual(space.dim), "vector"


def head_model(heads: dict[str, list[nn.Module]], device: str | None = None) -> SentenceTransformer:
    """Heads alone, as they train: they read ``sentence_embedding``."""
    router = Router({route: list(head) for route, head in heads.items()}, default_route=next(iter(heads)))  # pyright: ignore
    return SentenceTransformer(modules=[router], device=device, similarity_fn_name="cosine")


def whole_model(space: Any, heads: dict[str, list[nn.Module]]) -> SentenceTransformer:
    """The space's encoders with the heads behind them; the space itself stays as it is.

    Args:
        space: a space of `chiasm.load`.
        heads: route -> modules.
    """
    model = space.model
    first: Any = model[0]
    pocket = pocket_route(space) is not None
    device = str(model.device)
    if isinstance(first, Router) and len(model) == 1:
        routes: dict[str, list[Any]] = {}
        for name, given in first.sub_modules.items():
            modules_of: list[Any] = list(given)  # pyright: ignore[reportArgumentType]
            if getattr(modules_of[0], "grown", None) is True and name not in heads:
                # It leads into the space as it was: behind moved texts its vectors would mean something else, and its code is
                # ours, while what is saved here loads with plain sentence-transformers. Speech goes by its transcript still.
                continue
            if name in heads and name == "image" and pocket:
                from chiasm.encode.pocket.stock import stock_network

                routes[name] = [*stock_network(), *heads[name]]
            else:
                own = copy.deepcopy(list(given))  # pyright: ignore[reportArgumentType]
                behind = heads.get(name, [])
                routes[name] = [*own, *([] if isinstance(own[-1], Normalize) or not behind else [Normalize()]), *behind]
        modules: list[Any] = [
            Router(
                routes,
                default_route=first.default_route,
                allow_empty_key=first.allow_empty_key,
                route_mappings=first.route_mappings or None,
            )
        ]
    else:
        known = [m for m in model.modalities if isinstance(m, str)]
        routes = {name: [Normalize(), *heads.get(name, [])] for name in known}
        modules = [*copy.deepcopy(list(model)), Router(routes, default_route=known[0])]
    return SentenceTransformer(
        modules=modules,
        device=device,
        similarity_fn_name="cosine",
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
    )


def trainable(model: nn.Module) -> list[str]:
    """Names of the parameters that full fine-tuning trains: all but batch normalization (whose statistics small batches
    would spoil) and the gates of `chiasm.encode.pocket.stock`, which stand open on purpose.
    """
    fixed = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    return [n for n, _ in model.named_parameters() if n not in fixed and ".squeeze_excite." not in n]
