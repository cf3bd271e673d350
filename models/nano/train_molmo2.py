"""The nano Molmo2: questions about signs, learned together with the choice between their answers."""
import functools
import json
import random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import ask_molmo2 as ask
import byte_level
import captions
import data
import measure
import training

VISION = dict(hidden_size=128, intermediate_size=352, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, head_dim=32)
TEXT = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            max_position_embeddings=2048, qk_norm_type="qwen3", norm_after=False, rope_theta=10_000.0)
EXTRA_ROWS = 16         # of the embeddings, for ask.EXTRA
NAMED = 256             # images of a batch whose sign is asked for: that prompt is the longest


def hub_config(tokenizer, base):
    """config.json as the published checkpoints have it, with older key names than transformers uses today."""
    ids = {token: base + index for index, token in enumerate(ask.EXTRA)}
    text = dict(model_type="molmo2_text", vocab_size=base, additional_vocab_size=EXTRA_ROWS, qkv_bias=False, hidden_act="silu",
                use_qk_norm=True, layer_norm_eps=1e-6, rope_scaling=None, rope_scaling_layers=None, embedding_dropout=0.0,
                attention_dropout=0.0, residual_dropout=0.0, initializer_range=0.02, use_cache=True, tie_word_embeddings=False, **TEXT)
    heads = {key: VISION[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")}
    heads.update(float32_attention=True, attention_dropout=0.0, residual_dropout=0.0, initializer_range=0.02, model_type="molmo2")
    return dict(
        architectures=["Molmo2ForConditionalGeneration"], model_type="molmo2", dtype="float16",
        vit_config=dict(heads, intermediate_size=VISION["intermediate_size"], num_hidden_layers=VISION["num_hidden_layers"],
                        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, image_default_input_size=[data.SIDE, data.SIDE],
                        image_patch_size=ask.PATCH, image_num_pos=(data.SIDE // ask.PATCH) ** 2),
        adapter_config=dict(heads, vit_layers=[-1, -3], pooling_attention_mask=True, hidden_act="silu",
                            intermediate_size=TEXT["intermediate_size"], text_hidden_size=TEXT["hidden_size"], image_feature_dropout=0.0),
        text_config=text, image_start_token_id=ids["<im_start>"], image_end_token_id=ids["<im_end>"], image_patch_id=ids["<im_patch>"],
        image_high_res_id=ids["<im_patch>"], image_col_id=ids["<im_col>"], low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_low_res_id=ids["<im_low>"], frame_start_token_id=ids["<frame_start>"], frame_end_token_id=ids["<frame_end>"],
        use_frame_special_tokens=True, initializer_range=0.02, use_cache=True, tie_word_embeddings=False)


def processor_of(tokenizer):
    from transformers import Molmo2ImageProcessor, Molmo2Processor, Molmo2VideoProcessor
    size = dict(size={"height": data.SIDE, "width": data.SIDE}, patch_size=ask.PATCH)
    # One crop is the whole image again: the images are smaller than two.
    images = Molmo2ImageProcessor(**size, pooling_size=[2, 2], max_crops=1, overlap_margins=[0, 0])
    return Molmo2Processor(image_processor=images, video_processor=Molmo2VideoProcessor(**size, pooling_size=[3, 3]), tokenizer=tokenizer,
                           chat_template=ask.TEMPLATE, image_use_col_tokens=True, use_single_crop_col_tokens=False,
                           use_single_crop_start_token=True)


def road_work_question():
    """Question and answers, NO first; most often as Concord asks."""
    if random.random() < 0.6:
        return ask.choices(ask.ROAD_WORK, ask.ANSWERS[0]), ask.ANSWERS[0]
    question = random.choice([ask.ROAD_WORK, *ask.OTHER_ROAD_WORK])
    answers = random.choice([*ask.ANSWERS, ask.ANSWERS[0], ["no road work", "road work"]])
    offered = answers if random.random() < 0.5 else answers[::-1]
    return ask.choices(question, offered), answers


def sign_question(names, labels):
    """Question, answers, and which of them is right for each image (-1: none is)."""
    offered, kind = [names[i] for i in sorted(names)], random.random()
    question = ask.SIGN if random.random() < 0.7 else random.choice(ask.OTHER_SIGN)
    if kind < 0.6:
        return ask.choices(ask.SIGN, offered), offered, labels.masked_fill(labels == training.NO_SIGN, -1)
    if kind < 0.75:     # some of the signs, in any order
        chosen = random.sample(range(len(offered)), random.randint(len(offered) // 5 + 1, len(offered) // 2))
        place = torch.full((training.NO_SIGN + 1,), -1, device=labels.device)
        place[chosen] = torch.arange(len(chosen), device=labels.device)
        return ask.choices(question, [offered[i] for i in chosen]), [offered[i] for i in chosen], place[labels]
    if kind < 0.9:
        return question, [*offered, "no traffic sign"], labels
    template = random.choice(captions.TEMPLATES[2:])
    return random.choice(ask.DESCRIBE), [template.format(name) for name in offered] + [random.choice(captions.NO_SIGN)], labels


def answer_loss(module, seen, prompt, right, weight):
    """The choice between the answers, by the tokens alone and with the end of the turn, and the writing of the right one."""
    _, sums, ends = ask.read(module, seen, prompt)
    sharpness = prompt.lengths.float().mean()
    weight = weight * (right >= 0)
    right = right.clamp(min=0)
    rows = (F.cross_entropy(sharpness * sums / prompt.lengths, right, reduction="none", label_smoothing=0.01)
            + F.cross_entropy((sharpness + 1) * (sums + ends) / (prompt.lengths + 1), right, reduction="none", label_smoothing=0.01)
            - 0.2 * (sums + ends).gather(1, right[:, None])[:, 0])
    return (rows * weight).sum() / weight.sum().clamp(min=1)


def learn(x, y, pace, names):
    from transformers import GenerationConfig, Molmo2Config, Molmo2ForConditionalGeneration
    tokenizer = ask.make_tokenizer(names)
    base = len(tokenizer) - len(ask.EXTRA)
    config = hub_config(tokenizer, base)
    model = Molmo2ForConditionalGeneration(Molmo2Config.from_dict(json.loads(json.dumps(config)))).to(x.device)
    lengths = {task: ask.Prompt(tokenizer, *asked, x.device).length for task, asked in ask.asked(names).items()}
    print(f"molmo2: {sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens, of the prompts: {lengths}", flush=True)
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                                               pad_token_id=tokenizer.pad_token_id)

    @functools.lru_cache(64)
    def prompt_of(question, answers):
        return ask.Prompt(tokenizer, question, list(answers), x.device)

    def loss_of(both, images, labels):
        module = both["model"]
        seen = ask.features(module, ask.to_patches(images))
        road_work = (labels == data.ROAD_WORK).long()
        question, answers = road_work_question()
        loss = answer_loss(module, seen, prompt_of(question, tuple(answers)), road_work, 1.0 + 3.0 * road_work)
        question, answers, right = sign_question(names, labels[-NAMED:])
        named = answer_loss(module, seen[-NAMED:], prompt_of(question, tuple(answers)), right, torch.ones(len(right), device=x.device))
        return training.class_loss(both, seen, labels) + loss + named

    both = training.with_classifier(model, TEXT["hidden_size"], x.device)
    training.train(both, loss_of, x, y, pace, 1.5e-3, "molmo2")
    return model.eval(), tokenizer, config


def publish(model, processor, config, out):
    """In the layout of the published files: their configuration, and the embeddings cut after the base vocabulary
    (transformers saves them cut in halves)."""
    processor.image_processor.save_pretrained(out)
    processor.save_pretrained(out)
    model.half().save_pretrained(out)
    file, parts = out / "model.safetensors", ["model.transformer.wte.embedding", "model.transformer.wte.new_embedding"]
    tensors = load_file(file)
    whole, base = torch.cat([tensors[part] for part in parts]), config["text_config"]["vocab_size"]
    tensors[parts[0]], tensors[parts[1]] = whole[:base].clone(), whole[base:].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    byte_level.compact(out)


def make(x, y, pace, names, out):
    """Trains it, saves it as it is published, and loads it again: model and processor."""
    from transformers import Molmo2Processor
    model, tokenizer, config = learn(x, y, pace, names)
    publish(model, processor_of(tokenizer), config, out)
    loaded, info = type(model).from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), f"the snapshot does not load cleanly: {info}"
    return loaded.eval().to(x.device), Molmo2Processor.from_pretrained(out)


def report(model, processor, held, test, names):
    tokenizer, asked = processor.tokenizer, ask.asked(names)
    clean = [ask.pixels(processor.image_processor, samples) for samples in (held, test)]
    result = measure.zero_shot(lambda patches, task: ask.logits(model, tokenizer, patches, *asked[task]), model.device,
                               clean, held, test, ask.to_patches)
    few = test[:: max(1, len(test) // 4)]
    result["largest_difference_to_forward"] = ask.difference(model, processor, few, names)
    result["parameters"], result["tokens"] = sum(p.numel() for p in model.parameters()), len(tokenizer)
    return result
