"""A fixture's folder, and running a model for it."""
import json
import platform
import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.video_utils import VideoMetadata

from .weights import make_image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Fixture:
    """One model's folder, its tensors and its facts."""

    def __init__(self, args, name, sizes=None):
        """`sizes` {label: (width, height)} replace those that the family asks for."""
        self.args, self.name, self.sizes = args, name, sizes or {}
        self.dir = Path(args.out) / name
        self.snapshot = self.dir / "snapshot"
        (self.dir / "images").mkdir(parents=True, exist_ok=True)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        self.tensors, self.meta = {}, {"name": name, "noise": {}}

    def image(self, label, width, height):
        width, height = self.sizes.get(label, (width, height))
        img = make_image(width, height, self.args.seed + zlib.crc32(label.encode()) % 1000)
        img.save(self.dir / "images" / f"{label}.png")
        return img

    def video(self, label, width, height, frames, fps):
        """A video as its frames, and the metadata that a decoder would give."""
        names = [f"{label}_{i:02}" for i in range(frames)]
        self.meta.setdefault("videos", {})[label] = {"frames": names, "fps": fps}
        metadata = VideoMetadata(total_num_frames=frames, fps=fps, width=width, height=height, duration=frames / fps)
        return torch.stack([torch.from_numpy(np.array(self.image(name, width, height))) for name in names]).permute(0, 3, 1, 2), metadata

    def put(self, key, value):
        if isinstance(value, list):
            value = torch.tensor(value)
        if value is not None:
            self.tensors[key] = value.detach().cpu().contiguous().clone()

    def put_rows(self, key, value, dim):
        """Store a sequence: whole for tiny models, otherwise its first 8 and last 8 entries along `dim`."""
        if self.args.size == "full" and value.shape[dim] > 16:
            n = value.shape[dim]
            value = torch.cat([value.narrow(dim, 0, 8), value.narrow(dim, n - 8, 8)], dim)
            self.meta.setdefault("first8_last8", []).append(key)
        self.put(key, value)

    def put_layers(self, prefix, states):
        """Hidden states [batch, sequence, hidden]: of all layers unless the model is of full size, then first, middle, last."""
        states = list(states)
        keep = range(len(states)) if self.args.size != "full" else sorted({0, len(states) // 2, len(states) - 1})
        for i in keep:
            self.put_rows(f"{prefix}.{i}", states[i], 1)

    def load(self, cls, **kw):
        model, info = cls.from_pretrained(self.snapshot, dtype=DTYPES[self.args.dtype], attn_implementation="eager",
                                          output_loading_info=True, **kw)
        bad = {k: v for k, v in info.items() if v}
        if bad:
            raise SystemExit(f"{self.name}: the snapshot does not load cleanly: {bad}")
        return model.eval().to(self.args.device)

    def noise(self, model, fn, base, other="sdpa"):
        """Largest absolute difference to `base`, which eager attention gave, of `fn()` ({name: tensor}) under another attention
        or in `float64`."""
        dtype = model.dtype
        model.double() if other == "float64" else model.set_attn_implementation(other)
        again = fn()
        model.to(dtype) if other == "float64" else model.set_attn_implementation("eager")
        if other != "sdpa":
            self.meta["noise_from"] = other
        for k, v in again.items():
            d = (v.double() - base[k].double()).abs()
            d = d[d.isfinite()]               # of what is masked out
            self.meta["noise"][k] = {"max_abs_diff_sdpa": float(d.max()), "max_abs": float(base[k][base[k].isfinite()].float().abs().max())}

    def finish(self):
        m, a = self.meta, self.args
        m.update(seed=a.seed, dtype=a.dtype, device=str(a.device), size=a.size, versions={
            "torch": torch.__version__, "torchvision": torchvision.__version__,
            "transformers": transformers.__version__, "python": platform.python_version()},
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            tensors={k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in sorted(self.tensors.items())})
        save_file(self.tensors, self.dir / "expected.safetensors", metadata={"format": "pt"})
        (self.dir / "meta.json").write_text(json.dumps(m, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def to_device(batch, args):
    """Move a processor's output; floating-point inputs stay float32 (each model casts them itself)."""
    return {k: v.to(args.device) if isinstance(v, torch.Tensor) else v for k, v in dict(batch).items()}


def greedy(model, inputs, fx, key, **kw):
    """Generate greedily; store the new ids and each step's logits, and note the margins."""
    kw = {"do_sample": False, "num_beams": 1, "max_new_tokens": fx.args.max_new_tokens, **kw}
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **kw)
    logits = torch.stack(out.logits, dim=1).float()          # before any logits processor
    fx.put(f"{key}.ids", out.sequences)
    fx.put(f"{key}.step_logits" if fx.args.size != "full" else f"{key}.step_logits_top",
           logits if fx.args.size != "full" else logits.topk(8, -1).values)
    top = logits.topk(2, -1).values
    fx.meta.setdefault("greedy_margins", {})[key] = [[round(float(v), 5) for v in row] for row in (top[..., 0] - top[..., 1])]
    return out.sequences


def ask(fx, model, case, inputs, features=None, other="sdpa", brief=False):
    """Expect what a prompt gives: its inputs, the tensors of `features()` ({name: tensor}, rows first), every layer, the
    logits of the last 4 positions, and up to 8 tokens written greedily; returns the text's ids. Where `brief`, because another
    case has the same images, neither pixels nor layers but the last."""
    for k, v in inputs.items():
        if not k.startswith("pixel_values") or (fx.args.size != "full" and not brief):
            fx.put(f"{case}.{k}", v)

    def run():
        o = model(**inputs, output_hidden_states=True, use_cache=False)
        out = {"logits": o.logits[:, -4:], **(features() if features else {})}
        return o, {f"{case}.{k}": v for k, v in out.items()}

    o, out = run()
    for k, v in out.items():
        fx.put(k, v) if k.endswith(".logits") else fx.put_rows(k, v, 0)
    if brief:
        fx.put_rows(f"{case}.text.hidden_states.{len(o.hidden_states) - 1}", o.hidden_states[-1], 1)
    else:
        fx.put_layers(f"{case}.text.hidden_states", o.hidden_states)
    fx.noise(model, lambda: run()[1], out, other)
    return greedy(model, inputs, fx, f"{case}.greedy", eos_token_id=-1, max_new_tokens=min(8, fx.args.max_new_tokens))


def online_softmax_attention(module, query, key, value, attention_mask, scaling=None, softcap=None, block=16, **kwargs):
    """Attention over blocks of keys with a running maximum, as flash kernels compute it; SDPA cannot cap its logits. A second
    opinion that is as good as eager attention's, to measure noise with."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    largest = torch.full((*query.shape[:-1], 1), float("-inf"), device=query.device)
    total, summed = torch.zeros_like(largest), torch.zeros(query.shape, device=query.device)
    for start in range(0, key.shape[2], block):
        logits = (query @ key[:, :, start:start + block].transpose(2, 3)).float() * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if attention_mask is not None:
            logits = logits + attention_mask[..., start:start + block].float()
        new = torch.maximum(largest, logits.amax(-1, keepdim=True))
        shares, shrink = torch.exp(logits - new), torch.exp(largest - new)
        total = total * shrink + shares.sum(-1, keepdim=True)
        summed = summed * shrink + (shares.to(value.dtype) @ value[:, :, start:start + block]).float()
        largest = new
    return (summed / total).to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register("online_softmax", online_softmax_attention)
AttentionMaskInterface.register("online_softmax", eager_mask)
