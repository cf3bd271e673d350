#!/usr/bin/env python3
"""Put libtorch 2.11.0 into .libtorch/, where the build and the binary look for it.

    deploy/libtorch.py [--into .libtorch] [--wheels DIR]

By default fetches four wheels (about 545 MB) by the index that pip is set up with, checks
their SHA-256, and unpacks what a CPU needs of them. A broken download is continued by the next
call; nothing is done when everything is there. With LIBTORCH=/path/to/libtorch, or
LIBTORCH_USE_PYTORCH=1 for the PyTorch that python3 imports, .libtorch/torch becomes a link to
that instead, which is how a GPU machine brings its CUDA libraries.

--wheels DIR takes the wheels from a folder (for machines without a network).
"""
import argparse
import hashlib
import html
import http.client
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

VERSION = "2.11.0"
# libtorch_cpu of this wheel links libcudart and libcupti even where there is no GPU.
WHEELS = {
    "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl":
        "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl":
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl":
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    # Headers alone, with which CUDA graphs and kernels are built for machines that have a GPU.
    "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl":
        "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
}
# Without the CUDA libraries torch-sys links none of them, and one binary serves both kinds of machine.
TORCH_LIBS = ["libc10.so", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so", "libtorch_global_deps.so"]
WANTED = re.compile(r"torch/include/|torch/lib/(%s)$|nvidia/cu13/(lib|include)/|torch/version\.py$"
                    % "|".join(map(re.escape, TORCH_LIBS)))
ATTEMPTS = 5


def fail(message):
    sys.exit(f"libtorch: {message}")


def pip(*arguments):
    """What `pip ARGUMENTS` prints, or None when it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def index_url():
    """The package index that pip uses on this machine."""
    configured = os.environ.get("PIP_INDEX_URL") or pip("config", "get", "global.index-url")
    if configured:
        return configured
    from pip._internal.models.index import PyPI
    return PyPI.simple_url


def tls():
    certificates = os.environ.get("PIP_CERT") or pip("config", "get", "global.cert")
    return ssl.create_default_context(cafile=certificates or None)


def wheel_url(name, context):
    """Where the index says the wheel of this file name is."""
    project = name.split("-")[0].replace("_", "-")
    page = f"{index_url().rstrip('/')}/{project}/"
    with urllib.request.urlopen(page, timeout=60, context=context) as reply:
        for link in re.findall(r'href="([^"]+)"', reply.read().decode()):
            url = urllib.parse.urljoin(reply.url, html.unescape(link))
            if urllib.parse.unquote(urllib.parse.urlparse(url).path).endswith("/" + name):
                return url.split("#")[0]
    raise OSError(f"the package index lists no {name}")


def download(name, target, context):
    """Continue or start the download of one wheel into `target`."""
    part = target.with_suffix(".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(wheel_url(name, context), headers={"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(request, timeout=60, context=context)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is complete: only the rename was missing
            raise
        part.rename(target)
        return
    with reply, open(part, "ab" if reply.status == 206 else "wb") as out:
        total = int(reply.headers.get("Content-Length", 0)) + (have if reply.status == 206 else 0)
        shown = 0.0
        while block := reply.read(1 << 20):
            out.write(block)
            if time.monotonic() - shown > (0.5 if sys.stderr.isatty() else 10):
                shown = time.monotonic()
                print(f"  {name.split('-')[0]}: {out.tell() >> 20} of {total >> 20} MiB",
                      end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
        if total and out.tell() != total:
            raise OSError("the connection broke off")
    part.rename(target)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(name, folder, context):
    """The checked wheel, downloaded unless it is there."""
    target = folder / name
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if not target.exists():
                download(name, target, context)
            if sha256(target) == WHEELS[name]:
                return target
            target.unlink()
            problem = "the SHA-256 does not match"
        except (OSError, http.client.HTTPException) as error:
            problem = error
        print(f"  {name}: {problem} (attempt {attempt} of {ATTEMPTS})", file=sys.stderr)
        time.sleep(attempt)
    fail(f"could not fetch {name}; run it again to continue, or give the wheels with --wheels DIR")


def unpack(wheel, into):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if WANTED.match(member.filename) and not member.is_dir():
                archive.extract(member, into)


def link_own(torch, into):
    """Use a libtorch that the user has, by a link at the one place where the binary looks."""
    torch = torch.resolve()
    if not (torch / "lib" / "libtorch_cpu.so").exists():
        fail(f"{torch} has no lib/libtorch_cpu.so")
    version = torch / "build-version" if (torch / "build-version").exists() else torch / "version.py"
    if version.exists() and VERSION not in version.read_text():
        fail(f"{torch} is not libtorch {VERSION}, the version that tch 0.24 is made for")
    into.mkdir(parents=True, exist_ok=True)
    link = into / "torch"
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    link.symlink_to(torch)
    (into / "complete").unlink(missing_ok=True)
    print(f"libtorch: using {torch}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=Path(__file__).resolve().parent.parent / ".libtorch")
    parser.add_argument("--wheels", type=Path, help="folder that has the wheels already")
    arguments = parser.parse_args()
    into = arguments.into

    if os.environ.get("LIBTORCH"):
        # Not our own folder again, which .cargo/config.toml names.
        if Path(os.environ["LIBTORCH"]).resolve() != (into / "torch").resolve():
            return link_own(Path(os.environ["LIBTORCH"]), into)
    elif os.environ.get("LIBTORCH_USE_PYTORCH") == "1":
        found = subprocess.run(["python3", "-c", "import torch; print(torch.__path__[0])"], capture_output=True, text=True)
        if found.returncode != 0:
            fail("LIBTORCH_USE_PYTORCH=1, but python3 cannot import torch")
        return link_own(Path(found.stdout.strip()), into)

    complete, wanted = into / "complete", "\n".join(WHEELS.values())
    if complete.exists() and complete.read_text() == wanted:
        return None
    if platform.machine() != "x86_64" or sys.platform != "linux":
        fail(f"there are wheels for x86-64 Linux only; set LIBTORCH to the folder of a libtorch {VERSION}")
    if (into / "torch" / "lib" / "libtorch_cpu.so").exists() and (into / "torch").is_symlink():
        print(f"libtorch: using {(into / 'torch').resolve()}; to fetch our own, remove {into / 'torch'}")
        return None
    if (into / "torch").is_symlink():
        (into / "torch").unlink()
    downloads = arguments.wheels or into / "download"
    downloads.mkdir(parents=True, exist_ok=True)
    print("libtorch: fetching four wheels (545 MB, once)", flush=True)
    context = tls()
    for name in WHEELS:
        unpack(fetch(name, downloads, context), into)
    complete.write_text(wanted)
    if not arguments.wheels:
        shutil.rmtree(downloads)
    print(f"libtorch: {VERSION} is in {into}")


if __name__ == "__main__":
    main()
