"""GTSRB photographs as tensors, the hold-out of physical signs, and augmentation on the device.

Files are `NN_class_name/TTTTT_FF.jpg`: frame FF of the physical sign (class, TTTTT). Frames of one sign
look alike, so data is split by sign, never by frame.
"""
import io
import os
import random
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

LOADED_SIDE = 80      # larger than the models' 64, so that augmentation can zoom
SIDE = 64
HOLDOUT_SHARE = 0.2
SIGN_REACH = 0.8      # GTSRB leaves a tenth on each side of a sign: its reach from the middle, of 1
ROAD_WORK = 25


def data_folder(given):
    """The folder with the two archives, or a message that says how to name it."""
    folder = Path(given or os.environ.get("CONCORD_DATA", "../shared/data"))
    if not (folder / "gtsrb_train.tar.gz").exists():
        sys.exit(f"{folder} has no gtsrb_train.tar.gz: name the folder with --data or CONCORD_DATA")
    return folder


def read_archive(path, limit=None):
    """[(class folder, file stem, PIL image)] in the archive's order."""
    samples = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                folder, name = member.name.split("/")[-2:]
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                samples.append((folder, name.removesuffix(".jpg"), image))
    return samples[:: max(1, len(samples) // limit)] if limit else samples


def class_names(samples):
    """{class index: name with spaces}."""
    return {int(folder[:2]): folder[3:].replace("_", " ") for folder, _, _ in samples}


def sign_of(folder, stem):
    return f"{folder}/{stem.split('_')[0]}"


def choose_holdout(samples, seed):
    """A fifth of the signs of each class, at least one."""
    signs = {}
    for folder, stem, _ in samples:
        signs.setdefault(folder, set()).add(sign_of(folder, stem))
    rng = random.Random(seed)
    chosen = []
    for folder in sorted(signs):
        of_class = sorted(signs[folder])
        chosen += rng.sample(of_class, max(1, round(HOLDOUT_SHARE * len(of_class))))
    return sorted(chosen)


def without_antialias(image, side):
    """Bilinear and only four source pixels for each, as Molmo2 resizes: uint8 [3, side, side]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=False)[0].round().clamp(0, 255).byte()


def to_tensors(samples, device, antialias=True):
    """uint8 [n, 3, LOADED_SIDE, LOADED_SIDE] and class indices [n]."""
    if antialias:
        images = [np.asarray(image.resize((LOADED_SIDE, LOADED_SIDE), Image.BILINEAR)) for _, _, image in samples]
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)
    else:
        x = torch.stack([without_antialias(image, LOADED_SIDE) for _, _, image in samples]).to(device)
    return x, torch.tensor([int(folder[:2]) for folder, _, _ in samples], device=device)


def _uniform(n, low, high, device):
    return torch.empty(n, device=device).uniform_(low, high)


def _grid(n, angle, zoom, shift, squeeze, tilt, device):
    """Where SIDE × SIDE pixels are taken from, in -1…1, through a random perspective, and its matrices; all ranges
    are half-widths."""
    a = _uniform(n, -angle, angle, device)
    zx, zy = zoom * _uniform(n, 1 - squeeze, 1 + squeeze, device), zoom * _uniform(n, 1 - squeeze, 1 + squeeze, device)
    matrix = torch.zeros(n, 3, 3, device=device)
    matrix[:, 0, 0], matrix[:, 0, 1] = torch.cos(a) * zx, -torch.sin(a) * zy
    matrix[:, 1, 0], matrix[:, 1, 1] = torch.sin(a) * zx, torch.cos(a) * zy
    matrix[:, :2, 2] = shift
    matrix[:, 2, :2] = torch.empty(n, 2, device=device).uniform_(-tilt, tilt)
    matrix[:, 2, 2] = 1
    axis = (torch.arange(SIDE, device=device) + 0.5) / SIDE * 2 - 1
    y, x_axis = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x_axis, y, torch.ones_like(y)], -1).reshape(1, -1, 3) @ matrix.transpose(1, 2)
    return (points[..., :2] / points[..., 2:].clamp(min=0.3)).view(n, SIDE, SIDE, 2), matrix


def _warp(x, angle, zoom, shift, squeeze, tilt):
    grid, _ = _grid(len(x), angle, zoom, shift, squeeze, tilt, x.device)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _light(x):
    """Exposure, contrast, gamma, colour cast, and dusk."""
    n, device = len(x), x.device
    one = lambda low, high: _uniform(n, low, high, device).view(n, 1, 1, 1)
    x = x.clamp(1e-4, 1) ** torch.exp(one(-0.5, 0.5))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * one(0.5, 1.5) + mean * one(0.6, 1.4)
    x = x * torch.empty(n, 3, 1, 1, device=device).uniform_(0.85, 1.15)
    dark = one(0.15, 1.0)
    return torch.where(one(0, 1) < 0.2, x * dark, x).clamp(0, 1)


def _degrade(x):
    """Low resolution, blur and noise, in groups of the batch."""
    n, device = len(x), x.device
    parts = []
    for part in x.chunk(8):
        side = random.choice([14, 18, 24, 32, 48, SIDE, SIDE, SIDE])
        if side < SIDE:
            small = F.interpolate(part, size=(side, side), mode="bilinear", antialias=True)
            part = F.interpolate(small, size=(SIDE, SIDE), mode=random.choice(["bilinear", "bicubic"]), antialias=True)
        elif random.random() < 0.4:
            part = F.avg_pool2d(part, 3, 1, 1, count_include_pad=False)
        parts.append(part)
    x = torch.cat(parts)
    return (x + torch.randn_like(x) * _uniform(n, 0, 0.06, device).view(n, 1, 1, 1)).clamp(0, 1)


def _occlude(x):
    """A box of one colour over a third of the images."""
    n, device = len(x), x.device
    centre, size = torch.rand(n, 2, device=device), torch.empty(n, 2, device=device).uniform_(0.1, 0.4)
    axis = torch.arange(SIDE, device=device) / SIDE
    rows = (axis[None] - centre[:, :1]).abs() < size[:, :1] / 2
    columns = (axis[None] - centre[:, 1:]).abs() < size[:, 1:] / 2
    box = (rows[:, :, None] & columns[:, None, :] & (torch.rand(n, device=device) < 0.33)[:, None, None]).unsqueeze(1)
    return torch.where(box, torch.rand(n, 3, 1, 1, device=device), x)


def augment(x):
    """uint8 [n, 3, LOADED_SIDE, LOADED_SIDE] → float [n, 3, SIDE, SIDE] in 0…1. Never mirrored: signs are not."""
    n, device = len(x), x.device
    shift = torch.empty(n, 2, device=device).uniform_(-0.12, 0.12)
    warped = _warp(x.float() / 255, 0.25, _uniform(n, 0.78, 1.25, device), shift, 0.12, 0.18)
    return _occlude(_degrade(_light(warped)))


def not_signs(x):
    """Images of no sign, made of photographs `x` and of nothing: strong zooms into a corner, shuffled
    tiles, coloured clouds."""
    n, device = len(x), x.device
    x = x.float() / 255
    third = n // 3
    corner = torch.where(torch.rand(third, 2, device=device) < 0.5, -1.0, 1.0) * _uniform(third, 0.75, 0.95, device)[:, None]
    zoomed = _warp(x[:third], 1.5, _uniform(third, 0.05, 0.22, device), corner, 0.3, 0.1)
    tiles = F.interpolate(x[third : 2 * third], size=(SIDE, SIDE), mode="bilinear", antialias=True)
    cut = SIDE // random.choice([4, 8, 8])
    tiles = F.unfold(tiles, cut, stride=cut)
    tiles = F.fold(tiles[:, :, torch.randperm(tiles.shape[2], device=device)], SIDE, cut, stride=cut)
    tiles = F.avg_pool2d(tiles, 3, 1, 1) if random.random() < 0.5 else tiles
    clouds = torch.zeros(n - 2 * third, 3, SIDE, SIDE, device=device)
    for side in (2, 5, 11, 32):
        cells = torch.randn(len(clouds), 3, side, side, device=device) * random.uniform(0.2, 1)
        clouds += F.interpolate(cells, size=(SIDE, SIDE), mode="bicubic")
    clouds = torch.sigmoid(clouds * _uniform(len(clouds), 0.3, 2, device).view(-1, 1, 1, 1))
    return _degrade(_light(torch.cat([zoomed, tiles, clouds])))


def _boxes(matrix):
    """The boxes around the signs that `matrix` puts in place: [n, 4] left, top, right, bottom in 0…1."""
    corners = torch.tensor([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], device=matrix.device, dtype=matrix.dtype)
    corners = corners * torch.tensor([SIGN_REACH, SIGN_REACH, 1], device=matrix.device)
    placed = corners @ torch.linalg.inv(matrix).transpose(1, 2)
    placed = ((placed[..., :2] / placed[..., 2:]) + 1) / 2
    return torch.cat([placed.amin(1), placed.amax(1)], 1).clamp(0, 1)


def scenes(x, behind):
    """Signs `x` at known places, large ones and small ones, in front of no-sign images made of `behind`:
    images in 0…1 and the signs' boxes, both as `augment` and `_boxes` have them."""
    n, device = len(x), x.device
    zoom = torch.where(torch.rand(n, device=device) < 0.3, _uniform(n, 0.85, 1.1, device), torch.exp(_uniform(n, -0.16, 0.9, device)))
    room = (zoom - SIGN_REACH).clamp(min=0.05)[:, None]
    shift = room * torch.empty(n, 2, device=device).uniform_(-1, 1)
    grid, matrix = _grid(n, 0.15, zoom, shift, 0.1, 0.05, device)
    signs = _light(F.grid_sample(x.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False))
    inside = (grid.abs().amax(-1) <= 1).unsqueeze(1)
    return _degrade(torch.where(inside, signs, not_signs(behind))), _boxes(matrix)
