"""What Concord's models take in Hugging Face transformers: the same shapes, random weights, the same names of works.

    peers.py [--only dinov3,molmo2] [--batch 1,8,32] [--limit-s 150] > peers.jsonl

Prints one JSON object a line, with the fields of `concord bench --json` and `peer` beside them: eager, reduce-overhead,
max-autotune, static (generate with cache_implementation="static", which compiles by itself). Each model in each mode
runs in a process of its own that is ended after --limit-s, so that one slow compilation costs no more than that; what it
printed until then stays. Progress goes to standard error. Needs torch and transformers >= 5.17; `molmo2-whole` >= 5.23.

`--tiny --device cpu` shows in a minute that everything runs.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time

COMPILED = ["reduce-overhead", "max-autotune"]
# A model, by the preset's name of `concord bench`, and the modes in which it is run.
CASES = {
    "dinov3": ("dinov3-vitl16", ["eager", *COMPILED]),
    "siglip2": ("siglip2-so400m-patch14-384", ["eager", *COMPILED]),
    "florence2": ("florence2-large", ["eager"]),
    "molmo2": ("molmo2-8b", ["eager", *COMPILED, "static"]),
    "molmo2-whole": ("molmo2-8b", ["eager", "static"]),
}
# Until so many seconds or iterations of each work; as `concord bench` has them.
SECONDS, ITERATIONS_MIN, ITERATIONS_MAX, WARMUP = 3.0, 5, 10_000, 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="dinov3,siglip2,florence2,molmo2", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--modes", default="", help="only these of a model's modes")
    parser.add_argument("--batch", default="1,8,32", help="of the image towers")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--limit-s", type=float, default=150.0, help="of one model in one mode")
    parser.add_argument("--prompt-tokens", type=int, default=800)
    parser.add_argument("--tiny", action="store_true", help="small models of the same classes")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args, *args.child)
    unknown = [case for case in args.only.split(",") if case not in CASES]
    if unknown:
        parser.error(f"--only {unknown[0]}: must be some of {', '.join(CASES)}")
    failed = False
    for case in args.only.split(","):
        for mode in CASES[case][1]:
            if not args.modes or mode in args.modes.split(","):
                failed |= not in_a_process(case, mode, args.limit_s)
    return 1 if failed else 0


def in_a_process(case, mode, limit_s):
    """Runs one model in one mode; whether it came to its end in time."""
    begun = time.monotonic()
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--child", case, mode]
    # A session of its own, since compilation starts workers that must end with it.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        status = f"ended after {limit_s:.0f} s"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    note(f"{case} {mode}: {'done' if status == 0 else status} in {time.monotonic() - begun:.0f} s")
    return status == 0


def note(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


# ---- The rest runs in the process of one model in one mode.


def child(args, case, mode):
    import peer_models
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    bench = Bench(args, CASES[case][0], mode)
    peer_models.RUN[case](Bench(args, CASES[case][0], mode), args)
    return 0


class Bench:
    """One model in one mode: makes it, compiles it, measures it, prints what came of that."""

    def __init__(self, args, model, mode):
        import torch

        self.args, self.model, self.mode = args, model, mode
        self.on_gpu = args.device.startswith("cuda")
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.dtype]

    def make(self, of_config, config):
        """A model with random weights, made on the device."""
        import torch

        begun = time.monotonic()
        config._attn_implementation = "sdpa"
        with torch.device(self.args.device):
            default = torch.get_default_dtype()
            torch.set_default_dtype(self.dtype)
            try:
                model = of_config(config)
            finally:
                torch.set_default_dtype(default)
        model = model.to(self.dtype).eval()
        note(f"{self.model} {self.mode}: made in {time.monotonic() - begun:.1f} s")
        return model

    def compile(self, forward):
        """`forward` as the mode has it: without breaks in the graph where that works, each shape by itself."""
        import torch

        if self.mode not in COMPILED:
            return forward
        whole = torch.compile(forward, mode=self.mode, fullgraph=True, dynamic=False)
        broken = []

        def run(*inputs, **named):
            torch.compiler.cudagraph_mark_step_begin()
            if not broken:
                try:
                    return whole(*inputs, **named)
                except torch._dynamo.exc.TorchDynamoException as error:
                    note(f"{self.model} {self.mode}: not one graph: {str(error).splitlines()[0]}")
                    torch._dynamo.reset()
                    broken.append(torch.compile(forward, mode=self.mode, dynamic=False))
            return broken[0](*inputs, **named)

        return run

    def measure(self, work, batch, run, **more):
        """Times of `run`, which gives a tensor: waited for as a caller would, and between two events of the stream."""
        import torch
        import transformers

        begun = time.monotonic()
        for _ in range(WARMUP):
            output = run()
            if self.mode not in COMPILED and self.mode != "static" and time.monotonic() - begun > self.args.seconds:
                break
        self.wait()
        assert torch.isfinite(output.float()).all(), f"{work}: values that are no numbers"
        del output
        note(f"{self.model} {self.mode}: batch {batch}: {work}: warm after {time.monotonic() - begun:.1f} s")
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        latencies, device = [], []
        begun = time.monotonic()
        while len(latencies) < ITERATIONS_MIN or (
            len(latencies) < ITERATIONS_MAX and time.monotonic() - begun < self.args.seconds
        ):
            start = time.perf_counter()
            if self.on_gpu:
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                run()
                after.record()
                torch.cuda.current_stream().synchronize()
                device.append(before.elapsed_time(after))
            else:
                run()
            latencies.append((time.perf_counter() - start) * 1e3)
        row = {
            "program": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "peer": self.mode,
            "model": self.model,
            "work": work,
            "batch": batch,
            "dtype": self.args.dtype,
            "device": self.args.device,
            "iterations": len(latencies),
            "latency_ms": times(latencies),
            "device_ms": times(device) if device else None,
            "images_per_s": batch * 1e3 / statistics.fmean(latencies),
            "peak_device_bytes": torch.cuda.max_memory_allocated() if self.on_gpu else None,
            **more,
        }
        print(json.dumps(row, ensure_ascii=False), flush=True)

    def wait(self):
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()


def times(milliseconds):
    ordered = sorted(milliseconds)

    def rank(share):
        return ordered[max(1, -int(-share * len(ordered) // 1)) - 1]

    return {"p50": rank(0.50), "p99": rank(0.99), "mean": statistics.fmean(ordered), "min": ordered[0]}


if __name__ == "__main__":
    sys.exit(main())
