"""How the nano Florence-2 is asked: its tokenizer, its prompts, and the votes that Concord takes from it."""
import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import byte_level
import captions

START, PAD, END = 2, 1, 2        # the decoder starts with the token that ends texts, then <s>
BEGIN = 0
BINS = 1000
CAPTION = "What does the image describe?"
OBJECTS = "Locate the objects with category name in the image."
SEARCH = "Locate {} in the image."
OTHER_QUESTIONS = ["What is the text in the image?", "Describe in detail what is shown in the image.",
                   "Describe with a paragraph what is shown in the image.", "Locate the phrases in the caption: "]
TASK_TOKENS = ["<od>", "</od>", "<ocr>", "</ocr>", "<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>",
               "</grounding>", "<and>", "<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>",
               "</region_to_desciption>", "<proposal>", "</proposal>", "<poly>", "</poly>", "<seg>", "</seg>"]
PHRASES = ["{}", "a {} sign", "the {} sign", "a {} traffic sign"]


def make_tokenizer(names):
    """BART's: <s> 0, <pad> 1, </s> 2, <unk> 3; at the end <mask>, <loc_0> … <loc_999>, the task tokens, <image>."""
    texts = [t.format(n) for n in names.values() for t in [*captions.TEMPLATES, *PHRASES]]
    texts += captions.NO_SIGN + captions.ROAD_WORK + captions.NO_ROAD_WORK + [text for texts in captions.PROMPTS for text in texts]
    corpus = texts + [CAPTION, OBJECTS, *OTHER_QUESTIONS] + [SEARCH.format(text) for text in texts]
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned, merges = byte_level.learn(corpus, pre_tokenizer)
    first, last = ["<s>", "<pad>", "</s>", "<unk>"], ["<mask>", *(f"<loc_{i}>" for i in range(BINS)), *TASK_TOKENS, "<image>"]
    tokenizer = byte_level.build(first + learned + last, merges, first + last, pre_tokenizer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", END), ("<s>", BEGIN), True, False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                   pad_token="<pad>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
                                   model_max_length=1024, extra_special_tokens={"image_token": "<image>"})


def ids_of(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def padded(rows, device):
    """[rows, longest], filled up with <pad>."""
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=device)


def encode(model, features, questions):
    """Image features [n, image tokens, width] and questions [n or 1, tokens] → states and mask of the encoder."""
    embedded = model.get_input_embeddings()(questions).expand(len(features), -1, -1)
    mask = torch.cat([questions.new_ones(len(questions), features.shape[1]), (questions != PAD).long()], 1).expand(len(features), -1)
    whole = bool((questions != PAD).all()) if len(questions) == 1 else False
    states = model.model.language_model.encoder(inputs_embeds=torch.cat([features.to(embedded.dtype), embedded], 1),
                                                attention_mask=None if whole else mask).last_hidden_state
    return states, mask


def caption_states(model, tokenizer, features):
    question = padded([[BEGIN, *ids_of(tokenizer, [CAPTION])[0], END]], features.device)
    return encode(model, features, question)[0]


def decode(decoder, inputs, memory):
    """The decoder's states of each text after each image, as its own forward computes them, but without a copy of
    the image for each text: inputs [texts, length], memory [n, tokens, width] → [n, texts, length, width]."""
    causal = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool, device=inputs.device).tril()[None, None]
    x = decoder.layernorm_embedding(decoder.embed_tokens(inputs) + decoder.embed_positions(inputs))[None]
    for layer in decoder.layers:
        # Before the first look at an image, a text's states are the same for all of them.
        attended = layer.self_attn(x.flatten(0, 1), attention_mask=causal)[0].view(x.shape)
        x = layer.self_attn_layer_norm(x + attended).expand(len(memory), -1, -1, -1)
        seen = layer.encoder_attn(x.flatten(1, 2), key_value_states=memory)[0].view(x.shape)
        x = layer.encoder_attn_layer_norm(x + seen)
        x = layer.final_layer_norm(x + layer.fc2(layer.activation_fn(layer.fc1(x))))
    return x


