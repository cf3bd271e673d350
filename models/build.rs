//! Compiles the C++ half of `src/libtorch`. `shim.cpp`, which needs libtorch's headers but none of CUDA's, is
//! linked into the program. `graph.cpp`, `kernel.cpp` and `product.cpp`, which need CUDA's headers too,
//! become a shared object that the program embeds.

use std::env;
use std::path::{Path, PathBuf};

/// The folder of CUDA's headers, relative to libtorch's folder: unpacked wheels lie side by side
/// (`deploy/libtorch.py`).
const CUDA_HEADERS: &str = "../nvidia/cu13/include";

fn main() {
    for file in ["shim.cpp", "cuda_part.h", "graph.cpp", "kernel.cpp", "product.cpp"] {
        println!("cargo:rerun-if-changed=src/libtorch/{file}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let torch = env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    let headers = torch.join("include");
    if !headers.join("c10/core/Event.h").exists() {
        println!("cargo:warning=no libtorch at {}: run `make setup` first", torch.display());
        std::process::exit(1);
    }
    cpp(&headers).file("src/libtorch/shim.cpp").compile("concord_libtorch_shim");
    println!("cargo:rustc-link-search=native={}", torch.join("lib").display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    cuda_part(&torch, &headers);
}

fn cpp(headers: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    // Warnings in libtorch's headers are not ours to fix.
    build.cpp(true).std("c++17").flag("-isystem").flag(headers).warnings(false);
    build
}

/// Compiles the shared object that needs CUDA. Where there are no CUDA headers, writes an empty file in its
/// place.
fn cuda_part(torch: &Path, headers: &Path) {
    let built = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("concord_cuda.so");
    let own = torch.canonicalize().unwrap_or_else(|_| torch.to_owned()).join(CUDA_HEADERS);
    let installed = env::var_os("CUDA_HOME").map_or("/usr/local/cuda".into(), PathBuf::from).join("include");
    let cuda = [own, installed].into_iter().find(|folder| folder.join("cuda_runtime_api.h").exists());
    let Some(cuda) = cuda else {
        println!("cargo:warning=no headers of CUDA: built without CUDA graphs and kernels");
        let _written_or_missing_at_include = std::fs::write(&built, []);
        return;
    };
    let compiler = cpp(headers).flag("-isystem").flag(cuda).flag("-shared").flag("-fPIC").get_compiler();
    let files = ["graph.cpp", "kernel.cpp", "product.cpp"].map(|file| format!("src/libtorch/{file}"));
    let done = compiler.to_command().args(&files).arg("-o").arg(&built).status();
    if !done.is_ok_and(|status| status.success()) {
        println!("cargo:warning={} does not compile", files.join(" or "));
        std::process::exit(1);
    }
}
