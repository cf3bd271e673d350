#!/usr/bin/env python3
"""Full-size models as a cascade over HTTP: latency, throughput, where the time goes, and memory.

    cascade.py --mode full      DINOv3-L, then SigLIP2 so400m and Florence-2-large, then Molmo2-8B, with random weights
    cascade.py --mode nano      the shipped ensemble of four nano models
    cascade.py --mode soak      as full, under full load for --seconds; memory every ten seconds

Starts `concord serve` with a configuration of its own in a temporary folder, and ends it. The answers of random weights mean
nothing, but they differ from photograph to photograph: the thresholds at which --shares of the requests are decided are
quantiles of the confidences of a first pass, and the running server takes them over; the shares that came of it are in
the table. No two requests have the same image, and none looks into the cache. Standard library only.

Exit status 1 where a request failed, or a forward ran without the CUDA graph that it should have had.
"""

import argparse
import glob
import json
import os
import sys
import tempfile
import time

import cascade_config
from cascade_load import Photograph, send
from cascade_server import Sampler, Server, note

HERE = os.path.dirname(os.path.abspath(__file__))
PHASES = ("cache_get", "decode", "preprocess", "queue", "model")
SAMPLE_S = 10
WARM_UP_S = 3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["full", "nano", "soak"], required=True)
    parser.add_argument("--concord", default=os.environ.get("CONCORD", "target/release/concord"), help="the binary")
    parser.add_argument("--photos", nargs="+", metavar="JPEG", help="what is sent (assets/*.jpg)")
    parser.add_argument("--sizes", choices=["full", "tiny"], default="full", help="of full and soak: the presets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--concurrency", default="1,64", help="numbers of clients, one table row each")
    parser.add_argument("--seconds", type=float, default=20, help="of each row; of the soak (480)")
    parser.add_argument("--first-pass", type=int, default=600, metavar="N", help="requests from which thresholds follow")
    parser.add_argument("--shares", default="80,15,5", help="per cent of the requests that each stage decides")
    parser.add_argument("--cpu-threads", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="MODEL.KEY=VALUE", help="a model's option, as in TOML")
    parser.add_argument("--patience", type=float, default=300, metavar="S", help="until it is ready")
    parser.add_argument("--json", metavar="FILE", help="the same figures")
    args = parser.parse_args()
    args.concurrency = [int(number) for number in args.concurrency.split(",")]
    args.shares = [float(share) / 100 for share in args.shares.split(",")]
    if len(args.shares) != len(cascade_config.STAGES) or abs(sum(args.shares) - 1) > 1e-6:
        parser.error("--shares: must be three that are 100 together")
    return args


def main():
    args = arguments()
    found = args.photos or glob.glob(os.path.join(HERE, "..", "..", "assets", "*.jpg"))
    photographs = [Photograph(path) for path in sorted(found)]
    note(f"{len(photographs)} photographs of {sum(len(one.bytes) for one in photographs) / len(photographs) / 1e3:.0f} kB")
    result = {"mode": args.mode, "sizes": args.sizes, "dtype": args.dtype, "device": args.device}
    with tempfile.TemporaryDirectory(prefix="concord-cascade-") as folder:
        if args.mode == "nano":
            run_nano(args, photographs, folder, result)
        else:
            run_full(args, photographs, folder, result)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    faults = result["failed"] + result["fallbacks"]
    sys.exit(1 if faults else 0)


def run_full(args, photographs, folder, result):
    never = cascade_config.random_weights(args, [1.0, 1.0])
    with Server(args.concord, folder, never, args.patience) as server:
        memory = server.memory()
        note("first pass: every model is asked")
        answers = send(server.address, cascade_config.TASK, photographs, 16, count=args.first_pass, seed="first")
        thresholds = quantiles(answers, args.shares)
        server.reconfigure(cascade_config.random_weights(args, thresholds))
        result.update(thresholds=thresholds, ready_s=server.ready_s)
        if args.mode == "soak":
            soak(args, server, photographs, result)
        else:
            rows(args, server, photographs, "cascade", result)
        end(server, memory, result)


def run_nano(args, photographs, folder, result):
    with Server(args.concord, folder, cascade_config.nano(args, all_asked=False), args.patience) as server:
        memory = server.memory()
        rows(args, server, photographs, "as shipped", result)
        server.reconfigure(cascade_config.nano(args, all_asked=True))
        rows(args, server, photographs, "all four asked", result)
        end(server, memory, result)


