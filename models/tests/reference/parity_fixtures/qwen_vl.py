"""Qwen3-VL and Qwen2.5-VL."""
import torch
from transformers import GenerationConfig

from .fixture import DTYPES, ask, to_device
from .tokens import QWEN2_5_VL_TEMPLATE, QWEN3_VL_TEMPLATE, qwen_vl_tokenizer
from .weights import build

_CASES = {"single": (["landscape"], "how many cones are on the road?"),
          "two_images": (["landscape", "portrait"], "What does the image describe?"),
          "video": (["clip"], "is there active road work?"),
          "video_bare": (["clip"], "is there active road work?"),
          "image_and_video": (["portrait", "clip"], "point to the traffic cone"),
          "text_only": ([], "describe in detail")}
_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
_HALF = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])


def _init(name, r, p):
    if name.endswith("ln_q.weight"):
        return 1.0 + 0.1 * r
    if name.endswith("pos_embed.weight"):
        return 0.3 * r
    # where it is tied to the head, a large one would make greedy decoding repeat its own last token
    return None


def _tied(name, r, p):
    return 0.1 * r if name.endswith("embed_tokens.weight") else _init(name, r, p)


def _config(tok, spec, cls):
    at = tok.convert_tokens_to_ids
    return cls(text_config=spec["text"], vision_config=spec["vision"], tie_word_embeddings=spec.get("tied", False),
               image_token_id=at("<|image_pad|>"), video_token_id=at("<|video_pad|>"),
               vision_start_token_id=at("<|vision_start|>"), vision_end_token_id=at("<|vision_end|>"))


def _as_transformers4(positions, kinds):
    """M-RoPE positions as transformers 4, which the authors of the model wrote, gave them: what comes after an image or video
    begins after the largest of all its positions, time included; transformers 5 looks at height and width only."""
    out, end, begin = positions.clone(), 0, 0
    kinds = kinds[0].tolist()
    for i in range(1, len(kinds) + 1):
        if i == len(kinds) or kinds[i] != kinds[begin]:
            span = positions[:, 0, begin:i]
            out[:, 0, begin:i] = span - span[1].min() + end
            end, begin = int(out[:, 0, begin:i].max()) + 1, i
    return out, torch.tensor([[end - len(kinds)]])


def _qwen_vl(fx, spec, cls, cfg, proc, vision):
    """Save the model and its processor and ask it. `vision(model, pixels, grid)` gives {name: tensor} and the states of the ViT."""
    tok = proc.tokenizer
    model = build(cls, cfg, fx.args.seed, DTYPES[fx.args.dtype], _tied if spec.get("tied") else _init)
    model.generation_config = GenerationConfig(
        bos_token_id=tok.pad_token_id, pad_token_id=tok.pad_token_id, eos_token_id=[tok.eos_token_id, tok.pad_token_id],
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.0)
    model.save_pretrained(fx.snapshot)
    del model
    proc.image_processor.save_pretrained(fx.snapshot)
    proc.video_processor.save_pretrained(fx.snapshot)
    proc.save_pretrained(fx.snapshot)

    model = fx.load(cls)
    asked = {case: _CASES[case] for case in spec["cases"]}
    needed = {name for seen, _ in asked.values() for name in seen}
    shown = {name: fx.image(name, *size) for name, size in (("landscape", (160, 120)), ("portrait", (40, 70))) if name in needed}
    clip, metadata = fx.video("clip", 60, 36, frames=14, fps=4.0) if "clip" in needed else (None, None)
    fx.meta["cases"] = {}
    for case, (seen, question) in asked.items():
        content = [{"type": "video" if name == "clip" else "image"} for name in seen] + [{"type": "text", "text": question}]
        prompt = proc.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
        if case == "video_bare":              # transformers 4 replaced all three tokens, 5 the middle one
            prompt = prompt.replace(_VIDEO, "<|video_pad|>")
        images = [shown[name] for name in seen if name in shown]
        videos = dict(videos=[clip], video_metadata=[metadata], do_sample_frames=True, fps=2.0, return_metadata=True) if "clip" in seen else {}
        batch = proc(text=prompt, images=images or None, return_tensors="pt", **videos)
        facts = {}
        if videos:
            taken = batch.pop("video_metadata")[0]
            facts = {"frames_indices": [int(i) for i in taken.frames_indices]}
            if "second_per_grid_ts" in batch:
                facts["second_per_grid_ts"] = [float(t) for t in batch["second_per_grid_ts"]]
        inputs = to_device(batch, fx.args)
        if images or videos:
            grids = {k: inputs[k] for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask") if k in inputs}
            positions, deltas = model.model.get_rope_index(inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], **grids)
            fx.put(f"{case}.position_ids", positions)
            fx.put(f"{case}.rope_deltas", deltas)
            if "second_per_grid_ts" in inputs:
                positions, deltas = _as_transformers4(positions, inputs["mm_token_type_ids"])
                fx.put(f"{case}.transformers4.position_ids", positions)
                fx.put(f"{case}.transformers4.rope_deltas", deltas)
                fx.put(f"{case}.transformers4.logits", model(**inputs, position_ids=positions, use_cache=False).logits[:, -4:])

        def features():
            out = {}
            for kind, pixels, grid in (("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw")):
                if pixels in inputs:
                    tensors, states = vision(model.model.visual, inputs[pixels].to(model.dtype), inputs[grid])
                    out.update({f"{kind}.{k}": v for k, v in tensors.items()})
                    if fx.args.size != "full" and case in ("single", "video"):
                        out.update({f"{kind}.vision.hidden_states.{i}": state for i, state in enumerate(states)})
            return out

        seq = ask(fx, model, case, inputs, features, brief=case in ("image_and_video", "video_bare"))
        length = inputs["input_ids"].shape[1]
        fx.meta["cases"][case] = {"prompt": tok.decode(inputs["input_ids"][0]), "prompt_tokens": length, "question": question,
                                  "seen": seen, "text": tok.decode(seq[0, length:]), **facts}


