"""Deterministic images and weights."""
import zlib

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from transformers.initialization import no_init_weights


def make_image(width, height, seed):
    """An RGB image with smooth gradients, hard edges and fine noise: resizing errors show in each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    base = np.stack([255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1),
                     127.5 + 127.5 * np.sin(x / 7.0 + y / 11.0)], axis=-1)
    img = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8), "RGB")
    d = ImageDraw.Draw(img)
    for _ in range(6):
        x0, x1 = sorted(rng.integers(0, width, 2).tolist())
        y0, y1 = sorted(rng.integers(0, height, 2).tolist())
        getattr(d, ["rectangle", "ellipse"][int(rng.integers(2))])([x0, y0, x1, y1], fill=tuple(rng.integers(0, 256, 3).tolist()))
    a = np.asarray(img).astype(np.int16) + rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8), "RGB")


@torch.no_grad()
def randomise(model, seed, init=None):
    """Give every parameter random values from a generator seeded by its name. Where `init(name, normal, parameter)` gives
    values, those."""
    for name, p in model.named_parameters():
        g = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        r = torch.randn(p.shape, generator=g)
        leaf, low = name.rsplit(".", 1)[-1], name.lower()
        own = init(name, r, p) if init else None
        if own is not None:
            r = own
        elif leaf == "logit_scale":
            r = 2.0 + 0.1 * r
        elif leaf == "logit_bias":
            r = -1.5 + 0.1 * r
        elif leaf == "lambda1":
            r = 0.5 + 0.1 * r
        elif "norm" in low and leaf == "weight":
            r = 1.0 + 0.1 * r
        elif p.ndim == 1 or leaf == "in_proj_bias":
            r = 0.05 * r
        elif "embed_positions" in low:        # BART
            pass
        elif leaf in ("cls_token", "mask_token", "register_tokens", "probe") or "position" in low or leaf in ("column_embeddings", "row_embeddings"):
            r = 0.3 * r
        elif "shared" in low:                 # tied to the output head: a large table would make greedy
            r = 0.3 * r                       # decoding repeat its own last token
        elif any(s in low for s in ("embed_tokens", "token_embedding")):
            pass
        elif "channel_attn.qkv" in low:       # its logits sum over all positions, and would saturate the softmax
            r = 0.25 * r / (p[0].numel() ** 0.5)
        elif p.ndim == 4 and p.shape[1] == 1:  # depthwise convolutions sit in 4 residuals a block: keep them small
            r = r / 12
        else:
            r = r / (p[0].numel() ** 0.5)
        p.copy_(r.to(p.dtype))


def build(cls, config, seed, dtype, init=None):
    """A random model of class `cls` in `dtype`, for saving only (its non-persistent buffers went through the
    cast too, so it must not compute anything)."""
    with no_init_weights():
        model = cls(config)
    model.tie_weights()                       # not done inside no_init_weights
    randomise(model, seed, init)
    return model.eval().to(dtype)


def rename_weights(folder, rename):
    """Give the tensors of a saved model other names, where transformers does not save those of the published files."""
    for path in folder.glob("model*.safetensors"):
        save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