def quantiles(answers, shares):
    """The thresholds of all stages but the last, so that these shares of the requests are decided at each."""
    voted = [answer.votes for answer in answers if answer.status == 200 and all(answer.votes.values())]
    if len(voted) < 20:
        failed = {answer.status for answer in answers}
        raise SystemExit(f"cascade.py: only {len(voted)} of {len(answers)} first answers are whole: statuses {failed}")
    thresholds, left, asked = [], voted, []
    for stage, models in enumerate(cascade_config.STAGES[:-1]):
        asked.extend(models)
        confidences = sorted(confidence(votes, asked) for votes in left)
        note(f"stage {stage + 1}: confidences {confidences[0]:.6f} to {confidences[-1]:.6f}, {len(set(confidences))} different")
        # Of those that reach this stage, so many are not decided here.
        share = sum(shares[stage + 1 :]) / sum(shares[stage:])
        place = min(len(confidences) - 1, round(share * len(confidences)))
        thresholds.append((confidences[max(place - 1, 0)] + confidences[place]) / 2)
        left = [votes for votes in left if confidence(votes, asked) < thresholds[-1]] or left
    return thresholds


def confidence(votes, models):
    """As Concord's linear fusion with equal weights has it."""
    labels = votes[models[0]]
    return max(sum(votes[model][label] for model in models) for label in labels) / len(models)


def rows(args, server, photographs, what, result):
    """Measures each number of clients, and prints a table."""
    measured = []
    for concurrency in args.concurrency:
        send(server.address, cascade_config.TASK, photographs, concurrency, seconds=WARM_UP_S, seed=f"warm {what}")
        note(f"{what}: {concurrency} clients for {args.seconds:.0f} s")
        before = server.metrics()
        answers = send(server.address, cascade_config.TASK, photographs, concurrency, seconds=args.seconds, seed=what)
        row = {"what": what, "concurrency": concurrency, **summary(answers)}
        row.update(split(before, server.metrics()))
        measured.append(row)
    result.setdefault("rows", []).extend(measured)
    print_rows(what, measured)


def summary(answers):
    wall = max(one.at for one in answers) - min(one.at - one.seconds for one in answers)
    good = sorted(answer.seconds * 1e3 for answer in answers if answer.status == 200)
    if not good:
        raise SystemExit(f"cascade.py: no answer of {len(answers)} was good: {sorted({one.status for one in answers})}")
    stages = [answer.stage for answer in answers if answer.status == 200]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "mean_ms": sum(good) / len(good),
        "p50_ms": rank(good, 0.5),
        "p99_ms": rank(good, 0.99),
        "per_s": len(good) / wall,
        "shares": {stage: stages.count(stage) / len(stages) for stage in sorted(set(stages))},
    }


