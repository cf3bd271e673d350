//! Kernels of our own: compiled for the GPU that they run on, kept on disk, launched on the current stream.

use std::ffi::CString;
use std::path::PathBuf;

use tch::Tensor;

use super::ffi::{self, KernelArgument, KernelLaunch, RawKernel};
use super::{LibtorchError, load_cuda_part};

/// A digest before the code tells a whole file from a damaged one.
const DIGEST_BYTES: usize = 32;

/// Machine code of CUDA C++ for the thread's current GPU: that of an earlier call from the disk, where it was kept,
/// under `$XDG_CACHE_HOME/concord` or `~/.cache/concord`.
///
/// # Errors
/// When there is no CUDA, no NVRTC, or it does not compile. A cache that cannot be read or written is no error.
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

/// Where Concord keeps what it can make again.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(caches.join("concord"))
}

fn kept(file: &[u8]) -> Option<Vec<u8>> {
    let (digest, code) = file.split_at_checked(DIGEST_BYTES)?;
    (blake3::hash(code).as_bytes() == digest).then(|| code.to_vec())
}

/// Under another name first: another process may read it at any time.
fn keep(file: &std::path::Path, code: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(file);
    std::fs::create_dir_all(folder)?;
    let mut written = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut written, blake3::hash(code).as_bytes())?;
    std::io::Write::write_all(&mut written, code)?;
    written.persist(file)?;
    Ok(())
}

/// How many multiprocessors the thread's current GPU has.
///
/// # Errors
/// When there is no CUDA.
pub(crate) fn multiprocessors() -> Result<u32, LibtorchError> {
    load_cuda_part()?;
    ffi::multiprocessors()
}

/// A kernel, loaded on one GPU for as long as the process runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel(RawKernel);

/// What a kernel is given.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// The address of a tensor's first value; `None` is null.
    Tensor(Option<&'a Tensor>),
    Int(i32),
    Long(i64),
    Float(f32),
}

impl Kernel {
    /// The kernel of that name in compiled code.
    pub(crate) fn load(code: &[u8], name: &str) -> Result<Self, LibtorchError> {
        let name = CString::new(name).map_err(|error| LibtorchError(error.to_string()))?;
        Ok(Self(RawKernel::load(code, &name)?))
    }

    /// Puts it on the thread's current stream. Number, types and meaning of the arguments are the kernel's; that
    /// tensors are on this GPU, contiguous and as large as it takes them to be is the caller's to see to.
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
