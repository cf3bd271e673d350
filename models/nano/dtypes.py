#!/usr/bin/env python3
"""How far the number formats agree with fp32: the same votes on every photograph of the test archive.

    dtypes.py [--concord target/release/concord] [--ensemble ensemble.toml] [--data ../shared/data]
              [--device cuda] [--dtypes bf16 fp16 fp8] [--models NAME...] [--limit N] [--json FILE]

Each model is asked alone (a copy of the ensemble in which it is every task's only stage, at temperature 1), once in fp32 and
once in each format, on the same device. A format that a model or device has not is told and left out. Needs Python's own
library only.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROAD_WORK = 25
EXACT = "fp32"


def alone(ensemble, model, folder, device, dtype):
    """The text of an ensemble in which `model` answers every task by itself, uncalibrated."""
    section = ensemble["models"][model]
    lines = [f"[models.{model}]", f"architecture = {json.dumps(section['architecture'])}",
             f"snapshot = {json.dumps(str((folder / section['snapshot']).resolve()))}",
             f"device = {json.dumps(device)}", f"dtype = {json.dumps(dtype)}"]
    if "heads" in section:
        pairs = ", ".join(f"{task} = {json.dumps(file)}" for task, file in section["heads"].items())
        lines.append(f"heads = {{ {pairs} }}")
    for name, task in ensemble["tasks"].items():
        lines.append(f"[tasks.{name}]")
        lines += [f"{key} = {json.dumps(task[key])}" for key in ("question", "labels", "prompt_templates") if key in task]
        for table in ("prompts", "answers"):
            if table in task:
                lines.append(f"[tasks.{name}.{table}]")
                lines += [f"{json.dumps(label)} = {json.dumps(value)}" for label, value in task[table].items()]
        lines += [f"[[tasks.{name}.stages]]", f"models = [{json.dumps(model)}]"]
    return "\n".join(lines) + "\n"


def ask(concord, ensemble_file, task, files):
    """Probabilities by file and label; None, told, where Concord fails."""
    done = subprocess.run([concord, "classify", "--ensemble", ensemble_file, "--task", task, "--json", files],
                          capture_output=True, text=True)
    if done.returncode != 0:
        print((done.stderr or done.stdout[-500:]).strip(), file=sys.stderr)
        return None
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    return {verdict["file"]: verdict["probabilities"] for verdict in verdicts}


def matthews(pairs):
    """Matthews' correlation of pairs (said, true) of yes and no."""
    tp, tn, fp, fn = (sum(pair == wanted for pair in pairs) for wanted in ((1, 1), (0, 0), (1, 0), (0, 1)))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / below if below else 0.0


def figures(exact, ours, task, labels):
    """Agreement with the exact votes, and with what the photographs show."""
    best = {file: max(labels, key=probabilities.get) for file, probabilities in ours.items()}
    same = sum(best[file] == max(labels, key=exact[file].get) for file in exact)
    differences = [abs(exact[file][label] - ours[file][label]) for file in exact for label in labels]
    classes = {file: int(Path(file).parent.name[:2]) for file in exact}
    row = {"n": len(exact), "differ": len(exact) - same, "argmax_agreement": same / len(exact),
           "largest_difference": max(differences), "mean_difference": sum(differences) / len(differences)}
    if task == "roadwork":
        row["mcc"] = matthews([(int(best[file] == labels[1]), int(classes[file] == ROAD_WORK)) for file in exact])
    else:
        row["accuracy"] = sum(best[file] == labels[classes[file]] for file in exact) / len(exact)
    return row


def unpack(archive, into, limit):
    with tarfile.open(archive) as opened:
        opened.extractall(into, filter="data")
    found = sorted(into.rglob("*.jpg"))
    if limit:
        for index, path in enumerate(found):
            if index % max(1, len(found) // limit):
                path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concord", default="target/release/concord")
    parser.add_argument("--ensemble", type=Path, default=Path("ensemble.toml"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CONCORD_DATA", "../shared/data")))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp16", "fp8"])
    parser.add_argument("--models", nargs="+", help="these models only")
    parser.add_argument("--limit", type=int, help="use so many photographs")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    ensemble, base = tomllib.loads(args.ensemble.read_text()), args.ensemble.resolve().parent
    local = [model for model, section in ensemble["models"].items() if section["architecture"] != "cloud"]
    report = {}
    with tempfile.TemporaryDirectory() as scratch:
        files, variant = Path(scratch) / "images", Path(scratch) / "ensemble.toml"
        unpack(args.data / "gtsrb_test.tar.gz", files, args.limit)
        for model in args.models or local:
            for task, section in ensemble["tasks"].items():
                exact = None
                for dtype in [EXACT, *args.dtypes]:
                    variant.write_text(alone(ensemble, model, base, args.device, dtype))
                    ours = ask(args.concord, variant, task, files)
                    if ours is None and dtype == EXACT:
                        sys.exit(f"{model} does not answer in {EXACT}: nothing to compare with")
                    if ours is None:
                        continue
                    exact = exact or ours
                    report[f"{task}.{model}.{dtype}"] = row = figures(exact, ours, task, section["labels"])
                    print(f"{task}.{model}.{dtype}: {json.dumps(row)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
