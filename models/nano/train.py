#!/usr/bin/env python3
"""Train the nano snapshots from scratch: a DINOv3 backbone with two heads, a SigLIP2, a Florence-2 and a Molmo2.

    python models/nano/train.py [--data ../shared/data] [--out models/nano]
                                [--only dinov3|heads|siglip2|florence2|molmo2] [--epochs N] [--seconds N] [--seed 1]
                                [--side 64] [--heads-on held|seen]

Writes OUT/dinov3, OUT/siglip2, OUT/florence2, OUT/molmo2, OUT/report.json, and OUT/holdout.txt where there is none. The
models are transformers' own classes, saved by save_pretrained in fp16. A fifth of the physical signs of each class
(holdout.txt) is seen by none of them; heads and temperatures are fitted on those alone, and the test archive is only
reported on. `--side 32 --epochs 12 --heads-on seen` makes deliberately weaker ones, to judge calibration and fusion by
(docs/RESULTS.md). Minutes each on one H200; needs torch, torchvision, transformers (molmo2: >= 5.20), tokenizers, pillow.
"""
import argparse
import json
import os
import random
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F

import captions
import data
import heads
from training import HALF, IMAGENET, NO_SIGN, Pace, normalise, save_half, train

MODELS = ["dinov3", "siglip2", "florence2", "molmo2"]
EPOCHS = {"dinov3": 120, "siglip2": 220, "florence2": 160, "molmo2": 160}


