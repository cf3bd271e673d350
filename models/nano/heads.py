"""Heads of the frozen DINOv3 backbone: of the shipped one, fitted on the held-out signs alone."""
import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import data
import measure

COPIES = 12            # augmented copies of each frame that a head is fitted on
FOLDS = 5
STEPS = 400


def features_of(backbone, pixels):
    """CLS token and mean of the patch tokens of the final-norm output: [n, 2·hidden]."""
    sequence = backbone(pixel_values=pixels).last_hidden_state
    return torch.cat([sequence[:, 0], sequence[:, 1 + backbone.config.num_register_tokens:].mean(1)], -1)


@torch.no_grad()
def all_features(backbone, pixels):
    return torch.cat([features_of(backbone, part.to(backbone.device)) for part in pixels.split(512)])


def fit_linear(features, labels, classes):
    """Multinomial logistic regression with L2, on standardised features; returned for raw ones."""
    mean, std = features.mean(0), features.std(0) + 1e-4
    x = (features - mean) / std
    layer = torch.nn.Linear(x.shape[1], classes).to(x.device)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimiser.zero_grad()
        (F.cross_entropy(layer(x), labels) + 2e-4 * layer.weight.square().sum()).backward()
        optimiser.step()
    weight = layer.weight.detach() / std
    return weight, layer.bias.detach() - weight @ mean


def folds_of(samples):
    """A fold for each image: by sign, and by frame where a class has only one held-out sign."""
    signs = {}
    for folder, stem, _ in samples:
        signs.setdefault(folder, {}).setdefault(data.sign_of(folder, stem), len(signs.get(folder, {})))
    fold = []
    for position, (folder, stem, _) in enumerate(samples):
        of_class = signs[folder]
        fold.append((of_class[data.sign_of(folder, stem)] if len(of_class) > 1 else position) % FOLDS)
    return torch.tensor(fold)


def fit_and_report(backbone, processor, held, test, names, out, normaliser, source):
    """Both heads with cross-fitted temperatures; figures by the processor that Concord is compared with. `source` says in
    their files of what the images `held` are."""
    device = backbone.device
    result = {"parameters": sum(p.numel() for p in backbone.parameters()), "logits": {}}
    clean_held, clean_test = (all_features(backbone, measure.pixels(processor, p)) for p in (held, test))
    raw, _ = data.to_tensors(held, device)
    copies = [clean_held] + [all_features(backbone, normaliser(data.augment(raw))) for _ in range(COPIES)]
    no_sign = torch.cat([all_features(backbone, normaliser(data.not_signs(raw))) for _ in range(2)])
    fold = folds_of(held).to(device)
    for task, labels in (("roadwork", ["no road work", "road work"]), ("traffic_sign", [names[i] for i in sorted(names)])):
        truth = measure.truth(held, task, device)

        def fit(keep):
            x, y = torch.cat([c[keep] for c in copies]), truth[keep].repeat(len(copies))
            if task == "roadwork":  # an image without a sign is no road work; it has no place among the 43
                x, y = torch.cat([x, no_sign]), torch.cat([y, y.new_zeros(len(no_sign))])
            return fit_linear(x, y, len(labels))

        # A temperature fitted on what the head was fitted on would be too sure; and the frames as they are
        # leave one mistake in four thousand to fit it on, so their augmented copies are asked too.
        asked = copies[: 1 + measure.CALIBRATION_COPIES]
        out_of_fold = [torch.zeros(len(held), len(labels), device=device) for _ in asked]
        for part in range(FOLDS):
            weight, bias = fit(fold != part)
            for found, features in zip(out_of_fold, asked):
                found[fold == part] = F.linear(features[fold == part], weight, bias)
        temperature = measure.fit_temperature(torch.cat(out_of_fold), truth.repeat(len(asked)))
        weight, bias = fit(fold >= 0)
        found = F.linear(clean_test, weight, bias)
        result[f"{task}.holdout"] = measure.figures(out_of_fold[0], truth, temperature)
        result[f"{task}.holdout_augmented"] = measure.figures(torch.cat(out_of_fold), truth.repeat(len(asked)), temperature)
        result[f"{task}.test"] = measure.figures(found, measure.truth(test, task, device), temperature)
        if task == "roadwork":
            result["logits"] = {"roadwork.holdout": measure.margins(out_of_fold[0]), "roadwork.test": measure.margins(found)}
        save_file({"linear.weight": weight.float().cpu().contiguous(), "linear.bias": bias.float().cpu().contiguous()},
                  out / f"head.{task}.safetensors",
                  metadata={"format": "pt", "task": task, "labels": json.dumps(labels), "data": f"gtsrb_train, {source}",
                            "temperature": f"{temperature:.4f}"})
    return result
