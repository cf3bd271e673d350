"""The models that peers.py measures: each takes its `Bench`, and calls `measure` for every work."""

POOLED = "pixels → pooled output"
FEATURES = "pixels → image features"
PREFILL = "decoder: prefill"


def pixels(bench, batch, side):
    """In fp32 on the device, as Concord's are: the models cast them."""
    import torch

    return torch.randn(batch, 3, side, side, device=bench.args.device)


def batches(args):
    return [int(batch) for batch in args.batch.split(",")]


def dinov3(bench, args):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    sizes = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    side = 384
    if args.tiny:
        sizes, side = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3), 64
    config = DINOv3ViTConfig(num_register_tokens=4, image_size=side, **sizes)
    forward = bench.compile(bench.make(DINOv3ViTModel, config))
    for batch in batches(args):
        images = pixels(bench, batch, side)
        bench.measure(POOLED, batch, lambda: forward(images).pooler_output)


def siglip2(bench, args):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
    side = 384
    if args.tiny:
        sizes, side = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4), 60
    config = SiglipVisionConfig(image_size=side, patch_size=14, **sizes)
    model = bench.make(SiglipVisionModel, config)
    forward = bench.compile(model)
    for batch in batches(args):
        # Its patch convolution takes the pixels as they come, so they are cast once, before.
        images = pixels(bench, batch, side).to(bench.dtype)
        bench.measure(POOLED, batch, lambda: forward(images).pooler_output)


def florence2(bench, args):
    import torch
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    width, layers, heads, positions, side, vocabulary = 1024, 12, 16, 4096, 768, 51_289
    vision = dict(
        embed_dim=(256, 512, 1024, 2048), num_heads=(8, 16, 32, 64), num_groups=(8, 16, 32, 64), depths=(1, 1, 9, 1),
        window_size=12, projection_dim=width,
    )
    if args.tiny:
        width, layers, heads, positions, side, vocabulary = 32, 2, 4, 128, 96, 1389
        vision = dict(
            embed_dim=(16, 24, 32, 48), num_heads=(2, 3, 4, 6), num_groups=(2, 3, 4, 6), depths=(1, 1, 2, 1),
            window_size=4, projection_dim=width,
        )
    text = dict(
        model_type="bart", vocab_size=vocabulary + 64 - vocabulary % 64, d_model=width, encoder_layers=layers,
        decoder_layers=layers, encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, max_position_embeddings=positions,
        num_hidden_layers=layers,
    )
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=vocabulary)
    model = bench.make(Florence2ForConditionalGeneration, config)
    images = pixels(bench, 1, side).to(bench.dtype)

    def features():
        found = model.get_image_features(images)
        return getattr(found, "pooler_output", found)

    bench.measure(FEATURES, 1, features)
    image_tokens = features().shape[-2]
    # As long as "What does the image describe?" between <s> and </s>.
    ids = torch.tensor([[vocabulary] * image_tokens + [0, *range(4, 11), 2]], device=args.device)
    tokens = 20

    def generate():
        return model.generate(
            input_ids=ids, pixel_values=images, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
            max_new_tokens=tokens, min_new_tokens=tokens, decoder_start_token_id=2, eos_token_id=2, pad_token_id=1,
        )

    written = generate().shape[1] - 1
    assert written == tokens, f"{written} tokens were written"
    bench.measure(
        f"generate {tokens} tokens greedy", 1, generate, prompt_tokens=ids.shape[1], new_tokens=tokens
    )


QWEN3_8B = dict(
    hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128, vocab_size=151_936, max_position_embeddings=36_864,
)
QWEN3_TINY = dict(
    hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    head_dim=16, vocab_size=512, max_position_embeddings=4096,
)
NEW_TOKENS = 10


