"""How the nano Molmo2 is asked: its tokenizer, its prompts, and the votes that Concord takes from it."""
import torch
import torch.nn.functional as F
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import byte_level
import captions
import data

PATCH = 8        # pixels
END = "<|im_end|>"
EXTRA = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>", "<frame_start>",
         "<frame_end>", "<|video|>", "<|points|>", "<|token_index|>", "<|vit_index|>", "<|vit_loc|>"]
# The published template, for the turns that are used here.
TEMPLATE = (
    "{%- set n = namespace(v=0) -%}{%- for m in messages -%}{%- if m['content'] is not string -%}"
    "{%- for c in m['content'] -%}{%- if c['type'] == 'image' -%}{%- set n.v = n.v + 1 -%}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if n.v == 1 -%}{{ '<|image|>' }}{%- elif n.v > 1 -%}{%- for i in range(n.v) -%}{{ 'Image ' ~ (i + 1) ~ '<|image|>' }}"
    "{%- endfor -%}{%- endif -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' ~ m['role'] ~ '\\n' }}{%- if m['content'] is string -%}{{ m['content'] }}"
    "{%- else -%}{%- for c in m['content'] -%}{%- if c['type'] == 'text' -%}{{ c['text'] }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")
# Qwen's words, but numbers are one word: "20" is one token.
WORDS = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|[^\r\n\p{L}\p{N}]?\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
ROAD_WORK = "Is there active road construction in this image?"
OTHER_ROAD_WORK = ["Is there road work in this image?", "Does this image show road work?", "Is this a road work sign?",
                   "Does this sign warn of road work?", "Is there active road work in this picture?"]
SIGN = "Which traffic sign does this image show?"
OTHER_SIGN = ["What traffic sign is this?", "Which sign is this?", "What does this traffic sign mean?"]
DESCRIBE = ["Describe this image.", "Describe the image.", "What does this image show?"]
ANSWERS = [["NO", "YES"], ["No", "Yes"], ["no", "yes"]]


def choices(question, answers):
    """As Concord words it."""
    return f"{question} Answer with one of: {', '.join(answers)}."


def make_tokenizer(names):
    """Qwen's byte-level BPE; Molmo2's own tokens come after the base vocabulary."""
    labels = [names[i] for i in sorted(names)]
    questions = [ROAD_WORK, *OTHER_ROAD_WORK, SIGN, *OTHER_SIGN, *DESCRIBE]
    texts = [t.format(n) for n in labels for t in captions.TEMPLATES] + captions.NO_SIGN + captions.ROAD_WORK + captions.NO_ROAD_WORK
    words = [word for pair in ANSWERS for answer in pair for word in (answer, f" {answer}")]
    corpus = [choices(question, labels) for question in questions] + texts + words + ["user\n", "assistant\n", "Image 1"]
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Split(WORDS, "isolated"),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    learned, merges = byte_level.learn(corpus, splitter)
    special = ["<|endoftext|>", "<|im_start|>", END]
    fill = [f"<fill_{i}>" for i in range(-(len(learned) + len(special)) % 16)]
    tokenizer = byte_level.build(learned + special + fill + EXTRA, merges, special + EXTRA, splitter)
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token="<|endoftext|>",
                                   padding_side="left", additional_special_tokens=EXTRA, chat_template=TEMPLATE)


def image_tokens(tokenizer):
    """Of the view of the whole and of the only crop, which is the same view again."""
    start, crop_start, end, patch, column = tokenizer.convert_tokens_to_ids(
        ["<low_res_im_start>", "<im_start>", "<im_end>", "<im_patch>", "<im_col>"])
    rows = pooled() * [*pooled() * [patch], column]
    return [start, *pooled() ** 2 * [patch], end, crop_start, *rows, end]


class Prompt:
    """The tokens of a question about one image, and answers to it laid one after the other, each seeing the
    question and itself."""

    def __init__(self, tokenizer, question, answers, device):
        end = tokenizer.convert_tokens_to_ids(END)
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        before, after = tokenizer(text.split("<|image|>"), add_special_tokens=False)["input_ids"]
        image = image_tokens(tokenizer)
        question = [end, *before, *image, *after]
        answers = tokenizer(answers, add_special_tokens=False)["input_ids"]
        tensor = lambda values, **kw: torch.tensor(values, device=device, **kw)
        self.length, self.first = len(question), tensor([ids[0] for ids in answers])
        self.lengths = tensor([len(ids) for ids in answers])
        self.ids = tensor(question + [token for ids in answers for token in ids])
        self.follows = tensor([token for ids in answers for token in [*ids[1:], end]])
        self.label = tensor([index for index, ids in enumerate(answers) for _ in ids])
        place = tensor([place for ids in answers for place in range(len(ids))])
        self.is_end = place == self.lengths[self.label] - 1
        self.positions = torch.cat([torch.arange(self.length, device=device), self.length + place])
        self.patches = (self.ids == tokenizer.convert_tokens_to_ids("<im_patch>")).nonzero()[:, 0]
        is_image = torch.zeros(len(self.ids), dtype=torch.bool, device=device)
        is_image[1 + len(before):1 + len(before) + len(image)] = True
        owner = torch.cat([tensor(self.length * [-1], dtype=torch.long), self.label])
        causal = torch.ones(len(self.ids), len(self.ids), dtype=torch.bool, device=device).tril()
        self.allowed = causal & ((owner[None] == -1) | (owner[None] == owner[:, None])) | is_image[None] & is_image[:, None]


