"""Image classifiers as people fine-tune them: ViT, ConvNeXt V2, DINOv2 with and without registers."""
import torch

from .fixture import DTYPES, to_device
from .weights import build

_IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
_HALF = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
# Of the road-work classifiers that the subnet's reference miners run.
_LABELS = ["None", "Roadwork"]


def _grn(name, r, p):
    """ConvNeXt V2's response normalisation starts as the identity: with weights of one it shows."""
    return 0.5 * r if ".grn." in name else None


def _classifier(fx, cls, cfg, proc, run, init=None, images=(("landscape", 160, 120), ("portrait", 83, 121))):
    """Save the model and its processor, and expect what `run(model, pixel_values)` gives: its output and {name: tensor}."""
    cfg.id2label = dict(enumerate(_LABELS))
    cfg.label2id = {label: i for i, label in enumerate(_LABELS)}
    build(cls, cfg, fx.args.seed, DTYPES[fx.args.dtype], init).save_pretrained(fx.snapshot)
    proc.save_pretrained(fx.snapshot)
    model = fx.load(cls)
    inputs = to_device(proc([fx.image(*image) for image in images], return_tensors="pt"), fx.args)
    fx.put("pixel_values", inputs["pixel_values"])
    o, out = run(model, inputs["pixel_values"].to(model.dtype))
    for k, v in out.items():
        fx.put(k, v)
    fx.put("probs", out["logits"].float().softmax(-1))
    fx.meta["labels"] = _LABELS
    return model, inputs["pixel_values"].to(model.dtype), o, out


@torch.no_grad()
def make_vit(fx, spec):
    """ViT: CLS of the final norm, one linear layer."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    cfg = ViTConfig(**spec)
    proc = ViTImageProcessor(size={"height": cfg.image_size, "width": cfg.image_size}, resample=2, **_HALF)

    def run(model, x):
        o = model(x, output_hidden_states=True)
        return o, {"logits": o.logits, "last_hidden_state": model.vit(x).last_hidden_state}

    model, x, o, out = _classifier(fx, ViTForImageClassification, cfg, proc, run)
    fx.put_layers("hidden_states", o.hidden_states)
    fx.noise(model, lambda: run(model, x)[1], out)


@torch.no_grad()
def make_convnextv2(fx, spec):
    """ConvNeXt V2: norm of the spatial mean, one linear layer. It has no attention: the noise is its distance to
    double precision."""
    from transformers import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification
    side = spec["image_size"]
    cfg = ConvNextV2Config(num_stages=4, **spec)
    proc = ConvNextImageProcessor(size={"shortest_edge": side}, crop_pct=0.875, resample=3, **_IMAGENET)

    def run(model, x):
        o = model(x, output_hidden_states=True)
        base = model.convnextv2(x)
        return o, {"logits": o.logits, "last_hidden_state": base.last_hidden_state, "pooler_output": base.pooler_output}

    model, x, o, out = _classifier(fx, ConvNextV2ForImageClassification, cfg, proc, run, _grn)
    for i, state in enumerate(o.hidden_states):      # NCHW: of the stem, then of each stage
        if fx.args.size != "full" or i in (0, len(o.hidden_states) - 1):
            fx.put(f"hidden_states.{i}", state)
    fx.noise(model, lambda: run(model, x.double())[1], out, "float64")


@torch.no_grad()
def make_dinov2(fx, spec):
    """DINOv2: concat(CLS, mean of the patches) of the final norm, one linear layer. As in the published files, the position
    table is larger than the grid of the images."""
    import transformers
    spec = dict(spec)
    crop = spec.pop("crop")
    name = "Dinov2WithRegisters" if "num_register_tokens" in spec else "Dinov2"
    cfg = getattr(transformers, f"{name}Config")(patch_size=14, **spec)
    proc = transformers.BitImageProcessor(size={"shortest_edge": crop * 8 // 7}, crop_size={"height": crop, "width": crop},
                                          do_center_crop=True, resample=3, **_IMAGENET)

    def run(model, x):
        o = model(x, output_hidden_states=True)
        base = getattr(model, model.base_model_prefix)(x)
        return o, {"logits": o.logits, "last_hidden_state": base.last_hidden_state, "pooler_output": base.pooler_output}

    model, x, o, out = _classifier(fx, getattr(transformers, f"{name}ForImageClassification"), cfg, proc, run)
    fx.put_layers("hidden_states", o.hidden_states)
    fx.noise(model, lambda: run(model, x)[1], out)
    # neither square nor the configured size: the position table is resized per axis
    rect = torch.nn.functional.interpolate(x[:1].float(), size=(crop // 14 * 14 - 14, crop + 28), mode="bilinear").to(x.dtype)
    fx.put("rect.pixel_values", rect)
    for k, v in run(model, rect)[1].items():
        fx.put(f"rect.{k}", v)


_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
_LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
_TINY_DINOV2 = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=70, crop=56)

TINY = {
    "vit": (make_vit, dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=64,
                           patch_size=16)),
    # 80 px -> 20, 10, 5, 2 positions a side
    "convnextv2": (make_convnextv2, dict(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], image_size=80)),
    "dinov2": (make_dinov2, _TINY_DINOV2),
    "dinov2_registers": (make_dinov2, dict(_TINY_DINOV2, num_register_tokens=4)),
    # SwiGLU with a fused gate and a width of its own: the giant checkpoints
    "dinov2_giant": (make_dinov2, dict(_TINY_DINOV2, use_swiglu_ffn=True)),
}

FULL = {
    "vit-base-patch16-224": (make_vit, dict(intermediate_size=3072, image_size=224, patch_size=16, **_BASE)),
    "convnextv2-base": (make_convnextv2, dict(hidden_sizes=[128, 256, 512, 1024], depths=[3, 3, 27, 3], image_size=224)),
    "dinov2-base": (make_dinov2, dict(image_size=518, crop=224, **_BASE)),
    "dinov2-large": (make_dinov2, dict(image_size=518, crop=224, **_LARGE)),
    "dinov2-with-registers-base": (make_dinov2, dict(image_size=518, crop=224, num_register_tokens=4, **_BASE)),
}
