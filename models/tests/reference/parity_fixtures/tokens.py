"""Tokenizers, built offline in the format of the published ones."""
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["what is the text in the image? with regions", "what does the image describe?", "describe in detail",
          "locate the objects with category name in the image.", "a photo of a cat", "a photo of two dogs",
          "how many cones are on the road", "point to the traffic cone", "user assistant"] * 4


def _byte_level(vocab_size, specials, merges=60, normalizer=None, pre=None):
    """A byte-level BPE `Tokenizer` with exactly `vocab_size` entries, `specials` being {token: id}; ids that
    nothing else takes are filled with `<fill_N>`, as model tables are larger than tokenizers."""
    merges = min(merges, vocab_size - 256 - len(specials) - 1)
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False)
    t.train_from_iterator(CORPUS, trainer)
    learned = json.loads(t.to_str())["model"]
    taken = dict(specials)
    used = set(taken.values())
    free = (i for i in range(vocab_size) if i not in used)
    for tok in sorted(learned["vocab"], key=learned["vocab"].get):
        taken[tok] = next(free)
    for i in free:
        taken[f"<fill_{i}>"] = i
    t = Tokenizer(models.BPE(vocab=taken, merges=[tuple(m) for m in learned["merges"]]))
    t.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    if normalizer is not None:
        t.normalizer = normalizer
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return t


def _gemma(vocab_size, specials=None):
    """A Gemma-like BPE over `▁` with byte fallback; `specials` {token: id} come besides its own five."""
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    vocab = dict(special)
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    base = Tokenizer(models.BPE(unk_token="<unk>"))
    base.normalizer = normalizers.Replace(" ", "▁")
    base.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    base.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=130, show_progress=False))
    learned = json.loads(base.to_str())["model"]
    for tok in sorted(learned["vocab"], key=learned["vocab"].get):
        vocab.setdefault(tok, len(vocab))
    assert len(vocab) <= vocab_size
    vocab.update(specials or {})
    t = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in learned["merges"]], unk_token="<unk>",
                             fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in (*special, *(specials or {}))])
    return t


_GEMMA_TOKENS = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", mask_token="<mask>")


def gemma_tokenizer(vocab_size):
    """Gemma-like: BPE over `▁` with byte fallback, `<eos>` appended, no `<bos>`, padded right with `<pad>` = 0.
    As in the published SigLIP2 files, tokenizer.json itself does NOT lower-case."""
    t = _gemma(vocab_size)
    t.post_processor = processors.TemplateProcessing(single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=t, **_GEMMA_TOKENS, padding_side="right", model_max_length=64,
                                   model_input_names=["input_ids"])


def paligemma_tokenizer(base):
    """Gemma-like; after the `base` ids (256000) come `<loc0000>`..`<loc1023>`, `<seg000>`..`<seg127>` and `<image>` (257152)."""
    named = [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)] + ["<image>"]
    t = _gemma(base, {token: base + i for i, token in enumerate(named)})
    t.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=t, **_GEMMA_TOKENS, padding_side="left",
                                   extra_special_tokens={"image_token": "<image>"})


def bart_tokenizer(vocab):
    """BART byte-level BPE: <s> 0, <pad> 1, </s> 2, <unk> 3; the last 1000 + 24 ids of `vocab` are <loc_0>..<loc_999>
    and the task tokens; <image> is id `vocab`."""
    tasks = ["<od>", "</od>", "<ocr>", "</ocr>", "<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>",
             "</grounding>", "<and>", "<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>",
             "</region_to_desciption>", "<proposal>", "</proposal>", "<poly>", "</poly>", "<seg>", "</seg>"]
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    added = {}
    for i, tok in enumerate([f"<loc_{i}>" for i in range(1000)] + tasks):
        added[tok] = vocab - 1024 + i
    added["<mask>"] = vocab - 1025
    t = _byte_level(vocab + 1, {**special, **added, "<image>": vocab})
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                   pad_token="<pad>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
                                   model_max_length=1024, extra_special_tokens={"image_token": "<image>"})


MOLMO_EXTRA = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>",
               "<frame_start>", "<frame_end>", "<|video|>", "<|points|>", "<|token_index|>", "<|vit_index|>", "<|vit_loc|>"]
