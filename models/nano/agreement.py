#!/usr/bin/env python3
"""Compare Concord with transformers on the test archive, model by model and as a cascade.

    agreement.py [--concord target/release/concord] [--ensemble ensemble.toml] [--data ../shared/data]
                 [--limit N] [--models NAME...] [--png] [--json FILE]

Each model is asked alone (a copy of the ensemble in which it is every task's only stage, at temperature 1)
and the same files go through transformers' own processors and classes: argmax agreement, and the largest
and mean difference in probability. Then the ensemble as it is: the share that each stage decides, and MCC.
Both read JPEG with libjpeg-turbo's code, bit for bit the same. --png takes decoding out altogether: the
images are stored again without loss before either reads them.
"""
import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import captions
import data
import heads
import measure


def alone(ensemble, model, folder):
    """The text of an ensemble in which `model` answers every task by itself, uncalibrated."""
    section = ensemble["models"][model]
    lines = [f"[models.{model}]", f"architecture = {json.dumps(section['architecture'])}",
             f"snapshot = {json.dumps(str((folder / section['snapshot']).resolve()))}", 'device = "cpu"']
    if "heads" in section:
        pairs = ", ".join(f"{task} = {json.dumps(file)}" for task, file in section["heads"].items())
        lines.append(f"heads = {{ {pairs} }}")
    for name, task in ensemble["tasks"].items():
        lines += [f"[tasks.{name}]", f"question = {json.dumps(task['question'])}", f"labels = {json.dumps(task['labels'])}"]
        if "prompt_templates" in task:
            lines.append(f"prompt_templates = {json.dumps(task['prompt_templates'])}")
        if "prompts" in task:
            lines.append(f"[tasks.{name}.prompts]")
            lines += [f"{json.dumps(label)} = {json.dumps(texts)}" for label, texts in task["prompts"].items()]
        if "answers" in task:
            lines.append(f"[tasks.{name}.answers]")
            lines += [f"{json.dumps(label)} = {json.dumps(text)}" for label, text in task["answers"].items()]
        lines += [f"[[tasks.{name}.stages]]", f"models = [{json.dumps(model)}]"]
    return "\n".join(lines) + "\n"


def prompts_of(task):
    """The prompts of each label, as Concord resolves them."""
    given = task.get("prompts", {})
    return [given.get(label, [t.replace("{label}", label) for t in task.get("prompt_templates", [])]) for label in task["labels"]]


def ask_concord(concord, ensemble_file, task, files):
    start = time.time()
    done = subprocess.run([concord, "classify", "--ensemble", ensemble_file, "--task", task, "--json", files],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"concord failed: {done.stderr or done.stdout[-500:]}")
    return [json.loads(line) for line in done.stdout.splitlines()], time.time() - start


def answers_of(task):
    """What a model that is asked the question answers for each label, as Concord resolves it."""
    default = ["NO", "YES"] if len(task["labels"]) == 2 else task["labels"]
    return [task.get("answers", {}).get(label, other) for label, other in zip(task["labels"], default)]


