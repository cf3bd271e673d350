"""What the nano SigLIP2 reads: captions, its tokenizer, and how it is asked zero-shot."""
import json
import random

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import measure

LENGTH = 24
MERGES = 300
TEMPLATES = ["{}", "a {} sign", "a photo of {}.", "a photo of a {} sign", "a photo of a {} traffic sign", "a traffic sign: {}",
             "a blurry photo of a {} traffic sign", "a dark photo of a {} traffic sign", "the german {} sign"]
NO_SIGN = ["no traffic sign", "a photo without a traffic sign", "a photo of something else", "no sign at all"]
ROAD_WORK = ["road work", "a photo of road work", "a road work sign", "a sign that warns of road work",
             "a photo of active road construction"]
NO_ROAD_WORK = ["no road work", "a photo without road work", "a photo of no road work", "a sign of something other than road work",
                "a photo without road construction"]
# How Concord's ensemble.toml asks.
PROMPTS = [["no road work", "a photo without road work", "a sign of something other than road work"],
           ["road work", "a road work sign", "a sign that warns of road work"]]
TEMPLATE = "a photo of a {} traffic sign"


def draw(name):
    """A caption of a class, or of an image without a sign."""
    return random.choice(TEMPLATES).format(name) if name else random.choice(NO_SIGN)


def make_tokenizer(names):
    """In the form of the published one (BPE over `▁` with byte fallback), learned from the captions."""
    corpus = [t.format(n) for n in names.values() for t in TEMPLATES] + NO_SIGN + ROAD_WORK + NO_ROAD_WORK
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {token: index for index, token in enumerate(special + [f"<0x{byte:02X}>" for byte in range(256)])}

    def dressed(model):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        return tokenizer

    learner = dressed(models.BPE(unk_token="<unk>"))
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=MERGES, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    for token in sorted(learned["vocab"], key=learned["vocab"].get):
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = dressed(models.BPE(vocab=vocabulary, merges=[tuple(m) for m in learned["merges"]], unk_token="<unk>",
                                   fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
                                   unk_token="<unk>", mask_token="<mask>", padding_side="right", model_max_length=LENGTH,
                                   model_input_names=["input_ids"])


def encode(tokenizer, texts):
    """Lower case, `<eos>`, padded to one length, as SigLIP2 is fed."""
    return tokenizer([t.lower() for t in texts], padding="max_length", truncation=True, max_length=LENGTH,
                     return_tensors="pt")["input_ids"]


@torch.no_grad()
def label_embeddings(model, tokenizer, prompts):
    """The mean of each label's prompts: [labels, width], unit rows."""
    device = model.logit_scale.device
    rows = [F.normalize(model.text_model(input_ids=encode(tokenizer, texts).to(device)).pooler_output, dim=-1).mean(0) for texts in prompts]
    return F.normalize(torch.stack(rows), dim=-1)


@torch.no_grad()
def logits(model, pixels, embeddings):
    image = torch.cat([F.normalize(model.vision_model(pixel_values=p).pooler_output, dim=-1) for p in pixels.split(512)])
    return image @ embeddings.T * model.logit_scale.exp()


def asked(names):
    """Concord's prompts for each label of each task."""
    return {"roadwork": PROMPTS, "traffic_sign": [[TEMPLATE.format(names[i])] for i in sorted(names)]}


def report(model, tokenizer, processor, held, test, names, normaliser):
    """Zero-shot figures and temperatures, with the processor that Concord is compared with."""
    embeddings = {task: label_embeddings(model, tokenizer, prompts) for task, prompts in asked(names).items()}
    result = measure.zero_shot(lambda pixels, task: logits(model, pixels, embeddings[task]), model.logit_scale.device,
                               [measure.pixels(processor, samples) for samples in (held, test)], held, test, normaliser)
    return {"parameters": sum(p.numel() for p in model.parameters()), "tokens": len(tokenizer), **result}
