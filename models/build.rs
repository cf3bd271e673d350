//! Compiles the C++ half of `src/libtorch`, which needs libtorch's headers and nothing of CUDA.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/libtorch/shim.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let torch = env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    let headers = torch.join("include");
    if !headers.join("c10/core/Event.h").exists() {
        println!("cargo:warning=no libtorch at {}: run `make setup` first", torch.display());
        std::process::exit(1);
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file(Path::new("src/libtorch/shim.cpp"))
        // Their headers are not ours to mend.
        .flag("-isystem")
        .flag(&headers)
        .warnings(false)
        .compile("concord_libtorch_shim");
    println!("cargo:rustc-link-search=native={}", torch.join("lib").display());
    println!("cargo:rustc-link-lib=dylib=c10");
}