def caption_scores(model, tokenizer, memory, texts):
    """The mean log-probability of a token of each text, </s> included and <s> not: [n, texts]."""
    rows = padded([[START, BEGIN, *ids, END] for ids in ids_of(tokenizer, texts)], memory.device)
    targets = rows[:, 2:]
    logits = model.lm_head(decode(model.model.language_model.decoder, rows[:, :-1], memory)[:, :, 1:]).float()
    index = targets[None, :, :, None].expand(len(memory), -1, -1, -1)
    found = logits.gather(-1, index).squeeze(-1) - logits.logsumexp(-1)
    shares = (targets != PAD).float()
    return (found * shares).sum(-1) / shares.sum(-1)


def label_scores(model, tokenizer, memory, prompts):
    """A label's logit is the mean over its prompts: [n, labels]."""
    scores = caption_scores(model, tokenizer, memory, [text for texts in prompts for text in texts])
    return torch.stack([part.mean(1) for part in scores.split([len(texts) for texts in prompts], 1)], 1)


@torch.no_grad()
def logits(model, tokenizer, pixels, prompts):
    """Votes by likelihood, as Concord takes them."""
    rows = []
    for part in pixels.split(128):
        memory = caption_states(model, tokenizer, model.get_image_features(part).pooler_output)
        rows.append(label_scores(model, tokenizer, memory, prompts))
    return torch.cat(rows)


def log_odds(logits, first):
    """Of a location as the next token: logits [..., vocabulary] → [...]."""
    others = torch.cat([logits[..., :first], logits[..., first + BINS:]], -1)
    return logits[..., first:first + BINS].logsumexp(-1) - others.logsumexp(-1)


@torch.no_grad()
def search(model, tokenizer, pixels, phrase):
    """Votes by detection: log-odds that a box follows the phrase, and the most probable box in 0…1."""
    first = tokenizer.convert_tokens_to_ids("<loc_0>")
    question, prefix = ids_of(tokenizer, [SEARCH.format(phrase), phrase])
    odds, boxes = [], []
    for part in pixels.split(512):
        features = model.get_image_features(part).pooler_output
        memory, _ = encode(model, features, padded([[BEGIN, *question, END]], part.device))
        written = torch.tensor([[START, BEGIN, *prefix]], device=part.device).expand(len(part), -1)
        for place in range(4):
            states = model.model.language_model.decoder(input_ids=written, encoder_hidden_states=memory, use_cache=False)
            following = model.lm_head(states.last_hidden_state[:, -1]).float()
            if place == 0:
                odds.append(log_odds(following, first))
            best = following[:, first:first + BINS].argmax(-1, keepdim=True) + first
            written = torch.cat([written, best], 1)
        boxes.append((written[:, -4:] - first + 0.5) / BINS)
    return torch.cat(odds), torch.cat(boxes)


@torch.no_grad()
def difference(model, tokenizer, pixels, prompts):
    """The largest difference of `logits` to those of transformers' own forward, which is asked one text at a time."""
    ours = logits(model, tokenizer, pixels, prompts)
    count = model.get_image_features(pixels[:1]).pooler_output.shape[1]
    question = [model.config.image_token_id] * count + [BEGIN, *ids_of(tokenizer, [CAPTION])[0], END]
    asked, largest = torch.tensor([question], device=pixels.device).expand(len(pixels), -1), 0.0
    for label, texts in enumerate(prompts):
        means = []
        for ids in ids_of(tokenizer, texts):
            row = torch.tensor([[START, BEGIN, *ids, END]], device=pixels.device).expand(len(pixels), -1)
            output = model(input_ids=asked, attention_mask=torch.ones_like(asked), pixel_values=pixels, decoder_input_ids=row[:, :-1])
            found = F.log_softmax(output.logits[:, 1:].float(), -1).gather(-1, row[:, 2:, None])
            means.append(found.squeeze(-1).mean(1))
        largest = max(largest, (torch.stack(means).mean(0) - ours[:, label]).abs().max().item())
    return largest
