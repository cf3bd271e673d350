#!/usr/bin/env python3
"""Write docs/RESULTS.md: what evaluate and fit make of the shipped nano models and of deliberately weaker ones.

    results.py --weak FOLDER --seen-heads FOLDER [--concord target/release/concord] [--data ../shared/data]
               [--work target/results] [--out docs/RESULTS.md] [--only ENSEMBLE/TASK ...] [--step STEP ...]

Three ensembles: shipped; seen, the shipped one with DINOv3's heads in --seen-heads, from `train.py --only heads --heads-on seen`
(the shipped heads were fitted on the held-out signs, which leaves nothing to fit the rest on); and weak, with what train.py makes
of `--side 32 --heads-on seen` in --weak: dinov3 (--epochs 14) and siglip2 (--epochs 40).

Steps, all by default: votes (on the CPU, whose milliseconds are the costs), shifts (votes on corrupted images, on a GPU where
there is one), measure (fits and evaluations, of votes that are there by then) and page. What a run that was ended has measured is
not measured again: remove WORK/*.json for that. Everything is fitted on the held-out signs of the train archive (holdout.txt) and
reported on the test archive. Needs Python's own library only.
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

import results_page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# A vote of the full-size models on one H200 in bf16, batch 1, milliseconds (docs/PERFORMANCE.md).
GPU_MS = {"dinov3": 1.60, "siglip2": 2.35, "florence2": 8.69, "molmo2": 28.6}
PRICES = [part for model, amount in GPU_MS.items() for part in ("--price", f"{model}={amount}")]
ENSEMBLES = ["shipped", "seen", "weak"]
TASKS = {"roadwork": ["--class", "25_road_work=road work", "--default-label", "no road work"], "traffic_sign": []}
STEPS = ["votes", "shifts", "measure", "page"]
CURVE = [64, 16, 4, 1]          # every Nth held-out image
SHIFT_EVERY = 4                 # every Nth of the test archive, in 30 ways
SHIFT = ["--shift", "all"]
COPIES = 4                      # of each held-out image, each with another corruption
# How far under asking all models the cascade may stay: what a threshold is fitted to.
ACCURACY_GIVEN_UP = {"roadwork": 0.0005, "traffic_sign": 0.002}
# Of what asking all full-size models costs: what the cascade may cost where it is fitted on corrupted images, or must use
# what was learned.
COST_SHARE = 2 / 3
# Thresholds that are tried where the fitted cascade is not within 0.005 of the MCC of asking all.
SURER = [0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99999, 0.999999]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weak", type=Path, required=True)
    parser.add_argument("--seen-heads", type=Path, required=True)
    parser.add_argument("--concord", default=str(ROOT / "target/release/concord"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CONCORD_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--work", type=Path, default=ROOT / "target/results", help="votes and figures are kept here")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/RESULTS.md")
    every = [f"{ensemble}/{task}" for ensemble in ENSEMBLES for task in TASKS]
    parser.add_argument("--only", nargs="*", default=every, choices=every, metavar="ENSEMBLE/TASK",
                        help="with another --out, if a page is made: the words are about all of them")
    parser.add_argument("--step", nargs="*", default=STEPS, choices=STEPS)
    args = parser.parse_args()
    if "page" in args.step and args.only != every and args.out == parser.get_default("out"):
        parser.error("a page of some of them alone needs an --out of its own")
    return args


class Lab:
    """Runs concord on one ensemble and task, with votes that are kept."""

    def __init__(self, args, name, task):
        self.args, self.name, self.task = args, name, task
        self.folder = args.work / name / task
        self.folder.mkdir(parents=True, exist_ok=True)
        self.test = args.data / "gtsrb_test.tar.gz"
        self.held = held_out(args) / f"{task}.csv"
        self.path = self.folder / "ensemble.toml"

    def start_again(self):
        """A fresh copy of the shipped file, with the models of this ensemble."""
        for old in self.folder.glob("learned.*"):
            old.unlink()
        text = (ROOT / "ensemble.toml").read_text().replace('"models/nano/', f'"{HERE}/')
        if self.name == "weak":
            for model in ("dinov3", "siglip2"):
                text = text.replace(f'"{HERE}/{model}"', f'"{self.args.weak.resolve()}/{model}"')
        elif self.name == "seen":
            backbone = self.folder / "dinov3"
            shutil.copytree(HERE / "dinov3", backbone, dirs_exist_ok=True)
            for head in (self.args.seen_heads / "dinov3").glob("head.*"):
                shutil.copy(head, backbone)
            text = text.replace(f'"{HERE}/dinov3"', f'"{backbone}"')
        self.path.write_text(text)

    def run(self, command, *more, on_gpu=False):
        votes = self.args.work / "votes" / f"{self.name}.{self.task}{'.shifts' if on_gpu else ''}"
        line = [self.args.concord, command, "--ensemble", self.path, "--task", self.task, "--votes", votes, *more]
        if on_gpu:
            # Milliseconds of votes that were asked for together say nothing: prices count.
            line += ["--concurrency", 64, *PRICES]
        line = [str(part) for part in line]
        print("$", *line[1:], flush=True)
        hidden = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **hidden})
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(line)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def evaluate(self, *more):
        return json.loads(self.run("evaluate", "--data", self.test, "--json", *TASKS[self.task], *more))

    def evaluate_shifted(self):
        found = self.run("evaluate", "--data", self.test, "--json", *TASKS[self.task], *SHIFT, "--stride", SHIFT_EVERY, on_gpu=True)
        return json.loads(found)["shifts"]

    def fit_shifted(self, *more):
        return self.fit(*SHIFT, "--copies", COPIES, *more, on_gpu=True)

    def evaluate_held(self):
        return json.loads(self.run("evaluate", "--data", self.held, "--json"))

    def fit(self, *more, on_gpu=False):
        return self.run("fit", "--data", self.held, "--holdout", self.test, *more, on_gpu=on_gpu)


def held_out(args):
    """A folder of the held-out frames, with a table for each task."""
    folder = args.work / "held"
    tables = {task: folder / f"{task}.csv" for task in TASKS}
    if all(table.exists() for table in tables.values()):
        return folder
    signs = set((HERE / "holdout.txt").read_text().split())
    labels = tomllib.loads((ROOT / "ensemble.toml").read_text())["tasks"]["traffic_sign"]["labels"]
    rows = []
    with tarfile.open(args.data / "gtsrb_train.tar.gz") as archive:
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
        part = table.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "group"])
            for path, index, sign in sorted(rows):
                road_work = "road work" if index == 25 else "no road work"
                writer.writerow([path, road_work if task == "roadwork" else labels[index], sign])
        part.rename(table)
    return folder


def ask_for_votes(lab):
    lab.start_again()
    lab.evaluate()
    lab.fit("--learned", "never", "--dry-run")


def ask_for_shifted_votes(lab):
    lab.start_again()
    lab.evaluate_shifted()
    lab.fit_shifted("--learned", "never", "--dry-run")


def measure(lab, found, keep):
    """All fits of one ensemble and task, each from the shipped file, and what they come to on the test archive."""
    if "before" not in found:
        lab.start_again()
        found["before"] = lab.evaluate()
        # What asking all models comes to once calibration and weights are fitted.
        lab.fit("--learned", "never")
        held = [row for row in lab.evaluate_held()["strategies"] if row["kind"] == "fusion"]
        found["wanted"] = max(row["accuracy"]["value"] for row in held) - ACCURACY_GIVEN_UP[lab.task]
    cheap = ["--min-accuracy", f"{found['wanted']:.4f}"]
    dear = ["--max-cost", f"{COST_SHARE * sum(GPU_MS.values()):.2f}"]
    for key, fit in {
        "fixed": lambda: lab.fit(*cheap, "--learned", "never"),
        "auto": lambda: lab.fit(*cheap),
        "always": lambda: lab.fit(*PRICES, *dear, "--learned", "always"),
        "shift_fixed": lambda: lab.fit_shifted(*dear, "--learned", "never"),
        "shift": lambda: lab.fit_shifted(*dear),
        "shift_always": lambda: lab.fit_shifted(*dear, "--learned", "always"),
    }.items():
        if key not in found:
            lab.start_again()
            found[key] = {"told": fit(), "test": lab.evaluate(), "priced": lab.evaluate(*PRICES)}
            if key not in ("fixed", "always"):
                found[key]["shifts"] = lab.evaluate_shifted()
            keep(found)
    if "surer" not in found:
        found["surer"] = surer(lab, found["auto"]["test"], cheap)
        keep(found)
    found["curve"] = found.get("curve", [])
    for every in CURVE[len(found["curve"]):]:
        lab.start_again()
        images = re.search(r"(\d+) images in (\d+) groups", lab.fit("--stride", every))
        found["curve"].append((*images.groups(), lab.evaluate()))
        keep(found)


def surer(lab, auto, goal):
    """The fitted cascade with thresholds of at least each of SURER, up to the first that is near enough to asking all; none where
    it is as it was fitted. That one is chosen by the images that it is reported on."""
    if results_page.is_near_enough(auto, auto):
        return []
    lab.start_again()
    lab.fit(*goal)
    fitted, tried = lab.path.read_text(), []
    accepts = re.compile(rf"(\[\[tasks\.{lab.task}\.stages\]\]\n(?:(?!\[).*\n)*?accept = {{ confidence = )([0-9.]+)")
    for least in SURER:
        lab.path.write_text(accepts.sub(lambda accept: f"{accept[1]}{max(least, float(accept[2]))}", fitted))
        tried.append({"least": least, "test": lab.evaluate(), "priced": lab.evaluate(*PRICES)})
        if results_page.is_near_enough(tried[-1]["test"], auto):
            break
    return tried


def main():
    args = arguments()
    args.work = args.work.resolve()
    found = {}
    for chosen in args.only:
        lab = Lab(args, *chosen.split("/"))
        kept = args.work / f"{lab.name}.{lab.task}.json"
        if "votes" in args.step:
            ask_for_votes(lab)
        if "shifts" in args.step:
            ask_for_shifted_votes(lab)
        if "measure" in args.step:
            measure(lab, json.loads(kept.read_text()) if kept.exists() else {}, lambda what: kept.write_text(json.dumps(what)))
        if "page" in args.step:
            if not kept.exists():
                raise SystemExit(f"{chosen} has not been measured under {args.work}: leave out --step, or name measure, too")
            found[lab.name, lab.task] = json.loads(kept.read_text())
    if "page" in args.step:
        args.out.write_text(results_page.page(found, (HERE / "results.head.md").read_text(), str(ROOT), SHIFT_EVERY))
        print(f"{args.out} written")


if __name__ == "__main__":
    main()