def train_dinov3(x, y, pace):
    """The backbone, with a classifier that is thrown away."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel
    config = DINOv3ViTConfig(hidden_size=128, intermediate_size=480, num_hidden_layers=8, num_attention_heads=4,
                             patch_size=8, image_size=data.SIDE, num_register_tokens=4)
    backbone = DINOv3ViTModel(config).to(x.device)
    classifier = torch.nn.Linear(2 * config.hidden_size, NO_SIGN + 1).to(x.device)
    both = torch.nn.ModuleDict({"backbone": backbone, "classifier": classifier})

    def loss_of(module, images, labels):
        features = heads.features_of(module["backbone"], normalise(images, IMAGENET))
        return F.cross_entropy(module["classifier"](F.dropout(features, 0.1)), labels, label_smoothing=0.05)

    return train(both, loss_of, x, y, pace, 1.5e-3, "dinov3")["backbone"]


def train_siglip2(x, y, pace, names, out):
    """Both towers, on captions of class names and of the question itself."""
    from transformers import SiglipConfig, SiglipModel
    tokenizer = captions.make_tokenizer(names)
    tokenizer.save_pretrained(out)
    sizes = dict(hidden_size=128, intermediate_size=320, num_attention_heads=4)
    model = SiglipModel(SiglipConfig(
        text_config=dict(vocab_size=len(tokenizer), num_hidden_layers=1, projection_size=128, bos_token_id=2, eos_token_id=1,
                         pad_token_id=0, max_position_embeddings=captions.LENGTH, **sizes),
        vision_config=dict(image_size=data.SIDE, patch_size=8, num_hidden_layers=7, **sizes))).to(x.device)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
        model.logit_bias.fill_(-3.0)

    def embed(module, texts):
        ids = captions.encode(tokenizer, texts).to(x.device)
        return F.normalize(module.text_model(input_ids=ids).pooler_output.float(), dim=-1)

    def loss_of(module, images, labels):
        image = F.normalize(module.vision_model(pixel_values=normalise(images, HALF)).pooler_output.float(), dim=-1)
        scale = module.logit_scale.clamp(max=3.6).exp()
        # One caption a class, drawn anew for each batch; the sigmoid loss is SigLIP's own.
        classes = scale * image @ embed(module, [captions.draw(names.get(i)) for i in range(NO_SIGN + 1)]).T
        signed = 2 * F.one_hot(labels, NO_SIGN + 1) - 1
        sigmoid = -F.logsigmoid(signed * (classes + module.logit_bias)).sum(1).mean()
        question = scale * image @ embed(module, [random.choice(captions.NO_ROAD_WORK), random.choice(captions.ROAD_WORK)]).T
        road_work = (labels == data.ROAD_WORK).long()
        weight = torch.tensor([1.0, 4.0], device=x.device)
        return (F.cross_entropy(classes, labels, label_smoothing=0.02) + 0.3 * sigmoid
                + F.cross_entropy(question, road_work, weight=weight))

    model = train(model, loss_of, x, y, pace, 1.5e-3, "siglip2")
    with torch.no_grad():
        model.logit_scale.clamp_(max=3.6)
    return model, tokenizer


def make_dinov3(photographs, pace, out, refit=False, heads_on="held"):
    from transformers import DINOv3ViTImageProcessor, DINOv3ViTModel
    processor = DINOv3ViTImageProcessor(size={"height": data.SIDE, "width": data.SIDE})
    if refit:
        backbone = DINOv3ViTModel.from_pretrained(out, dtype=torch.float32).eval().to(photographs.device)
    else:
        x, y = photographs.seen()
        backbone = save_half(train_dinov3(x, y, pace), processor, out).to(x.device)
    fitted_on, source = {"held": (photographs.held, "signs of holdout.txt"),
                         "seen": (photographs.to_see, "all signs but those of holdout.txt")}[heads_on]
    return heads.fit_and_report(backbone, processor, fitted_on, photographs.test, photographs.names, out,
                                normaliser=lambda v: normalise(v, IMAGENET), source=source)


def make_siglip2(photographs, pace, out):
    from transformers import SiglipImageProcessor
    x, y = photographs.seen()
    model, tokenizer = train_siglip2(x, y, pace, photographs.names, out)
    processor = SiglipImageProcessor(size={"height": data.SIDE, "width": data.SIDE}, resample=2)
    model = save_half(model, processor, out).to(x.device)
    return captions.report(model, tokenizer, processor, photographs.held, photographs.test, photographs.names,
                           normaliser=lambda v: normalise(v, HALF))


def make_florence2(photographs, pace, out):
    import train_florence2
    x, y = photographs.seen()
    made = train_florence2.make(x, y, pace, photographs.names, out)
    return train_florence2.report(*made, photographs.held, photographs.test, photographs.names)


def make_molmo2(photographs, pace, out):
    import train_molmo2
    x, y = photographs.seen(antialias=False)
    made = train_molmo2.make(x, y, pace, photographs.names, out)
    return train_molmo2.report(*made, photographs.held, photographs.test, photographs.names)


class Photographs:
    """Frames to train on, frames of held-out signs, and the test archive."""

    def __init__(self, folder, out, seed, limit, device):
        samples = data.read_archive(folder / "gtsrb_train.tar.gz", limit)
        kept = out / "holdout.txt"
        if not kept.exists():
            kept.write_text("\n".join(data.choose_holdout(samples, seed)) + "\n")
        holdout = set(kept.read_text().split())
        self.names, self.device = data.class_names(samples), device
        self.held = [p for p in samples if data.sign_of(*p[:2]) in holdout]
        self.to_see = [p for p in samples if data.sign_of(*p[:2]) not in holdout]
        self.test = data.read_archive(folder / "gtsrb_test.tar.gz", limit)
        print(f"{len(self.to_see)} frames to train on, {len(self.held)} of held-out signs, {len(self.test)} to report on", flush=True)

    def seen(self, antialias=True):
        return data.to_tensors(self.to_see, self.device, antialias)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of gtsrb_train.tar.gz and gtsrb_test.tar.gz (CONCORD_DATA, ../shared/data)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", choices=[*MODELS, "heads"], help="heads: refit them on the backbone in OUT")
    parser.add_argument("--epochs", type=int, help=f"default: {', '.join(f'{n} for {m}' for m, n in EPOCHS.items())}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", type=int, default=data.SIDE, help="of the models' images, in pixels; a multiple of 16")
    parser.add_argument("--heads-on", choices=["held", "seen"], default="held",
                        help="seen: heads of the frames the backbone saw, which leaves the held-out signs to what is fitted after them")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seconds", type=int, help="train for fewer epochs where they would take longer")
    parser.add_argument("--limit", type=int, help="use so many images, for trying the script out")
    return parser.parse_args()


def main():
    args = arguments()
    folder = data.data_folder(args.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data.SIDE = args.side
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    photographs = Photographs(folder, args.out, args.seed, args.limit, device)
    make = {"dinov3": make_dinov3, "siglip2": make_siglip2, "florence2": make_florence2, "molmo2": make_molmo2}
    report = {}
    for name in MODELS if args.only is None else ["dinov3" if args.only == "heads" else args.only]:
        start, more = time.time(), {"refit": args.only == "heads", "heads_on": args.heads_on} if name == "dinov3" else {}
        pace = Pace(args.epochs or EPOCHS[name], args.batch, args.seconds)
        report[name] = make[name](photographs, pace, args.out / name, **more)
        report[name]["seconds"] = time.time() - start
        print(json.dumps({key: value for key, value in report[name].items() if key != "logits"}, indent=1), flush=True)
    if (args.out / "report.json").exists():
        report = {**json.loads((args.out / "report.json").read_text()), **report}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