# Prompt layout of the published Molmo2 template for the turns that are used here.
MOLMO_TEMPLATE = (
    "{%- set n = namespace(v=0) -%}{%- for m in messages -%}{%- if m['content'] is not string -%}"
    "{%- for c in m['content'] -%}{%- if c['type'] == 'image' -%}{%- set n.v = n.v + 1 -%}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if n.v == 1 -%}{{ '<|image|>' }}{%- elif n.v > 1 -%}{%- for i in range(n.v) -%}{{ 'Image ' ~ (i + 1) ~ '<|image|>' }}"
    "{%- endfor -%}{%- endif -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' ~ m['role'] ~ '\\n' }}{%- if m['content'] is string -%}{{ m['content'] }}"
    "{%- else -%}{%- for c in m['content'] -%}{%- if c['type'] == 'text' -%}{{ c['text'] }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")

# The same for one video and no images.
MOLMO_VIDEO_TEMPLATE = "{{ '<|video|>' }}" + MOLMO_TEMPLATE


def _qwen(vocab_size, specials):
    pattern = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    return _byte_level(vocab_size, specials, normalizer=normalizers.NFC(), pre=pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


def _qwen_begin(vocab_size):
    """The id of `<|endoftext|>`, the first of the special tokens."""
    return 151643 if vocab_size > 151646 else vocab_size - 24


def qwen_tokenizer(vocab_size):
    """Qwen-like byte-level BPE padded to the size of the model's base table; Molmo2's own tokens have the ids after
    it, in the order of MOLMO_EXTRA (151936 `<im_start>` .. for a table of 151936)."""
    at = _qwen_begin(vocab_size)
    special = {"<|endoftext|>": at, "<|im_start|>": at + 1, "<|im_end|>": at + 2}
    special.update({tok: vocab_size + i for i, tok in enumerate(MOLMO_EXTRA)})
    t = _qwen(vocab_size + len(MOLMO_EXTRA), special)
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<|im_end|>", eos_token="<|im_end|>",
                                   pad_token="<|endoftext|>", padding_side="left",
                                   additional_special_tokens=MOLMO_EXTRA, chat_template=MOLMO_TEMPLATE)


# In the order of the published ids, from 151643.
QWEN_VL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
                  "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                  "<|image_pad|>", "<|video_pad|>"]
# Prompt layout of the published Qwen3-VL template for the turns that are used here; Qwen2.5-VL's has a system turn as well.
QWEN3_VL_TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' ~ m['role'] ~ '\\n' }}{%- if m['content'] is string -%}{{ m['content'] }}"
    "{%- else -%}{%- for c in m['content'] -%}{%- if c['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif c['type'] == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif c['type'] == 'text' -%}{{ c['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")
QWEN2_5_VL_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
    + QWEN3_VL_TEMPLATE)


def qwen_vl_tokenizer(vocab_size, chat_template):
    """Qwen-like byte-level BPE padded to the size of the model's table."""
    at = _qwen_begin(vocab_size)
    t = _qwen(vocab_size, {token: at + i for i, token in enumerate(QWEN_VL_TOKENS)})
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
                                   additional_special_tokens=QWEN_VL_TOKENS[1:], chat_template=chat_template)


_BERT_WORDS = ["traffic", "cone", "road", "work", "sign", "excav", "##ator", "warning", "light", "barrier", "person"]


def bert_tokenizer(vocab_size):
    """BERT's lower-casing WordPiece with the published ids of the special tokens and of ASCII, which models rely on:
    `[CLS]` 101, `[SEP]` 102, `.` 1012, `?` 1029."""
    vocab = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    printable = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    letters = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    for i, token in enumerate(printable + letters + _BERT_WORDS):
        vocab[token] = 999 + i
    used = set(vocab.values())
    vocab.update({f"[unused{i}]": i for i in range(vocab_size) if i not in used})
    t = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                     special_tokens=[("[CLS]", 101), ("[SEP]", 102)])
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                                   mask_token="[MASK]", padding_side="right", model_max_length=512,
                                   model_input_names=["input_ids", "token_type_ids", "attention_mask"])