def pooled():
    """Patches of a crop's side after 2 × 2 pooling."""
    return data.SIDE // PATCH // 2


def to_patches(images):
    """Images in 0…1 [n, 3, side, side] → what the image tower takes, [n, patches, values]."""
    n, sides = len(images), images.shape[-1] // PATCH
    x = (images * 2 - 1).permute(0, 2, 3, 1).reshape(n, sides, PATCH, sides, PATCH, 3)
    return x.transpose(2, 3).reshape(n, sides * sides, PATCH * PATCH * 3)


def features(model, patches):
    """One view's pooled features, [n, tokens, width]."""
    n, half, side = len(patches), pooled(), 2 * pooled()
    grid = torch.arange(side * side, device=patches.device).view(half, 2, half, 2).transpose(1, 2).reshape(-1, 4)
    pooling = (grid[None] + side * side * torch.arange(n, device=patches.device)[:, None, None]).flatten(0, 1)
    grids = torch.tensor([[half, half, 0, 0]]).expand(n, -1)
    return torch.cat(model.model.get_image_features(patches, pooling, grids).pooler_output).view(n, half * half, -1)


def read(model, seen, prompt):
    """Log-probabilities: of any token after the question [n, vocabulary], summed over each answer's tokens
    [n, answers], and of the end after each of them [n, answers]."""
    embedded = model.get_input_embeddings()(prompt.ids).expand(len(seen), -1, -1)
    added = torch.zeros_like(embedded).index_copy(1, prompt.patches, torch.cat([seen, seen], 1).to(embedded.dtype))
    states = model.model.language_model(inputs_embeds=embedded + added, attention_mask=prompt.allowed[None, None],
                                        position_ids=prompt.positions[None], use_cache=False).last_hidden_state
    written = F.log_softmax(model.lm_head(states[:, prompt.length - 1:]).float(), -1)
    after = written[:, 1:].gather(-1, prompt.follows[None, :, None].expand(len(seen), -1, -1)).squeeze(-1)
    sums = written[:, 0, prompt.first].index_add(1, prompt.label, after.masked_fill(prompt.is_end, 0.0))
    return written[:, 0], sums, after[:, prompt.is_end]


def variants(tokenizer, answer):
    """The ways to write an answer that are one token."""
    ways = [way for text in (answer, answer.upper(), answer.lower(), answer.capitalize()) for way in (text, f" {text}")]
    return sorted({ids[0] for ids in tokenizer(ways, add_special_tokens=False)["input_ids"] if len(ids) == 1})


@torch.no_grad()
def logits(model, tokenizer, patches, question, answers):
    """Votes as Concord takes them: the probability of an answer in any way to write it as one token, or the mean
    log-probability of the tokens of longer ones, the end of the turn among them."""
    prompt = Prompt(tokenizer, question, answers, patches.device)
    single, rows = bool((prompt.lengths == 1).all()), []
    for part in patches.split(256):
        following, sums, ends = read(model, features(model, part), prompt)
        if single:
            rows.append(torch.stack([following[:, variants(tokenizer, answer)].logsumexp(-1) for answer in answers], 1))
        else:
            rows.append((sums + ends) / (prompt.lengths + 1))
    return torch.cat(rows)


def asked(names):
    """Question and answers of each task, in the order of the labels."""
    labels = [names[i] for i in sorted(names)]
    return {"roadwork": (choices(ROAD_WORK, ANSWERS[0]), ANSWERS[0]), "traffic_sign": (choices(SIGN, labels), labels)}


def pixels(processor, samples):
    """What transformers' own image processor makes of the images: the view of the whole, [n, patches, values]."""
    rows = []
    for _, _, image in samples:
        whole, crop = processor([image], return_tensors="pt")["pixel_values"]
        assert torch.equal(whole, crop), "the only crop is the whole view again"
        rows.append(whole)
    return torch.stack(rows)


@torch.no_grad()
def difference(model, processor, samples, names):
    """The largest difference of `logits` to those of transformers' own processor and forward, one answer at a time."""
    tokenizer, largest = processor.tokenizer, 0.0
    for question, answers in asked(names).values():
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        for sample in samples:
            ours = logits(model, tokenizer, pixels(processor.image_processor, [sample]).to(model.device), question, answers)[0]
            inputs = {key: value.to(model.device) for key, value in processor(images=[sample[2]], text=text, return_tensors="pt").items()}
            asked_with, kinds = inputs.pop("input_ids"), inputs.pop("mm_token_type_ids")
            inputs.pop("attention_mask")
            written = tokenizer(answers, add_special_tokens=False)["input_ids"]
            longer = any(len(ids) > 1 for ids in written)
            for index, ids in enumerate(written[:5]):
                ids = [*ids, tokenizer.convert_tokens_to_ids(END)] if longer else ids
                whole = torch.cat([asked_with, torch.tensor([ids], device=model.device)], 1)
                types = F.pad(kinds, (0, len(ids)))
                output = model(input_ids=whole, attention_mask=torch.ones_like(whole), mm_token_type_ids=types, **inputs)
                found = F.log_softmax(output.logits[0, -len(ids) - 1:-1].float(), -1)
                theirs = found[torch.arange(len(ids)), ids].mean()
                if len(ids) == 1:
                    theirs = found[0, variants(tokenizer, answers[index])].logsumexp(-1)
                largest = max(largest, (theirs - ours[index]).abs().item())
    return largest
