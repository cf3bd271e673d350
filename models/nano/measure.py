"""Figures, temperatures, and pixels by the reference processors."""
import torch
import torch.nn.functional as F

from data import ROAD_WORK


def pixels(processor, pictures):
    """What transformers' own processor makes of the pictures: [n, 3, side, side]."""
    return torch.cat([processor([image], return_tensors="pt")["pixel_values"] for _, _, image in pictures])


def truth(pictures, task, device):
    classes = torch.tensor([int(folder[:2]) for folder, _, _ in pictures], device=device)
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
