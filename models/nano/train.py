#!/usr/bin/env python3
"""Train the nano snapshots from scratch: a DINOv3 backbone with two heads, and a SigLIP2.

    python models/nano/train.py [--data ../shared/data] [--out models/nano]
                                [--only dinov3|heads|siglip2] [--epochs N] [--seed 1]

Writes OUT/holdout.txt, OUT/dinov3, OUT/siglip2 and OUT/report.json. The models are transformers' own
classes, saved by save_pretrained in fp16. A fifth of the physical signs of each class (holdout.txt) is
seen by neither model; heads and temperatures are fitted on those alone, and the test archive is only
reported on. Three and six minutes on one H200; needs torch, transformers, tokenizers, pillow.
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

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
NO_SIGN = 43                  # the class of pictures that show no sign
NO_SIGN_SHARE = 0.12
BATCH = 512


def normalise(x, mean_std):
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in mean_std)
    return (x - mean) / std


def batches(x, y, epochs):
    """Augmented batches, with pictures of no sign mixed in."""
    count = max(1, len(x) // BATCH)
    for _ in range(epochs * count):
        index = torch.randint(len(x), (BATCH,), device=x.device)
        signs, labels = data.augment(x[index]), y[index].clone()
        none = int(BATCH * NO_SIGN_SHARE)
        signs[:none] = data.not_signs(x[torch.randint(len(x), (none,), device=x.device)])
        labels[:none] = NO_SIGN
        yield signs, labels


def train(module, loss_of, x, y, epochs, peak_rate, name):
    """AdamW with a warm-up and a cosine, and the moving average of the weights, which is what is kept."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
                                  lr=peak_rate, betas=(0.9, 0.98))
    steps = epochs * max(1, len(x) // BATCH)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(
        (step + 1) / warm_up, 0.5 * (1 + torch.cos(torch.tensor(step / steps * 3.14159)).item()) + 1e-3))
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    start = time.time()
    for step, (images, labels) in enumerate(batches(x, y, epochs), 1):
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = loss_of(module, images, labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(module)
        if step % max(1, steps // 20) == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.4f}, {time.time() - start:.0f} s", flush=True)
    module.load_state_dict(average.module.state_dict())
    return module.eval()


def train_dinov3(x, y, epochs):
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

    return train(both, loss_of, x, y, epochs, 1.5e-3, "dinov3")["backbone"]


def train_siglip2(x, y, epochs, names, out):
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

    model = train(model, loss_of, x, y, epochs, 1.5e-3, "siglip2")
    with torch.no_grad():
        model.logit_scale.clamp_(max=3.6)
    return model, tokenizer


def save_half(model, processor, folder):
    """fp16 on disk, as small snapshots are published; back in fp32 for what follows."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of gtsrb_train.tar.gz and gtsrb_test.tar.gz (CONCORD_DATA, ../shared/data)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", choices=["dinov3", "heads", "siglip2"], help="heads: refit them on the backbone in OUT")
    parser.add_argument("--epochs", type=int, help="default: 120 for dinov3, 220 for siglip2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, help="use so many pictures, for trying the script out")
    args = parser.parse_args()
    folder = data.data_folder(args.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    pictures = data.read_archive(folder / "gtsrb_train.tar.gz", args.limit)
    names = data.class_names(pictures)
    holdout = data.choose_holdout(pictures, args.seed)
    (args.out / "holdout.txt").write_text("\n".join(holdout) + "\n")
    held = [p for p in pictures if data.sign_of(*p[:2]) in set(holdout)]
    seen = [p for p in pictures if data.sign_of(*p[:2]) not in set(holdout)]
    test = data.read_archive(folder / "gtsrb_test.tar.gz", args.limit)
    print(f"{len(seen)} frames to train on, {len(held)} of held-out signs, {len(test)} to report on", flush=True)
    x, y = data.to_tensors(seen, device)
    report = {}

    if args.only != "siglip2":
        from transformers import DINOv3ViTImageProcessor, DINOv3ViTModel
        start, out = time.time(), args.out / "dinov3"
        processor = DINOv3ViTImageProcessor(size={"height": data.SIDE, "width": data.SIDE})
        if args.only == "heads":
            backbone = DINOv3ViTModel.from_pretrained(out, dtype=torch.float32).eval().to(device)
        else:
            backbone = save_half(train_dinov3(x, y, args.epochs or 120), processor, out).to(device)
        report["dinov3"] = heads.fit_and_report(backbone, processor, held, test, names, out, normaliser=lambda v: normalise(v, IMAGENET))
        report["dinov3"]["seconds"] = time.time() - start
    if args.only in (None, "siglip2"):
        from transformers import SiglipImageProcessor
        start, out = time.time(), args.out / "siglip2"
        model, tokenizer = train_siglip2(x, y, args.epochs or 220, names, out)
        processor = SiglipImageProcessor(size={"height": data.SIDE, "width": data.SIDE}, resample=2)
        model = save_half(model, processor, out).to(device)
        report["siglip2"] = captions.report(model, tokenizer, processor, held, test, names, normaliser=lambda v: normalise(v, HALF))
        report["siglip2"]["seconds"] = time.time() - start
    print(json.dumps(report, indent=1))
    if (args.out / "report.json").exists():
        report = {**json.loads((args.out / "report.json").read_text()), **report}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