@torch.no_grad()
def make_qwen3_vl(fx, spec):
    """Qwen3-VL: ViT with an interpolated position table and axial RoPE, features of several of its layers added to the first
    layers of the text tower, interleaved M-RoPE; the time of video frames is written into the prompt."""
    from transformers import (Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor,
                              Qwen3VLVideoProcessor)
    tok = qwen_vl_tokenizer(spec["text"]["vocab_size"], QWEN3_VL_TEMPLATE)
    patch = dict(patch_size=16, temporal_patch_size=2, merge_size=2, resample=3, **_HALF)
    proc = Qwen3VLProcessor(image_processor=Qwen2VLImageProcessor(size=spec["image_pixels"], **patch), tokenizer=tok,
                            video_processor=Qwen3VLVideoProcessor(size=spec["video_pixels"], **patch), chat_template=QWEN3_VL_TEMPLATE)

    def vision(visual, pixels, grid):
        o = visual(pixels, grid_thw=grid, output_hidden_states=True)
        out = {"vision.last_hidden_state": o.last_hidden_state, "features": o.pooler_output}
        out.update({f"deepstack.{i}": v for i, v in enumerate(o.deepstack_features)})
        return out, o.hidden_states

    _qwen_vl(fx, spec, Qwen3VLForConditionalGeneration, _config(tok, spec, Qwen3VLConfig), proc, vision)


@torch.no_grad()
def make_qwen2_5_vl(fx, spec):
    """Qwen2.5-VL: ViT with windowed attention in most layers, M-RoPE in sections, the time of video frames in its positions."""
    from transformers import (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessor,
                              Qwen2VLVideoProcessor)
    tok = qwen_vl_tokenizer(spec["text"]["vocab_size"], QWEN2_5_VL_TEMPLATE)
    patch = dict(patch_size=14, temporal_patch_size=2, merge_size=2, resample=3)      # mean and std are CLIP's, the default
    proc = Qwen2_5_VLProcessor(image_processor=Qwen2VLImageProcessor(size=spec["image_pixels"], **patch), tokenizer=tok,
                               video_processor=Qwen2VLVideoProcessor(size=spec["video_pixels"], **patch), chat_template=QWEN2_5_VL_TEMPLATE)

    def vision(visual, pixels, grid):
        o = visual(pixels, grid_thw=grid, output_hidden_states=True)
        return {"vision.last_hidden_state": o.last_hidden_state, "features": o.pooler_output}, o.hidden_states

    _qwen_vl(fx, spec, Qwen2_5_VLForConditionalGeneration, _config(tok, spec, Qwen2_5_VLConfig), proc, vision)


