#!/usr/bin/env python3
"""Put Hugging Face transformers into .reference/, for the tests against its server and for fixtures.

    deploy/reference.py [--into .reference]

A virtual environment with transformers' server and torch, on the CPU: about 600 MB to fetch, once, and
2 GB on disk. torch of the package index is built for CUDA and wants 2 GB of NVIDIA's libraries that a
machine without a GPU never calls; those are replaced by stubs that say so when they are called after
all. Needs gcc and readelf.
"""
import argparse
import collections
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# With their dependencies.
PACKAGES = ["transformers==5.23.*", "fastapi", "uvicorn", "rich", "openai", "httpx", "python-multipart",
            "jinja2", "pillow", "requests", "psutil", "sympy", "networkx", "typing_extensions"]
# Without: torch would bring NVIDIA's libraries. The two of them here are really called: they say that there is no GPU.
ALONE = ["accelerate", "torch==2.11.0", "torchvision==0.26.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"reference: {' '.join(map(str, command[:6]))} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def needed(library):
    """The sonames that a library is linked to."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", "-W", library))


def undefined(library):
    """(name, version, is_object) of what a library takes from others."""
    for line in run("readelf", "--dyn-syms", "-W", library).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[6] == "UND":
            name, _, version = fields[7].partition("@")
            yield name, version.lstrip("@"), fields[3] == "OBJECT"


def owner(name, version, missing):
    """Which of the missing libraries a symbol is of: its version says so, or else its prefix."""
    if version in missing:
        return version
    if version.startswith(("lib", "GLIBC", "GCC", "CXXABI", "GOMP")) and version not in missing:
        return None
    by_prefix = [soname for soname in missing
                 if name.lower().removeprefix("p").startswith(soname[3:].split(".")[0].split("_")[0].lower())
                 or name.lower().startswith(soname[3:].split(".")[0].split("_")[0].lower())]
    # cublasLt… begins like cublas… as well.
    return max(by_prefix, key=len, default=None)


def write_stub(path, symbols):
    """A shared library that has these symbols, each of which ends the program when it is called."""
    versions = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch) / "stub.c", Path(scratch) / "stub.map"
        lines = ["#include <stdio.h>", "#include <stdlib.h>"]
        for name, version, is_object in sorted(symbols):
            say = f'fprintf(stderr, "{name} was called, but this is a stub: there is no GPU here\\n"); abort();'
            lines.append(f"char {name}[4096];" if is_object else f"int {name}(void) {{ {say} }}")
            if version:
                versions[version].append(name)
        source.write_text("\n".join(lines) + "\n")
        arguments = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{path.name}", "-o", path, source]
        if versions:
            script.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items()))
            arguments.append(f"-Wl,--version-script={script}")
        run(*arguments)


def stub_cuda(lib):
    """Stand-ins beside torch's libraries for what these are linked to and nobody has."""
    libraries = sorted(lib.glob("*.so*"))
    have = {path.name for path in libraries} | {path.name for path in lib.glob("../../nvidia/*/lib/*.so*")}
    wanted = {soname for library in libraries for soname in needed(library) if soname not in have}
    missing = {soname for soname in wanted if soname.startswith(("libcu", "libnccl", "libnvshmem"))}
    symbols = collections.defaultdict(set)
    for library in libraries:
        for symbol in undefined(library):
            if soname := owner(symbol[0], symbol[1], missing):
                symbols[soname].add(symbol)
    for soname in missing:
        write_stub(lib / soname, symbols[soname])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=Path(__file__).resolve().parent.parent / ".reference")
    into = parser.parse_args().into.resolve()
    complete, wanted = into / "complete", "\n".join(PACKAGES + ALONE)
    if complete.exists() and complete.read_text() == wanted:
        return
    print("reference: fetching transformers and torch (about 600 MB, once)", flush=True)
    shutil.rmtree(into, ignore_errors=True)
    venv.create(into, with_pip=True)
    python = into / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    run(*pip, *PACKAGES)
    run(*pip, "--no-deps", *ALONE)
    stub_cuda(next(into.glob("lib/python3*/site-packages/torch/lib")))
    run(python, "-c", "import torch, torchvision, transformers; assert torch.ones(2).sum() == 2 and not torch.cuda.is_available()")
    complete.write_text(wanted)
    print(f"reference: transformers is in {into}")


if __name__ == "__main__":
    main()