def ask_pixels(architecture, snapshot, head, task, samples):
    """Logits of a model that takes pixels of one size: [images, labels]."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Florence2ForConditionalGeneration
    pixels = measure.pixels(AutoImageProcessor.from_pretrained(snapshot), samples)
    if architecture == "florence2":
        import ask_florence2
        network = Florence2ForConditionalGeneration.from_pretrained(snapshot, dtype=torch.float32).eval()
        return ask_florence2.logits(network, AutoTokenizer.from_pretrained(snapshot), pixels, prompts_of(task))
    network = AutoModel.from_pretrained(snapshot, dtype=torch.float32).eval()
    if architecture == "dinov3":
        head = {key: tensor.float() for key, tensor in load_file(snapshot / head).items()}
        return F.linear(heads.all_features(network, pixels), head["linear.weight"], head["linear.bias"])
    embeddings = captions.label_embeddings(network, AutoTokenizer.from_pretrained(snapshot), prompts_of(task))
    return captions.logits(network, pixels, embeddings)


def ask_molmo2(snapshot, task, samples):
    """Logits of a model that is asked the question in words: [images, labels]."""
    import ask_molmo2 as ask
    from transformers import AutoProcessor, Molmo2ForConditionalGeneration
    network = Molmo2ForConditionalGeneration.from_pretrained(snapshot, dtype=torch.float32).eval()
    processor, answers = AutoProcessor.from_pretrained(snapshot), answers_of(task)
    patches = ask.pixels(processor.image_processor, samples)
    return ask.logits(network, processor.tokenizer, patches, ask.choices(task["question"], answers), answers)


@torch.no_grad()
def ask_transformers(ensemble, model, name, folder, samples):
    """Probabilities by the reference: [images, labels]."""
    section, task = ensemble["models"][model], ensemble["tasks"][name]
    snapshot = folder / section["snapshot"]
    if section["architecture"] == "molmo2":
        return ask_molmo2(snapshot, task, samples).softmax(1)
    return ask_pixels(section["architecture"], snapshot, section.get("heads", {}).get(name), task, samples).softmax(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concord", default="target/release/concord")
    parser.add_argument("--ensemble", type=Path, default=Path("ensemble.toml"))
    parser.add_argument("--data", help="folder of gtsrb_test.tar.gz (CONCORD_DATA, ../shared/data)")
    parser.add_argument("--limit", type=int, help="use so many images")
    parser.add_argument("--models", nargs="+", help="these models only, and not the cascade")
    parser.add_argument("--png", action="store_true", help="store the images as PNG first, to leave JPEG decoding out")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    archive = data.data_folder(args.data) / "gtsrb_test.tar.gz"
    ensemble = tomllib.loads(args.ensemble.read_text())
    base, report = args.ensemble.resolve().parent, {}
    local = [model for model, section in ensemble["models"].items() if section["architecture"] != "cloud"]
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "images"
        with tarfile.open(archive) as opened:
            opened.extractall(files, filter="data")
        found = sorted(files.rglob("*.jpg"), key=lambda path: path.relative_to(files).parts)
        if args.limit:
            for path in [p for index, p in enumerate(found) if index % (len(found) // args.limit)]:
                path.unlink()
            found = [p for p in found if p.exists()]
        if args.png:
            for index, path in enumerate(found):
                found[index] = path.with_suffix(".png")
                Image.open(path).convert("RGB").save(found[index])
                path.unlink()
        samples = [(path.parent.name, path.stem, Image.open(path).convert("RGB")) for path in found]
        for name, task in ensemble["tasks"].items():
            truth = measure.truth(samples, name, "cpu")
            for model in args.models or local:
                variant = Path(scratch) / f"{model}.toml"
                variant.write_text(alone(ensemble, model, base))
                verdicts, _ = ask_concord(args.concord, variant, name, files)
                assert [v["file"] for v in verdicts] == [str(path) for path in found]
                ours = torch.tensor([[v["probabilities"][label] for label in task["labels"]] for v in verdicts])
                theirs = ask_transformers(ensemble, model, name, base, samples)
                difference = (ours - theirs).abs()
                row = {"n": len(found), "argmax_agreement": (ours.argmax(1) == theirs.argmax(1)).float().mean().item(),
                       "largest_difference": difference.max().item(), "mean_difference": difference.mean().item()}
                for who, probabilities in (("concord", ours), ("transformers", theirs)):
                    figures = measure.figures(probabilities.clamp_min(1e-12).log(), truth, 1.0)
                    row[who] = {key: figures[key] for key in ("accuracy", "mcc") if key in figures}
                report[f"{name}.{model}"] = row
                print(f"{name}.{model}: {json.dumps(row)}", flush=True)
            if args.models:
                continue
            verdicts, seconds = ask_concord(args.concord, args.ensemble, name, files)
            ours = torch.tensor([[v["probabilities"][label] for label in task["labels"]] for v in verdicts])
            figures = measure.figures(ours.clamp_min(1e-12).log(), truth, 1.0)
            stages = {str(stage): sum(v["stage"] == stage for v in verdicts) / len(verdicts) for stage in range(1, len(task["stages"]) + 1)}
            row = {"n": len(found), "decided_at_stage": stages, "milliseconds_each": 1e3 * seconds / len(found),
                   **{key: figures[key] for key in ("accuracy", "mcc") if key in figures}}
            report[f"{name}.ensemble"] = row
            print(f"{name}.ensemble: {json.dumps(row)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
