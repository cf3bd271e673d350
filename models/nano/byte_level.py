"""Byte-level BPE tokenizers in the form of the published ones, learned from what a nano model reads and writes."""
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers


def learn(corpus, pre_tokenizer):
    """Tokens in the order of their ids, and merges: so many that each word of the corpus becomes one token."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=4096, min_frequency=1, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    learner.train_from_iterator(corpus, trainer)
    learned = json.loads(learner.to_str())["model"]
    return sorted(learned["vocab"], key=learned["vocab"].get), [tuple(merge) for merge in learned["merges"]]


def build(tokens, merges, special, pre_tokenizer):
    """`tokens` is the whole vocabulary by id; those in `special` are matched before anything else."""
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def compact(folder):
    """Writes tokenizer.json without its indentation, which a thousand location tokens make 100 kB of."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":")) + "\n")