def rank(values, share):
    """The smallest value that so large a share does not exceed."""
    return values[max(0, -int(-share * len(values) // 1) - 1)]


def split(before, after):
    """Where the time went, from the server's own counters: milliseconds a request."""
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    total = lambda name, label="": sum(value for (key, labels), value in grown.items() if key == name and label in labels)
    requests = total("concord_request_seconds_count") or 1
    batches = {}
    for name in (name for stage in cascade_config.STAGES for name in stage):
        count = total("concord_batch_size_count", f'model="{name}"')
        batches[name] = total("concord_batch_size_sum", f'model="{name}"') / count if count else None
    phases = {}
    for phase in PHASES:
        label = f'phase="{phase}"'
        seconds, count = (total(f"concord_phase_seconds_{part}", label) for part in ("sum", "count"))
        phases[phase] = {"ms_a_request": seconds * 1e3 / requests, "ms_each": seconds * 1e3 / count if count else None}
    server_ms = total("concord_request_seconds_sum") * 1e3 / requests
    return {"server_ms": server_ms, "phases": phases, "images_a_batch": batches}


def print_rows(what, measured):
    stages = len(cascade_config.STAGES)
    print(f"\n### {what}\n")
    header = ["clients", "requests", "failed", "mean ms", "p50", "p99", "requests/s", "decided at stage 1 / 2 / 3"]
    print_table(header, [[
        row["concurrency"], row["requests"], row["failed"], *(f"{row[key]:.2f}" for key in ("mean_ms", "p50_ms", "p99_ms")),
        f"{row['per_s']:.1f}", " / ".join(f"{row['shares'].get(stage, 0):.1%}" for stage in range(1, stages + 1)),
    ] for row in measured])
    print("\nMilliseconds a request (model: a batch counts once for all its requests):\n")
    print_table(["clients", "client", "server", *PHASES], [[
        row["concurrency"], f"{row['mean_ms']:.2f}", f"{row['server_ms']:.2f}",
        *(f"{row['phases'][phase]['ms_a_request']:.2f}" for phase in PHASES),
    ] for row in measured])
    print("\nImages a batch:\n")
    models = list(measured[0]["images_a_batch"])
    shown = lambda number: "–" if number is None else f"{number:.2f}"
    print_table(["clients", *models], [
        [row["concurrency"], *(shown(row["images_a_batch"][name]) for name in models)] for row in measured])


def print_table(header, lines):
    for line in (header, ["---"] * len(header), *lines):
        print("| " + " | ".join(map(str, line)) + " |", flush=True)


def soak(args, server, photographs, result):
    concurrency = max(args.concurrency)
    send(server.address, cascade_config.TASK, photographs, concurrency, seconds=WARM_UP_S, seed="warm")
    note(f"soak: {concurrency} clients for {args.seconds:.0f} s")
    # At least some samples where it is short.
    sampler = Sampler(server, min(SAMPLE_S, args.seconds / 8))
    sampler.start()
    before, begun = server.metrics(), time.monotonic()
    answers = send(server.address, cascade_config.TASK, photographs, concurrency, seconds=args.seconds, seed="soak")
    samples = [(at - begun, gpu, resident) for at, gpu, resident in sampler.finish()]
    row = {"what": "soak", "concurrency": concurrency, **summary(answers)}
    row.update(split(before, server.metrics()))
    result["rows"] = [row]
    print_rows("soak", [row])
    edge = min(60, args.seconds / 4)
    last = args.seconds - edge
    kinds = [("requests/s", None), ("GPU MB", 1), ("RSS MB", 2)]
    lines = []
    for name, column in kinds:
        if column is None:
            ends = [answer.at - begun for answer in answers if answer.status == 200]
            parts = [sum(at < edge for at in ends) / edge, sum(last <= at < args.seconds for at in ends) / edge, None]
        else:
            parts = growth([(at, sample[column - 1]) for at, *sample in samples], edge, last)
        result.setdefault("soak", {})[name] = dict(zip(("first", "last", "slope_a_minute"), parts))
        lines.append([name, *("–" if part is None else f"{part:.2f}" for part in parts)])
    result["soak"]["samples"] = samples
    print(f"\nSamples every {sampler.every_s:.0f} s; first and last are means over {edge:.0f} s.\n")
    print_table(["", "first", "last", "slope a minute, after the first"], lines)


def growth(samples, edge, last):
    """Means of both ends, and the slope of a straight line through all that come after the first end."""
    known = [(at, value) for at, value in samples if value is not None]
    mean = lambda values: sum(values) / len(values) if values else None
    first, end = mean([value for at, value in known if at < edge]), mean([value for at, value in known if at >= last])
    later = [(at, value) for at, value in known if at >= edge]
    if len(later) < 2:
        return [first, end, None]
    at_mean, value_mean = mean([at for at, _ in later]), mean([value for _, value in later])
    spread = sum((at - at_mean) ** 2 for at, _ in later)
    slope = sum((at - at_mean) * (value - value_mean) for at, value in later) / spread
    return [first, end, slope * 60]


def end(server, memory, result):
    """What is told of the whole run."""
    at_end, metrics = server.memory(), server.metrics()
    fallbacks = {labels: value for (name, labels), value in metrics.items() if name == "concord_graph_fallbacks_total"}
    result["memory_mb"] = {"gpu_ready": memory[0], "gpu_end": at_end[0], "rss_ready": memory[1], "rss_end": at_end[1]}
    result["failed"] = sum(row["failed"] for row in result["rows"])
    result["fallbacks"] = sum(fallbacks.values())
    shown = lambda number: "–" if number is None else f"{number:.0f}"
    print("\nMegabytes beside what was there before:\n")
    print_table(["", "ready", "end"], [
        ["GPU", shown(memory[0]), shown(at_end[0])], ["main memory (RSS)", shown(memory[1]), shown(at_end[1])]])
    print(f"\nReady after {server.ready_s:.1f} s. Forwards without their CUDA graph: {fallbacks or 0}.")


if __name__ == "__main__":
    main()
