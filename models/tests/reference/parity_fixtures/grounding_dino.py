"""Grounding DINO."""
from unittest import mock

import torch

from .fixture import DTYPES, to_device
from .tokens import bert_tokenizer
from .weights import build

# Images with what is looked for in each: one, and two of different sizes with texts of different lengths, both padded.
_CASES = {"single": (["landscape"], [["a traffic cone", "road work sign", "excavator"]]),
          "batch": (["landscape", "portrait"], [["traffic cone"], ["Warning light", "person", "barrier"]])}
_KEPT = 8


def _init(name, r, p):
    """What is 0 or 1 in a fresh model, and what would saturate the scores."""
    if "input_proj_vision" in name and name.endswith(".1.weight"):        # a GroupNorm
        return 1.0 + 0.1 * r
    if name.endswith(("vision_param", "text_param")):
        return 0.5 + 0.1 * r
    if name.endswith("sampling_offsets.bias"):
        return r
    if name.endswith(("decoder.layer_norm.weight", "enc_output_norm.weight")):
        return 0.25 + 0.05 * r
    return None


def _gaps(scores, kept):
    """Of the `kept` best of each row: the smallest distance between two neighbours, and from the last to what is left out. Where
    noise exceeds them, other queries are picked, or in another order, and nothing after that can be compared."""
    best = scores.sort(1, descending=True).values[:, :kept + 1]
    distances = best[:, :-1] - best[:, 1:]
    left_out = float(distances[:, kept - 1].min()) if best.shape[1] > kept else None
    return {"topk_order_gap": float(distances[:, :kept - 1].min()), "topk_set_gap": left_out}


def _found(fx, proc, case, o, input_ids, shown):
    """Expect what post-processing finds with a threshold midway between two scores."""
    best = o.logits.sigmoid().max(-1).values.flatten().sort(descending=True).values
    kept = _KEPT * len(shown)
    threshold = float(best[kept - 1] + best[kept]) / 2
    results = proc.post_process_grounded_object_detection(o, input_ids, threshold=threshold, text_threshold=0.25,
                                                          target_sizes=[(image.height, image.width) for image in shown])
    for i, result in enumerate(results):
        fx.put(f"{case}.found.{i}.boxes", result["boxes"])
        fx.put(f"{case}.found.{i}.scores", result["scores"])
    return {"threshold": threshold, "threshold_margin": float(best[kept - 1] - best[kept]) / 2, "text_threshold": 0.25,
            "text_labels": [result["text_labels"] for result in results]}


@torch.no_grad()
def make_grounding_dino(fx, spec):
    """Swin and BERT, an encoder that fuses them, queries picked from its output, a deformable decoder; the classes are the
    tokens of the text."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoImageProcessor, GroundingDinoProcessor
    cfg = GroundingDinoConfig(backbone_config=dict(model_type="swin", out_indices=[2, 3, 4], **spec["swin"]),
                              text_config=dict(model_type="bert", **spec["bert"]), **spec.get("detr", {}))
    build(GroundingDinoForObjectDetection, cfg, fx.args.seed, DTYPES[fx.args.dtype], _init).save_pretrained(fx.snapshot)
    proc = GroundingDinoProcessor(image_processor=GroundingDinoImageProcessor(size=spec["size"]), tokenizer=bert_tokenizer(spec["bert"]["vocab_size"]))
    proc.image_processor.save_pretrained(fx.snapshot)
    proc.save_pretrained(fx.snapshot)

    model = fx.load(GroundingDinoForObjectDetection)
    shown = {"landscape": fx.image("landscape", 160, 120), "portrait": fx.image("portrait", 83, 121)}
    fx.meta["cases"] = {}
    for case, (seen, labels) in _CASES.items():
        batch = proc(images=[shown[name] for name in seen], text=labels, padding=True, return_tensors="pt")
        inputs = to_device(batch, fx.args)
        length = inputs["input_ids"].shape[1]
        for k, v in inputs.items():
            if fx.args.size != "full" or not k.startswith("pixel_"):
                fx.put(f"{case}.{k}", v)

        def run(dtype):
            o = model(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}, output_hidden_states=True)
            # logits have 256 columns: those past the text are -inf, as are those of its padding
            out = {"logits": o.logits[..., :length], "pred_boxes": o.pred_boxes, "init_reference_points": o.init_reference_points,
                   "encoder.vision": o.encoder_last_hidden_state_vision, "encoder.text": o.encoder_last_hidden_state_text}
            return o, {f"{case}.{k}": v for k, v in out.items()}

        swin, bert = [], []
        hooks = [model.model.backbone.register_forward_hook(lambda module, args, result: swin.extend(m for m, _ in result[0])),
                 model.model.text_projection.register_forward_hook(lambda module, args, result: bert.extend([args[0], result]))]
        o, out = run(model.dtype)
        for hook in hooks:
            hook.remove()
        for k, v in out.items():
            fx.put_rows(k, v, 1) if k.endswith("encoder.vision") else fx.put(k, v)
        fx.put(f"{case}.bert", bert[0])
        fx.put(f"{case}.text_projection", bert[1])
        fx.put_layers(f"{case}.encoder.vision.hidden_states", o.encoder_vision_hidden_states[:-1])
        fx.put_layers(f"{case}.encoder.text.hidden_states", o.encoder_text_hidden_states[:-1])
        fx.put_layers(f"{case}.decoder.hidden_states", o.intermediate_hidden_states.unbind(1))
        fx.put(f"{case}.decoder.reference_points", o.intermediate_reference_points)
        if fx.args.size != "full":
            for i, m in enumerate(swin):
                fx.put(f"{case}.swin.{i}", m)
            fx.put(f"{case}.proposals.class", o.enc_outputs_class[..., :length])
            fx.put(f"{case}.proposals.coord_logits", o.enc_outputs_coord_logits)
        scores = o.enc_outputs_class.max(-1).values
        # which of the encoder's positions became queries, best first
        fx.put(f"{case}.topk", scores.topk(cfg.num_queries, 1).indices)
        fx.meta["cases"][case] = {"seen": seen, "labels": labels, "text": proc.tokenizer.batch_decode(inputs["input_ids"]),
                                  **_gaps(scores, cfg.num_queries),
                                  **_found(fx, proc, case, o, inputs["input_ids"], [shown[name] for name in seen])}
        # with the same queries, or noise that swaps two of them would be all that is measured
        picked = fx.tensors[f"{case}.topk"].to(fx.args.device)
        with mock.patch.object(torch, "topk", lambda values, k, dim: (None, picked)):
            fx.noise(model, lambda: run(torch.float64)[1], out, "float64")


TINY = {
    "grounding_dino": (make_grounding_dino, dict(
        size={"shortest_edge": 64, "longest_edge": 96},
        # windows of 4 that the maps do not fill, and blocks that shift them
        swin=dict(embed_dim=8, depths=[2, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, patch_size=4, image_size=64),
        bert=dict(vocab_size=1152, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=64),
        detr=dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
                  decoder_ffn_dim=64, num_queries=24))),
}

_BERT = dict(vocab_size=30522)
FULL = {
    "grounding-dino-tiny": (make_grounding_dino, dict(
        size={"shortest_edge": 800, "longest_edge": 1333}, bert=_BERT,
        swin=dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, image_size=224))),
    "grounding-dino-base": (make_grounding_dino, dict(
        size={"shortest_edge": 800, "longest_edge": 1333}, bert=_BERT,
        swin=dict(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12, image_size=384))),
}