def _interleaved(theta, section):
    return dict(rope_type="default", rope_theta=theta, mrope_section=section, mrope_interleaved=True)


_TINY_QWEN3 = dict(
    cases=list(_CASES), image_pixels={"shortest_edge": 3072, "longest_edge": 16384}, video_pixels={"shortest_edge": 3072, "longest_edge": 65536},
    vision=dict(depth=4, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=16, spatial_merge_size=2, temporal_patch_size=2,
                out_hidden_size=48, num_position_embeddings=25, deepstack_visual_indexes=[0, 2], hidden_act="gelu_pytorch_tanh"),
    text=dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
              vocab_size=512, max_position_embeddings=1024, rms_norm_eps=1e-6, rope_parameters=_interleaved(5_000_000.0, [4, 2, 2])))
_QWEN3_VISION = dict(patch_size=16, spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=2304, num_heads=16,
                     hidden_act="gelu_pytorch_tanh")
_QWEN3_TEXT = dict(num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936,
                   max_position_embeddings=262144, rms_norm_eps=1e-6, rope_parameters=_interleaved(5_000_000.0, [24, 20, 20]))
_QWEN3_PIXELS = dict(cases=list(_CASES), image_pixels={"shortest_edge": 65536, "longest_edge": 16777216},
                     video_pixels={"shortest_edge": 4096, "longest_edge": 25165824})
_QWEN2_5_CASES = [case for case in _CASES if case != "video_bare"]

TINY = {
    "qwen3_vl": (make_qwen3_vl, _TINY_QWEN3),
    # the head is the embedding table: the 4B checkpoint
    "qwen3_vl_tied": (make_qwen3_vl, dict(
        _TINY_QWEN3, tied=True, cases=["single", "text_only"], vision=dict(_TINY_QWEN3["vision"], depth=2, deepstack_visual_indexes=[0]),
        text=dict(_TINY_QWEN3["text"], num_hidden_layers=2))),
    # windows of 2x2 merged patches, which the grids do not fill
    "qwen2_5_vl": (make_qwen2_5_vl, dict(
        cases=_QWEN2_5_CASES, image_pixels={"shortest_edge": 3136, "longest_edge": 16384}, video_pixels={"shortest_edge": 3136, "longest_edge": 16384},
        vision=dict(depth=4, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
                    out_hidden_size=48, window_size=56, fullatt_block_indexes=[1, 3], tokens_per_second=2, hidden_act="silu"),
        text=dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
                  vocab_size=512, max_position_embeddings=1024, rms_norm_eps=1e-6,
                  rope_parameters=dict(rope_type="default", rope_theta=1_000_000.0, mrope_section=[2, 3, 3])))),
}

FULL = {
    "qwen3-vl-4b": (make_qwen3_vl, dict(
        _QWEN3_PIXELS, tied=True,
        vision=dict(depth=24, hidden_size=1024, intermediate_size=4096, out_hidden_size=2560, deepstack_visual_indexes=[5, 11, 17],
                    **_QWEN3_VISION),
        text=dict(hidden_size=2560, intermediate_size=9728, **_QWEN3_TEXT))),
    "qwen3-vl-8b": (make_qwen3_vl, dict(
        _QWEN3_PIXELS,
        vision=dict(depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=4096, deepstack_visual_indexes=[8, 16, 24],
                    **_QWEN3_VISION),
        text=dict(hidden_size=4096, intermediate_size=12288, **_QWEN3_TEXT))),
    "qwen2.5-vl-7b": (make_qwen2_5_vl, dict(
        cases=_QWEN2_5_CASES, image_pixels={"shortest_edge": 3136, "longest_edge": 12845056}, video_pixels={"shortest_edge": 3136, "longest_edge": 12845056},
        vision=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14, spatial_merge_size=2,
                    temporal_patch_size=2, out_hidden_size=3584, window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
                    tokens_per_second=2, hidden_act="silu"),
        text=dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                  vocab_size=152064, max_position_embeddings=128000, rms_norm_eps=1e-6,
                  rope_parameters=dict(rope_type="default", rope_theta=1_000_000.0, mrope_section=[16, 24, 24])))),
}