def molmo2(bench, args):
    """The text decoder of Molmo2-8B has the shape of Qwen3-8B, and every release of transformers has that."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(tie_word_embeddings=False, **(QWEN3_TINY if args.tiny else QWEN3_8B))
    model = bench.make(Qwen3ForCausalLM, config)
    length = args.prompt_tokens
    ids = torch.randint(0, config.vocab_size, (1, length), device=args.device)
    if bench.mode != "static":
        # What is compiled keeps no cache, which is less work than Concord does.
        use_cache = bench.mode == "eager"
        forward = bench.compile(model)
        bench.measure(
            PREFILL, 1, lambda: forward(input_ids=ids, use_cache=use_cache, logits_to_keep=1).logits,
            prompt_tokens=length,
        )
    if bench.mode in ("eager", "static"):
        measure_generate(bench, model, dict(input_ids=ids), f"decoder: prefill and {NEW_TOKENS} tokens greedy")


def measure_generate(bench, model, inputs, work):
    import torch

    named = {"cache_implementation": "static"} if bench.mode == "static" else {}
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    length = inputs["input_ids"].shape[1]

    def generate():
        return model.generate(
            **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), do_sample=False, num_beams=1,
            max_new_tokens=NEW_TOKENS, **named,
        )

    written = generate().shape[1] - length
    assert written == NEW_TOKENS, f"{written} tokens were written"
    bench.measure(work, 1, generate, prompt_tokens=length, new_tokens=NEW_TOKENS)


def molmo2_whole(bench, args):
    """Image and question to the logits of the answer, with the image of 640 × 480 that `concord bench` takes."""
    import torch
    from transformers import Molmo2Config, Molmo2ForConditionalGeneration

    vit = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
               num_key_value_heads=16, head_dim=72, image_size=[378, 378], patch_size=14, num_position_embeddings=729)
    layers, side, crops, grid, sizes = [-3, -9], 27, 5, [14, 14, 23, 23], dict(QWEN3_8B)
    if args.tiny:
        vit = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
                   num_key_value_heads=4, head_dim=8, image_size=[70, 70], patch_size=14, num_position_embeddings=25)
        layers, side, crops, grid, sizes = [-3, -4], 5, 2, [3, 3, 3, 3], dict(QWEN3_TINY)
    vocabulary, width = sizes["vocab_size"], sizes["hidden_size"]
    heads = vit["num_attention_heads"]
    config = Molmo2Config(
        vision_config=vit,
        adapter_config=dict(
            vision_feature_layer=layers, hidden_size=vit["hidden_size"], num_attention_heads=heads,
            num_key_value_heads=heads, head_dim=vit["head_dim"], hidden_act="silu",
            intermediate_size=sizes["intermediate_size"], text_hidden_size=width,
        ),
        text_config=dict(
            **sizes, additional_vocab_size=128, hidden_act="silu", use_qk_norm=True, qk_norm_type="qwen3",
            norm_after=False, rope_parameters=dict(rope_type="default", rope_theta=1e6), rms_norm_eps=1e-6,
            attention_bias=False,
        ),
        image_start_token_id=vocabulary, image_end_token_id=vocabulary + 1, image_patch_id=vocabulary + 2,
        image_col_id=vocabulary + 3, low_res_image_start_token_id=vocabulary + 4, image_low_res_id=vocabulary + 6,
        frame_start_token_id=vocabulary + 7, frame_end_token_id=vocabulary + 8, tie_word_embeddings=False,
    )
    model = bench.make(Molmo2ForConditionalGeneration, config)
    start, end, patch, column, whole_start = (vocabulary + index for index in range(5))
    ids = [whole_start, *[patch] * (grid[0] * grid[1]), end, start]
    for _ in range(grid[2]):
        ids += [*[patch] * grid[3], column]
    ids.append(end)
    # The question, about as long as that of `concord bench`.
    ids += range(4, 30)
    tokens = grid[0] * grid[1] + grid[2] * grid[3]
    device = args.device
    inputs = dict(
        input_ids=torch.tensor([ids], device=device),
        pixel_values=torch.randn(crops, side * side, 3 * vit["patch_size"] ** 2, device=device, dtype=bench.dtype),
        image_token_pooling=torch.randint(0, crops * side * side, (tokens, 4), device=device),
        image_grids=torch.tensor([grid], device=device),
        image_num_crops=torch.tensor([crops], device=device),
        mm_token_type_ids=torch.tensor([[int(token >= vocabulary) for token in ids]], device=device),
    )
    if bench.mode == "eager":
        bench.measure(
            "classify yes/no", 1, lambda: model(**inputs, use_cache=True, logits_to_keep=1).logits,
            prompt_tokens=len(ids),
        )
    measure_generate(bench, model, inputs, f"generate {NEW_TOKENS} tokens greedy")


RUN = {
    "dinov3": dinov3,
    "siglip2": siglip2,
    "florence2": florence2,
    "molmo2": molmo2,
    "molmo2-whole": molmo2_whole,
}
