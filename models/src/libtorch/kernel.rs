//! The project's own kernels: compiled for the GPU that they run on, cached on disk, and launched on the
//! current stream.

use std::ffi::CString;
use std::path::PathBuf;

use tch::Tensor;

use super::ffi::{self, KernelArgument, KernelLaunch, RawKernel};
use super::{LibtorchError, load_cuda_part};

/// The size of the digest before the code, which tells a whole file from a damaged one.
const DIGEST_BYTES: usize = 32;

/// Compiles CUDA C++ to machine code for the thread's current GPU, or returns the result of an earlier call
/// from the cache on disk, under `$XDG_CACHE_HOME/concord` or `~/.cache/concord`.
///
/// # Errors
/// Returns an error if there is no CUDA or no NVRTC, or if the source does not compile. A cache that cannot
/// be read or written is no error.
pub(crate) fn compile(source: &str) -> Result<Vec<u8>, LibtorchError> {
    load_cuda_part()?;
    let (architecture, compiler) = ffi::kernel_versions()?;
    let key = blake3::hash(format!("{architecture} {compiler} {source}").as_bytes());
    let file =
        cache_folder().map(|folder| folder.join(format!("kernels-sm{architecture}-{}.cubin", key.to_hex())));
    if let Some(code) = file.as_ref().and_then(|file| kept(&std::fs::read(file).ok()?)) {
        return Ok(code);
    }
    let source = CString::new(source).map_err(|error| LibtorchError(error.to_string()))?;
    let code = ffi::compile_kernels(&source)?;
    if let Some(Err(error)) = file.map(|file| keep(&file, &code)) {
        tracing::debug!(%error, "compiled kernels are not kept");
    }
    Ok(code)
}

/// Returns the folder of everything that Concord keeps but can make again, if the environment names one.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(caches.join("concord"))
}

/// Returns the code in a cached file, if it is undamaged.
fn kept(file: &[u8]) -> Option<Vec<u8>> {
    let (digest, code) = file.split_at_checked(DIGEST_BYTES)?;
    (blake3::hash(code).as_bytes() == digest).then(|| code.to_vec())
}

/// Writes a file under another name first, since another process may read it at any time.
fn keep(file: &std::path::Path, code: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(file);
    std::fs::create_dir_all(folder)?;
    let mut written = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut written, blake3::hash(code).as_bytes())?;
    std::io::Write::write_all(&mut written, code)?;
    written.persist(file)?;
    Ok(())
}

/// Returns the number of multiprocessors of the thread's current GPU.
///
/// # Errors
/// Returns an error if there is no CUDA.
pub(crate) fn multiprocessors() -> Result<u32, LibtorchError> {
    load_cuda_part()?;
    ffi::multiprocessors()
}

/// A kernel, loaded on one GPU for as long as the process runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel(RawKernel);

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// The address of a tensor's first value; `None` is null.
    Tensor(Option<&'a Tensor>),
    Int(i32),
    Long(i64),
    Float(f32),
}

impl Kernel {
    /// Loads the kernel with that name from compiled code.
    pub(crate) fn load(code: &[u8], name: &str) -> Result<Self, LibtorchError> {
        let name = CString::new(name).map_err(|error| LibtorchError(error.to_string()))?;
        Ok(Self(RawKernel::load(code, &name)?))
    }

    /// Launches the kernel on the thread's current stream. The caller must see to it that the arguments have
    /// the number, types and meaning that the kernel declares, and that tensors are on this GPU, contiguous,
    /// and as large as the kernel expects.
    pub(crate) fn launch(self, how: KernelLaunch, arguments: &[Argument<'_>]) -> Result<(), LibtorchError> {
        let raw: Vec<KernelArgument> = arguments
            .iter()
            .map(|argument| match *argument {
                Argument::Tensor(tensor) => KernelArgument::Address(
                    tensor.map_or(std::ptr::null(), |tensor| tensor.data_ptr().cast_const()),
                ),
                Argument::Int(value) => KernelArgument::Int(value),
                Argument::Long(value) => KernelArgument::Long(value),
                Argument::Float(value) => KernelArgument::Float(value),
            })
            .collect();
        self.0.launch(&how, &raw)
    }
}
