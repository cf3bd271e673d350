#!/usr/bin/env python3
"""Write docs/RESULTS.md: what evaluate and fit make of the shipped nano models and of deliberately weaker ones.

    results.py --weak FOLDER [--seen-heads FOLDER] [--concord target/release/concord] [--data ../shared/data]
               [--work target/results] [--out docs/RESULTS.md] [--no-shifts] [--only ENSEMBLE/TASK ...] [--page-only]

FOLDER holds what train.py makes of `--side 32 --heads-on seen`: dinov3 (--epochs 20) and siglip2 (--epochs 40); they take the
places of the nano ones in the ensemble called weak. --seen-heads holds dinov3/head.*.safetensors of the nano backbone, from
`--only heads --heads-on seen`: the shipped heads were fitted on the held-out signs, which leaves nothing to fit the rest on.

Everything is fitted on the held-out signs of the train archive (holdout.txt) and reported on the test archive. Votes are kept
under --work, so that a second run takes a minute. Needs Python's own library only.
"""
import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# A vote of the full-size models on one H200 in bf16, batch 1, milliseconds (docs/PERFORMANCE.md).
GPU_MS = {"dinov3": 1.60, "siglip2": 2.35, "florence2": 8.69, "molmo2": 28.6}
TASKS = {"roadwork": ["--class", "25_road_work=road work", "--other", "no road work"], "traffic_sign": []}
CURVE = [64, 16, 4, 1]          # every Nth held-out picture
SHIFT_EVERY = {"roadwork": 48, "traffic_sign": 24}     # every Nth of the test archive, in 30 ways
# How far under asking all models the cascade may stay: what a threshold is fitted to.
ACCURACY_GIVEN_UP = {"roadwork": 0.0005, "traffic_sign": 0.002}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weak", type=Path, required=True)
    parser.add_argument("--seen-heads", type=Path)
    parser.add_argument("--concord", default=str(ROOT / "target/release/concord"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CONCORD_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--work", type=Path, default=ROOT / "target/results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/RESULTS.md")
    parser.add_argument("--no-shifts", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--page-only", action="store_true", help="write the page again from what the last run left under --work")
    return parser.parse_args()


class Lab:
    """Runs concord on an ensemble of its own, with votes that are kept."""

    def __init__(self, args):
        self.args = args
        args.work.mkdir(parents=True, exist_ok=True)
        self.test = args.data / "gtsrb_test.tar.gz"
        self.held = self.held_out()

    def held_out(self):
        """A folder of the held-out frames, and the table of each task."""
        folder = self.args.work / "held"
        tables = {task: folder / f"{task}.csv" for task in TASKS}
        if all(table.exists() for table in tables.values()):
            return tables
        signs = set((HERE / "holdout.txt").read_text().split())
        labels = labels_of(ROOT / "ensemble.toml", "traffic_sign")
        rows = []
        with tarfile.open(self.args.data / "gtsrb_train.tar.gz") as archive:
            for member in archive:
                parts = member.name.split("/")[-2:]
                if not member.isfile() or len(parts) < 2:
                    continue
                sign = f"{parts[0]}/{parts[1].split('_')[0]}"
                if sign in signs:
                    target = folder / parts[0] / parts[1]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(member).read())
                    rows.append((f"{parts[0]}/{parts[1]}", int(parts[0][:2]), sign))
        for task, table in tables.items():
            with table.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["path", "label", "group"])
                for path, index, sign in sorted(rows):
                    road_work = "road work" if index == 25 else "no road work"
                    writer.writerow([path, road_work if task == "roadwork" else labels[index], sign])
        return tables

    def ensemble(self, name):
        """A fresh copy of the shipped file, with the models of this ensemble."""
        folder = self.args.work / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("learned.*"):
            old.unlink()
        text = (ROOT / "ensemble.toml").read_text().replace('"models/nano/', f'"{HERE}/')
        if name == "weak":
            for model in ("dinov3", "siglip2"):
                text = text.replace(f'"{HERE}/{model}"', f'"{self.args.weak.resolve()}/{model}"')
        elif self.args.seen_heads:
            backbone = folder / "dinov3"
            shutil.copytree(HERE / "dinov3", backbone, dirs_exist_ok=True)
            for head in (self.args.seen_heads / "dinov3").glob("head.*"):
                shutil.copy(head, backbone)
            text = text.replace(f'"{HERE}/dinov3"', f'"{backbone}"')
        path = folder / "ensemble.toml"
        path.write_text(text)
        return path

    def run(self, *command):
        command = [self.args.concord, *map(str, command), "--votes", str(self.args.work / "votes")]
        print("$", *command[1:], flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def evaluate(self, path, task, *more):
        labelling = TASKS[task]
        return json.loads(self.run("evaluate", "--ensemble", path, "--task", task, "--data", self.test, "--json",
                                   *labelling, *more))

    def evaluate_held(self, path, task):
        return json.loads(self.run("evaluate", "--ensemble", path, "--task", task, "--data", self.held[task], "--json"))

    def fit(self, path, task, *more):
        return self.run("fit", "--ensemble", path, "--task", task, "--data", self.held[task], *more)


def labels_of(path, task):
    return tomllib.loads(path.read_text())["tasks"][task]["labels"]


def named(result, name):
    return next((row for row in result["answerers"] if row["name"] == name), None)


def figure(row, key, digits=4):
    if row is None or row.get(key) is None:
        return "–"
    value = row[key]
    return f"{value['value']:.{digits}f} ({value['low']:.{digits}f} – {value['high']:.{digits}f})"


def value(row, key):
    return row[key]["value"]


def table(rows, head):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def measure_one(lab, name, task):
    """All runs of one ensemble and task; thresholds are fitted for nearly the accuracy of asking all models."""
    path = lab.ensemble(name)
    shipped = path.read_text()
    before = lab.evaluate(path, task)
    # What asking all models comes to once calibration and weights are fitted.
    lab.fit(path, task)
    held = lab.evaluate_held(path, task)
    path.write_text(shipped)
    wanted = max(value(row, "accuracy") for row in held["answerers"] if row["kind"] == "fusion") - ACCURACY_GIVEN_UP[task]
    told = lab.fit(path, task, "--min-accuracy", f"{wanted:.4f}", "--evaluation", lab.test)
    after = lab.evaluate(path, task)
    prices = [part for model, amount in GPU_MS.items() for part in ("--price", f"{model}={amount}")]
    priced = lab.evaluate(path, task, *prices)
    shifted = None if lab.args.no_shifts else lab.evaluate(path, task, "--shift", "all", "--every", SHIFT_EVERY[task])
    curve = []
    for every in CURVE:
        path.write_text(shipped)
        pictures = re.search(r"(\d+) pictures in (\d+) groups", lab.fit(path, task, "--every", every))
        curve.append((*pictures.groups(), lab.evaluate(path, task)))
    return dict(before=before, after=after, priced=priced, told=told, shifted=shifted, curve=curve, held=held)


def section(name, task, found):
    """Tables of one ensemble and task, as text."""
    before, after, priced = found["before"], found["after"], found["priced"]
    rows = []
    for label, result, row_name in [
        *[(row["name"], after, row["name"]) for row in after["answerers"] if row["kind"] == "model"],
        ("all, linear", after, "all, linear"), ("all, log-linear", after, "all, log_linear"),
        ("all, weights for each image", after, "all, learned"),
        ("all, uniformly", after, "all, uniformly"),
        ("cascade as shipped", before, "cascade"), ("cascade fitted", after, "cascade"),
        ("random escalation at its cost", after, "random escalation"), ("oracle", after, "oracle"),
    ]:
        row = named(result, row_name)
        if row:
            cost = named(priced if result is after else {"answerers": []}, row_name)
            rows.append([label, figure(row, "accuracy"), figure(row, "mcc"), figure(row, "nll"), figure(row, "ece"),
                         f"{value(row, 'milliseconds'):.1f}", f"{value(cost, 'price'):.2f}" if cost else "–"])
    text = [f"## {name}, {task}\n",
            table(rows, ["", "accuracy", "MCC", "NLL", "ECE", "CPU ms (nano)", "GPU ms (full size)"])]
    shares = " / ".join(f"{100 * share['value']:.1f}" for share in after["stages"])
    text.append(f"The fitted cascade answers {shares} % at its stages. What `concord fit` said:\n")
    told = found["told"].split("\n\n")
    # Not the difference, and nothing of where it was run.
    dropped = ("@@", "Written;", "Networks: ", str(ROOT))
    kept = [part.strip("\n") for part in told if part.strip() and not any(mark in part for mark in dropped)]
    kept = ["\n".join(line.rstrip() for line in part.splitlines() if line.strip("─═ ")) for part in kept]
    text.append("```\n" + "\n\n".join(kept) + "\n```\n")
    curve = [[pictures, groups, figure(named(result, "all, log_linear"), "nll"), figure(named(result, "cascade"), "nll"),
              figure(named(result, "cascade"), "ece"), figure(named(result, "cascade"), "accuracy")]
             for pictures, groups, result in found["curve"]]
    text.append("Fitted (without a goal) on fewer held-out photographs:\n")
    text.append(table(curve, ["photographs", "signs", "NLL, all, log-linear", "NLL, cascade", "ECE, cascade", "accuracy, cascade"]))
    if found["shifted"]:
        text.append(shift_table(found["shifted"], SHIFT_EVERY[task]))
    return "\n".join(text)


def shift_table(result, every):
    """Accuracy and ECE of the fitted cascade under each corruption, severities 1 to 5."""
    by_name = {}
    for shifted in result["shifts"]:
        if shifted["severity"] > 0:
            by_name.setdefault(shifted["shift"], {})[shifted["severity"]] = named(shifted, "cascade")
    rows = [[name, *(f"{value(of[severity], 'accuracy'):.3f} / {value(of[severity], 'ece'):.3f}" for severity in sorted(of))]
            for name, of in by_name.items()]
    return (f"Accuracy / ECE of the fitted cascade on every {every}th photograph, made worse:\n\n"
            + table(rows, ["severity", "1", "2", "3", "4", "5"]))


def answers(found):
    """The questions of the page, each with its figures."""
    lines = []
    for (name, task), result in found.items():
        after, priced, before = result["after"], result["priced"], result["before"]
        models = [row for row in after["answerers"] if row["kind"] == "model"]
        fusions = [row for row in after["answerers"] if row["kind"] == "fusion"]
        best, fused, cascade = (max(rows, key=lambda row: value(row, "mcc")) for rows in (models, fusions, [named(after, "cascade")]))
        asks_all, asks_all_gpu = named(after, fused["name"]), named(priced, fused["name"])
        ratio = value(cascade, "milliseconds") / value(asks_all, "milliseconds")
        ratio_gpu = value(named(priced, "cascade"), "price") / value(asks_all_gpu, "price")
        errors = after["first_stage_errors"]
        gate = after.get("first_stage_gate")
        shifts = [named(one, "cascade") for one in (result["shifted"] or {"shifts": []})["shifts"] if one["severity"] > 0]
        lines.append([
            f"{name}, {task}", f"{best['name']} {value(best, 'mcc'):.4f}", f"{fused['name']} {value(fused, 'mcc'):.4f}",
            f"{value(cascade, 'mcc'):.4f}", f"{ratio:.2f} / {ratio_gpu:.2f}",
            f"{value(named(before, 'cascade'), 'ece'):.4f} → {value(cascade, 'ece'):.4f}",
            f"{sum(value(row, 'ece') for row in shifts) / len(shifts):.3f}; {max(value(row, 'ece') for row in shifts):.3f}" if shifts else "–",
            f"{errors['auroc']['value']:.3f}" if "auroc" in errors else f"{errors['too_few']} errors",
            f"{gate['auroc']['value']:.3f}" if gate and "auroc" in gate else "–",
        ])
    return table(lines, ["", "best model, MCC", "best fusion of all, MCC", "fitted cascade, MCC",
                         "its cost / asking all: CPU / GPU", "ECE of verdicts, shipped → fitted", "ECE shifted: mean; worst",
                         "AUROC of confidence", "of the gate"])


def main():
    args = arguments()
    lab = Lab(args)
    found = {}
    for name in ("nano", "weak"):
        for task in TASKS:
            if not args.only or f"{name}/{task}" in args.only:
                kept = args.work / f"{name}.{task}.json"
                if not args.page_only:
                    kept.write_text(json.dumps(measure_one(lab, name, task)))
                found[name, task] = json.loads(kept.read_text())
    page = [(HERE / "results.head.md").read_text(), answers(found),
            *(section(name, task, result) for (name, task), result in found.items())]
    args.out.write_text("\n".join(page))
    print(f"{args.out} written")


if __name__ == "__main__":
    main()
