"""What training any of the nano models takes: batches, the loop, and storing in fp16."""
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import data

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
NO_SIGN = 43                  # the class of images that show no sign
NO_SIGN_SHARE = 0.12


def normalise(x, mean_std):
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in mean_std)
    return (x - mean) / std


@dataclass
class Pace:
    """How long is trained: `epochs` over the frames in batches of `size`, but no more `seconds` than that."""

    epochs: int
    size: int
    seconds: float | None = None

    def steps(self, x):
        return self.epochs * max(1, len(x) // self.size)


def batch(x, y, size):
    """Augmented images, with some of no sign among them, and their classes."""
    index = torch.randint(len(x), (size,), device=x.device)
    signs, labels = data.augment(x[index]), y[index].clone()
    none = int(size * NO_SIGN_SHARE)
    signs[:none] = data.not_signs(x[torch.randint(len(x), (none,), device=x.device)])
    labels[:none] = NO_SIGN
    return signs, labels


def with_classifier(module, width, device):
    """With a classifier of its image features that is thrown away: texts alone teach an image tower from scratch slowly."""
    return torch.nn.ModuleDict({"model": module, "classes": torch.nn.Linear(width, NO_SIGN + 1).to(device)})


def class_loss(both, features, labels):
    """Of the thrown-away classifier on image features [n, tokens, width]."""
    return F.cross_entropy(both["classes"](features.mean(1).float()), labels, label_smoothing=0.05)


class Clock:
    """Shortens training that would take longer than `seconds`, judged by steps after the first few, which are slow."""

    FIRST, LAST = 20, 80

    def __init__(self, seconds):
        self.seconds, self.start, self.begin = seconds, time.time(), None

    def elapsed(self):
        return time.time() - self.start

    def steps(self, step, steps):
        if self.seconds is None or step not in (self.FIRST, self.LAST):
            return steps
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if step == self.FIRST:
            self.begin = time.time()
            return steps
        each = (time.time() - self.begin) / (self.LAST - self.FIRST)
        fit = step + int((self.seconds - self.elapsed()) / each)
        print(f"{1e3 * each:.1f} ms a step: {min(fit, steps)} of {steps} steps", flush=True)
        return max(step, min(fit, steps))


def train(module, loss_of, x, y, pace, peak_rate, name, more=lambda: ()):
    """AdamW with a warm-up and a cosine, and the moving average of the weights, which is what is kept.
    `loss_of` is given the module, images, their classes, and what `more` draws for a batch."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
                                  lr=peak_rate, betas=(0.9, 0.98))
    steps = total = pace.steps(x)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(
        (step + 1) / warm_up, 0.5 * (1 + torch.cos(torch.tensor(step / steps * 3.14159)).item()) + 1e-3))
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    device, clock = next(module.parameters()).device, Clock(pace.seconds)
    for step in range(1, total + 1):
        drawn = (*batch(x, y, pace.size), *more())      # not in bf16: an image's coordinates need more bits
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):    # slower on a CPU
            loss = loss_of(module, *drawn)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(module)
        steps = clock.steps(step, steps)
        if step % max(1, steps // 20) == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.4f}, {clock.elapsed():.0f} s", flush=True)
        if step >= steps:
            break
    module.load_state_dict(average.module.state_dict())
    return module.eval()


def save_half(model, processor, folder):
    """fp16 on disk, as small snapshots are published; back in fp32 for what follows."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()
