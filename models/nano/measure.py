"""Figures, temperatures, and pixels by the reference processors."""
import torch
import torch.nn.functional as F

import data
from data import ROAD_WORK

CALIBRATION_COPIES = 4  # augmented copies of each held-out frame that a temperature is fitted on, with the frame itself


def pixels(processor, samples):
    """What transformers' own processor makes of the images: [n, 3, side, side]."""
    return torch.cat([processor([image], return_tensors="pt")["pixel_values"] for _, _, image in samples])


def truth(samples, task, device):
    classes = torch.tensor([int(folder[:2]) for folder, _, _ in samples], device=device)
    return (classes == ROAD_WORK).long() if task == "roadwork" else classes


def fit_temperature(logits, labels):
    """The temperature of the smallest negative log-likelihood (Guo et al., 2017), to half a percent."""
    candidates = torch.logspace(-1.5, 1.5, 1400, device=logits.device)
    losses = torch.stack([F.cross_entropy(logits / candidate, labels) for candidate in candidates])
    return candidates[losses.argmin()].item()


def matthews(predicted, labels):
    tp, tn = ((predicted == 1) & (labels == 1)).sum().item(), ((predicted == 0) & (labels == 0)).sum().item()
    fp, fn = ((predicted == 1) & (labels == 0)).sum().item(), ((predicted == 0) & (labels == 1)).sum().item()
    scale = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    return (tp * tn - fp * fn) / scale if scale else 0.0


def figures(logits, labels, temperature):
    predicted = logits.argmax(1)
    result = {"n": len(labels), "accuracy": (predicted == labels).float().mean().item(), "temperature": temperature,
              "nll": F.cross_entropy(logits / temperature, labels).item()}
    if logits.shape[1] == 2:
        result["mcc"] = matthews(predicted, labels)
    return result


def margins(logits):
    """Logit of road work minus that of none, for choosing thresholds later."""
    return [round(v, 4) for v in (logits[:, 1] - logits[:, 0]).tolist()]


def overlap(found, boxes):
    """Intersection of boxes [n, 4] over their union."""
    size = lambda corners: (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)
    common = size(torch.cat([torch.maximum(found[:, :2], boxes[:, :2]), torch.minimum(found[:, 2:], boxes[:, 2:])], 1))
    return common / (size(found) + size(boxes) - common).clamp(min=1e-6)


@torch.no_grad()
def zero_shot(ask, device, clean, held, test, normaliser):
    """Figures and temperatures of a model that `ask(pixels, task)` gets label logits of. `clean` are the pixels of
    the held-out and of the test images by the processor that Concord is compared with."""
    result = {"logits": {}}
    clean_held, clean_test = (pixels.to(device) for pixels in clean)
    # The same mixture that the temperatures of the heads are fitted on.
    raw, _ = data.to_tensors(held, device)
    augmented = [normaliser(data.augment(raw)) for _ in range(CALIBRATION_COPIES)]
    for task in ("roadwork", "traffic_sign"):
        labels = truth(held, task, device)
        on_held = [ask(pixels, task) for pixels in [clean_held, *augmented]]
        on_test = ask(clean_test, task)
        temperature = fit_temperature(torch.cat(on_held), labels.repeat(len(on_held)))
        result[f"{task}.holdout"] = figures(on_held[0], labels, temperature)
        result[f"{task}.holdout_augmented"] = figures(torch.cat(on_held), labels.repeat(len(on_held)), temperature)
        result[f"{task}.test"] = figures(on_test, truth(test, task, device), temperature)
        if task == "roadwork":
            result["logits"] = {"roadwork.holdout": margins(on_held[0]), "roadwork.test": margins(on_test)}
    return result
