//! The C functions of `shim.cpp`, each behind a safe function or an owning pointer.
#![expect(unsafe_code, reason = "the boundary to C++; each block says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::ptr::NonNull;

use tch::{Device, Kind, TchError, Tensor};

use super::LibtorchError;

unsafe extern "C" {
    fn concord_last_error() -> *const c_char;
    fn concord_load_cuda() -> bool;
    fn concord_memory_info(device: c_int, free_bytes: *mut u64, total_bytes: *mut u64) -> bool;
    fn concord_load_cuda_part(path: *const c_char) -> bool;
    fn concord_graph_begin(shares_with: *const c_void) -> *mut c_void;
    fn concord_graph_end(graph: *mut c_void) -> bool;
    fn concord_graph_replay(graph: *mut c_void) -> bool;
    fn concord_graph_delete(graph: *mut c_void);
    fn concord_kernel_versions(architecture: *mut c_int, compiler: *mut c_int) -> bool;
    fn concord_architecture_of(device: c_int) -> c_int;
    fn concord_kernel_compile(source: *const c_char, bytes: *mut usize) -> *mut c_void;
    fn concord_free(memory: *mut c_void);
    fn concord_kernel_load(code: *const c_void, name: *const c_char) -> *mut c_void;
    fn concord_multiprocessors() -> c_int;
    fn concord_product_algorithms(
        product: *const RawProduct,
        algorithms: *mut ProductAlgorithm,
        most: c_int,
    ) -> c_int;
    fn concord_product(
        product: *const RawProduct,
        algorithm: *const ProductAlgorithm,
        workspace: *mut c_void,
    ) -> bool;
    fn concord_kernel_launch(
        function: *mut c_void,
        how: *const KernelLaunch,
        arguments: *mut *mut c_void,
    ) -> bool;
    fn concord_stream_new(device: c_int) -> *mut c_void;
    fn concord_stream_delete(stream: *mut c_void);
    fn concord_device_exchange(device: c_int) -> c_int;
    fn concord_stream_exchange(stream: *mut c_void) -> *mut c_void;
    fn concord_stream_current(device: c_int) -> *mut c_void;
    fn concord_stream_synchronize(stream: *mut c_void) -> bool;
    fn concord_stream_is_capturing(stream: *const c_void) -> c_int;
    fn concord_stream_spin(stream: *const c_void, cycles: c_longlong) -> bool;
    fn concord_flash_attention(query: *const c_void, key: *const c_void, value: *const c_void)
    -> *mut c_void;
    fn concord_efficient_attention(
        query: *const c_void,
        key: *const c_void,
        value: *const c_void,
        bias: *const c_void,
    ) -> *mut c_void;
    fn concord_cudnn_attention(
        query: *const c_void,
        key: *const c_void,
        value: *const c_void,
        bias: *const c_void,
    ) -> *mut c_void;
    fn concord_event_new() -> *mut c_void;
    fn concord_event_delete(event: *mut c_void);
    fn concord_event_record(event: *mut c_void, stream: *mut c_void) -> bool;
    fn concord_event_block(event: *mut c_void, stream: *mut c_void) -> bool;
    fn concord_event_synchronize(event: *mut c_void) -> bool;
    fn concord_event_elapsed_ms(from: *mut c_void, to: *mut c_void) -> f64;
    fn concord_allocated_memory(device: c_int, bytes: *mut u64) -> bool;
    fn concord_release_memory() -> bool;
    fn concord_reset_peak_memory(device: c_int) -> bool;
}

/// Returns the first line of the message of the last failure on this thread.
fn last_error() -> LibtorchError {
    // SAFETY: the shim returns the buffer of a thread-local std::string, which is NUL-terminated and
    // not changed before the text is copied here: no other call to the shim is in between.
    let text = unsafe { CStr::from_ptr(concord_last_error()) };
    LibtorchError(text.to_string_lossy().lines().next().unwrap_or_default().to_owned())
}

fn ok(done: bool) -> Result<(), LibtorchError> {
    if done { Ok(()) } else { Err(last_error()) }
}

/// Loads `libtorch_cuda.so`. It must be called before the first tensor is created.
pub(super) fn load_cuda() -> Result<(), LibtorchError> {
    // SAFETY: no arguments; loading runs the constructors of a library that was built to be loaded.
    ok(unsafe { concord_load_cuda() })
}

/// Loads the shared object of graphs and kernels, once, after CUDA.
pub(super) fn load_cuda_part(path: &CStr) -> Result<(), LibtorchError> {
    // SAFETY: the path is NUL-terminated; the library is ours, and built for the libtorch that is loaded.
    ok(unsafe { concord_load_cuda_part(path.as_ptr()) })
}

/// An owned `at::cuda::CUDAGraph`, which exists only once graphs have been loaded.
#[derive(Debug)]
pub(super) struct RawGraph(NonNull<c_void>);

// SAFETY: a graph may be replayed from any thread; RawGraph is not Sync, so from one at a time.
unsafe impl Send for RawGraph {}

impl RawGraph {
    /// Begins to record the current stream.
    pub(super) fn begin(shares_with: Option<&Self>) -> Result<Self, LibtorchError> {
        let other = shares_with.map_or(std::ptr::null(), |graph| graph.0.as_ptr().cast_const());
        // SAFETY: graphs are loaded, which the caller ensures; the other graph is alive.
        NonNull::new(unsafe { concord_graph_begin(other) }).map(Self).ok_or_else(last_error)
    }

    /// Ends the recording.
    pub(super) fn end(&mut self) -> Result<(), LibtorchError> {
        // SAFETY: self owns a live graph.
        ok(unsafe { concord_graph_end(self.0.as_ptr()) })
    }

    /// Replays the graph on the current stream.
    pub(super) fn replay(&self) -> Result<(), LibtorchError> {
        // SAFETY: self owns a live graph.
        ok(unsafe { concord_graph_replay(self.0.as_ptr()) })
    }
}

impl Drop for RawGraph {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim's `begin` and is deleted once, here.
        unsafe { concord_graph_delete(self.0.as_ptr()) }
    }
}

/// Returns the compute capability of the thread's current device, for instance 90, and NVRTC's version. The
/// shared object must be loaded.
pub(super) fn kernel_versions() -> Result<(c_int, c_int), LibtorchError> {
    let (mut architecture, mut compiler) = (0, 0);
    // SAFETY: the shim writes one number to each pointer, both of which are live and of its type.
    ok(unsafe { concord_kernel_versions(&raw mut architecture, &raw mut compiler) })?;
    Ok((architecture, compiler))
}

/// Returns the compute capability of a device, for instance 90. The shared object must be loaded.
pub(super) fn architecture_of(device: usize) -> Result<u32, LibtorchError> {
    // SAFETY: plain argument.
    let architecture = unsafe { concord_architecture_of(device_index(device)?) };
    u32::try_from(architecture).map_err(|_| last_error())
}

/// Returns the number of multiprocessors of the thread's current device. The shared object must be loaded.
pub(super) fn multiprocessors() -> Result<u32, LibtorchError> {
    // SAFETY: no arguments.
    u32::try_from(unsafe { concord_multiprocessors() }).map_err(|_| last_error())
}

/// Compiles kernels to machine code for the thread's current device. The shared object must be loaded.
pub(super) fn compile_kernels(source: &CStr) -> Result<Vec<u8>, LibtorchError> {
    let mut bytes = 0;
    // SAFETY: the source is NUL-terminated; the shim returns memory of as many bytes as it says, or null.
    let code = NonNull::new(unsafe { concord_kernel_compile(source.as_ptr(), &raw mut bytes) });
    let code = code.ok_or_else(last_error)?;
    // SAFETY: as above; it is copied before it is freed, and freed once.
    unsafe {
        let copy = std::slice::from_raw_parts(code.as_ptr().cast::<u8>(), bytes).to_vec();
        concord_free(code.as_ptr());
        Ok(copy)
    }
}

/// A function of loaded machine code, which is never unloaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawKernel(NonNull<c_void>);

// SAFETY: the driver's functions may be used from any thread.
unsafe impl Send for RawKernel {}
// SAFETY: as above; launching changes nothing of it.
unsafe impl Sync for RawKernel {}

impl RawKernel {
    /// Loads the function with that name from machine code.
    pub(super) fn load(code: &[u8], name: &CStr) -> Result<Self, LibtorchError> {
        // SAFETY: the code is NVRTC's output, checked by its digest; the driver copies it. The name is
        // NUL-terminated.
        let function = unsafe { concord_kernel_load(code.as_ptr().cast(), name.as_ptr()) };
        NonNull::new(function).map(Self).ok_or_else(last_error)
    }

    /// Launches the kernel on the thread's current stream.
    pub(super) fn launch(
        self,
        how: &KernelLaunch,
        arguments: &[KernelArgument],
    ) -> Result<(), LibtorchError> {
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(KernelArgument::address).collect();
        // SAFETY: each pointer is that of a value of the size that the kernel declares, which the driver
        // copies before it returns. What the kernels do with addresses is the responsibility of `Kernel`.
        ok(unsafe { concord_kernel_launch(self.0.as_ptr(), how, pointers.as_mut_ptr()) })
    }
}

/// An algorithm of cuBLASLt for a product, laid out as `ConcordAlgorithm` of `cuda_part.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct ProductAlgorithm {
    data: [u64; 8],
    workspace_bytes: u64,
}

/// A product with its epilogue: x [.., inputs] · weightsᵀ + bias, where `weights` is [outputs, inputs] and
/// `bias` is \[outputs\], of contiguous tensors in bf16 or fp16 on one GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProductOf<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weights: &'a Tensor,
    pub(crate) bias: Option<&'a Tensor>,
    /// A tensor, [.., outputs], that is added before anything is rounded.
    pub(crate) added: Option<&'a Tensor>,
    /// Says whether GELU in the tanh form follows. It must not, if a tensor is added.
    pub(crate) has_gelu: bool,
}

/// A product as C++ takes it, laid out as `ConcordProduct` of `cuda_part.h`.
#[repr(C)]
struct RawProduct {
    x: *const c_void,
    weights: *const c_void,
    bias: *const c_void,
    added: *const c_void,
    out: *mut c_void,
    rows: c_longlong,
    inputs: c_longlong,
    outputs: c_longlong,
    is_bf16: bool,
    has_gelu: bool,
}

impl RawProduct {
    /// Describes a product into `out` [.., outputs]; the sizes of all tensors must agree.
    fn of(product: &ProductOf<'_>, out: &Tensor) -> Self {
        let size = product.weights.size();
        let or_null = |tensor: Option<&Tensor>| {
            tensor.map_or(std::ptr::null(), |tensor| tensor.data_ptr().cast_const())
        };
        Self {
            x: product.x.data_ptr(),
            weights: product.weights.data_ptr(),
            bias: or_null(product.bias),
            added: or_null(product.added),
            out: out.data_ptr(),
            rows: out.numel() as c_longlong / size[0].max(1),
            inputs: size[1],
            outputs: size[0],
            is_bf16: product.x.kind() == Kind::BFloat16,
            has_gelu: product.has_gelu,
        }
    }
}

/// Returns at most `most` algorithms for a product, the most promising first. The shared object must be
/// loaded.
pub(super) fn product_algorithms(
    product: &ProductOf<'_>,
    out: &Tensor,
    most: usize,
) -> Result<Vec<ProductAlgorithm>, LibtorchError> {
    let mut algorithms = vec![ProductAlgorithm::default(); most];
    let raw = RawProduct::of(product, out);
    // SAFETY: the product is a live value; there is room for as many algorithms as are asked for.
    let count = unsafe { concord_product_algorithms(&raw const raw, algorithms.as_mut_ptr(), most as c_int) };
    algorithms.truncate(usize::try_from(count).map_err(|_| last_error())?);
    Ok(algorithms)
}

/// Computes a product into `out`, on the thread's current stream. The shared object must be loaded, and the
/// sizes must agree.
pub(super) fn product(
    product: &ProductOf<'_>,
    out: &Tensor,
    algorithm: &ProductAlgorithm,
) -> Result<(), LibtorchError> {
    let raw = RawProduct::of(product, out);
    // The workspace is allocated and freed in the stream's order, like any tensor.
    let workspace = Tensor::f_empty([algorithm.workspace_bytes as i64], (Kind::Uint8, out.device()))
        .map_err(|error| LibtorchError(error.to_string()))?;
    // SAFETY: all pointers are of live tensors of these sizes, which the caller ensures; the GPU is done with
    // the workspace before anything else takes its memory, since that is on the same stream.
    ok(unsafe { concord_product(&raw const raw, &raw const *algorithm, workspace.data_ptr()) })
}

/// The launch of a kernel, laid out as `ConcordLaunch` of `cuda_part.h`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct KernelLaunch {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    /// The bytes of shared memory of each block, beside those that the kernel declares.
    pub(crate) shared_bytes: u32,
    /// Says whether the kernel may begin before the previous one has ended; it then waits for that one
    /// itself.
    pub(crate) begins_early: bool,
}

/// An argument of a kernel, by its type in the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum KernelArgument {
    Address(*const c_void),
    Int(c_int),
    Long(i64),
    Float(f32),
}

impl KernelArgument {
    /// Returns the address of the value itself.
    fn address(&self) -> *mut c_void {
        match self {
            Self::Address(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Long(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
        }
    }
}

/// Copies bytes into a tensor of this shape in page-locked memory for `device`, a GPU. The caller has checked
/// that the sizes agree.
pub(super) fn page_locked_copy(bytes: &[u8], shape: &[i64], device: Device) -> Result<Tensor, TchError> {
    let strides: Vec<i64> = (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect();
    // SAFETY: the view has as many bytes as the slice and is dropped here, while the slice is borrowed;
    // nothing writes to it, and the copy, made before this returns, shares nothing with it.
    unsafe {
        let view = Tensor::f_from_blob(bytes.as_ptr(), shape, &strides, Kind::Uint8, Device::Cpu)?;
        view.f_internal_pin_memory(device)
    }
}

/// Returns the address of the `at::Tensor` behind a tensor.
fn address(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr().cast()
}

/// Takes ownership of a tensor that the shim has created, or returns the reason why there is none.
///
/// # Safety
/// The pointer must be null, or that of an `at::Tensor` created by `new` that nothing else owns.
unsafe fn adopted(tensor: *mut c_void) -> Result<Tensor, LibtorchError> {
    let tensor = NonNull::new(tensor).ok_or_else(last_error)?;
    // SAFETY: it is an `at::Tensor`, which is what tch's pointers point to, and owned by us.
    Ok(unsafe { Tensor::from_ptr(tensor.as_ptr().cast()) })
}

/// Computes attention by libtorch's flash kernels. Heads may share keys and values.
pub(crate) fn flash_attention(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor, LibtorchError> {
    // SAFETY: all are live tensors, which the shim checks; it returns an owned tensor or null.
    unsafe { adopted(concord_flash_attention(address(query), address(key), address(value))) }
}

/// Computes attention by libtorch's memory-efficient kernels. `bias` is added to the logits or, if boolean,
/// is true where a query may look.
pub(crate) fn efficient_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, LibtorchError> {
    let bias = bias.map_or(std::ptr::null(), address);
    // SAFETY: all are live tensors, or null for the bias, which the shim checks; it returns an owned tensor
    // or null.
    unsafe { adopted(concord_efficient_attention(address(query), address(key), address(value), bias)) }
}

/// Computes attention by cuDNN. Heads may share keys and values.
pub(crate) fn cudnn_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, LibtorchError> {
    let bias = bias.map_or(std::ptr::null(), address);
    // SAFETY: all are live tensors, or null for the bias, which the shim checks; it returns an owned tensor
    // or null.
    unsafe { adopted(concord_cudnn_attention(address(query), address(key), address(value), bias)) }
}

/// Returns the free and the total bytes of a CUDA device's memory.
pub(super) fn memory_info(device: usize) -> Result<(u64, u64), LibtorchError> {
    let device = device_index(device)?;
    let (mut free_bytes, mut total_bytes) = (0, 0);
    // SAFETY: the shim writes one number to each pointer, both of which are live and of its type.
    ok(unsafe { concord_memory_info(device, &raw mut free_bytes, &raw mut total_bytes) })?;
    Ok((free_bytes, total_bytes))
}

/// Returns the bytes that are allocated now, that were allocated at most, and that are reserved.
pub(super) fn allocated_memory(device: usize) -> Result<[u64; 3], LibtorchError> {
    let device = device_index(device)?;
    let mut bytes = [0; 3];
    // SAFETY: the shim writes three values to an array of three.
    ok(unsafe { concord_allocated_memory(device, bytes.as_mut_ptr()) })?;
    Ok(bytes)
}

/// Releases to the devices the memory that is in no tensor.
pub(super) fn release_memory() -> Result<(), LibtorchError> {
    // SAFETY: no arguments.
    ok(unsafe { concord_release_memory() })
}

/// Resets the peak of allocated memory to what is allocated now.
pub(super) fn reset_peak_memory(device: usize) -> Result<(), LibtorchError> {
    // SAFETY: plain argument.
    ok(unsafe { concord_reset_peak_memory(device_index(device)?) })
}

/// Returns the index of a device as libtorch stores it, in one byte; a larger one would be taken for that of
/// another device.
///
/// # Errors
/// Returns an error if the index does not fit.
fn device_index(device: usize) -> Result<c_int, LibtorchError> {
    let index = i8::try_from(device).map_err(|_| LibtorchError(format!("there is no cuda:{device}")))?;
    Ok(c_int::from(index))
}

/// An owned `c10::Stream`, a CUDA stream of libtorch's pool.
#[derive(Debug)]
pub(super) struct RawStream(NonNull<c_void>);

// SAFETY: a c10::Stream is three integers; the stream they name may be used from any thread.
unsafe impl Send for RawStream {}

impl RawStream {
    /// Takes a stream of the device from libtorch's pool.
    pub(super) fn new(device: usize) -> Result<Self, LibtorchError> {
        let device = device_index(device)?;
        // SAFETY: plain argument; the shim returns an owned pointer or null.
        NonNull::new(unsafe { concord_stream_new(device) }).map(Self).ok_or_else(last_error)
    }

    /// Makes this stream the thread's current one, and returns the previous one.
    pub(super) fn exchange(&self) -> Result<Self, LibtorchError> {
        // SAFETY: self owns a live c10::Stream; the shim returns an owned pointer or null.
        NonNull::new(unsafe { concord_stream_exchange(self.0.as_ptr()) }).map(Self).ok_or_else(last_error)
    }

    /// Returns the thread's current stream of a device.
    pub(super) fn current(device: usize) -> Result<Self, LibtorchError> {
        let device = device_index(device)?;
        // SAFETY: plain argument; the shim returns an owned pointer or null.
        NonNull::new(unsafe { concord_stream_current(device) }).map(Self).ok_or_else(last_error)
    }

    pub(super) fn synchronize(&self) -> Result<(), LibtorchError> {
        // SAFETY: self owns a live c10::Stream.
        ok(unsafe { concord_stream_synchronize(self.0.as_ptr()) })
    }

    /// Returns whether the stream is being recorded. The shared object must be loaded.
    pub(super) fn is_capturing(&self) -> Result<bool, LibtorchError> {
        // SAFETY: self owns a live c10::Stream.
        match unsafe { concord_stream_is_capturing(self.0.as_ptr()) } {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(last_error()),
        }
    }

    /// Keeps the device busy for this many cycles of its clock. The shared object must be loaded.
    pub(super) fn spin(&self, cycles: i64) -> Result<(), LibtorchError> {
        // SAFETY: self owns a live c10::Stream.
        ok(unsafe { concord_stream_spin(self.0.as_ptr(), cycles) })
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim's `new` and is deleted once, here.
        unsafe { concord_stream_delete(self.0.as_ptr()) }
    }
}

/// Makes a device the thread's current one, and returns the previous one.
pub(super) fn exchange_device(device: usize) -> Result<usize, LibtorchError> {
    // SAFETY: plain argument.
    let previous = unsafe { concord_device_exchange(device_index(device)?) };
    usize::try_from(previous).map_err(|_| last_error())
}

/// An owned `c10::Event` with timing.
#[derive(Debug)]
pub(super) struct RawEvent(NonNull<c_void>);

// SAFETY: CUDA events may be used from any thread; c10::Event is not used from two at once, since
// recording takes `&mut`, and RawEvent is not Sync.
unsafe impl Send for RawEvent {}

impl RawEvent {
    /// Creates an event that has not been recorded.
    pub(super) fn new() -> Result<Self, LibtorchError> {
        // SAFETY: no arguments; the shim returns an owned pointer or null.
        NonNull::new(unsafe { concord_event_new() }).map(Self).ok_or_else(last_error)
    }

    /// Records the event behind all work on the stream so far.
    pub(super) fn record(&mut self, stream: &RawStream) -> Result<(), LibtorchError> {
        // SAFETY: both own live objects.
        ok(unsafe { concord_event_record(self.0.as_ptr(), stream.0.as_ptr()) })
    }

    /// Makes later work on the stream wait for the event.
    pub(super) fn block(&self, stream: &RawStream) -> Result<(), LibtorchError> {
        // SAFETY: both own live objects; c10::Event::block is const.
        ok(unsafe { concord_event_block(self.0.as_ptr(), stream.0.as_ptr()) })
    }

    pub(super) fn synchronize(&self) -> Result<(), LibtorchError> {
        // SAFETY: self owns a live c10::Event.
        ok(unsafe { concord_event_synchronize(self.0.as_ptr()) })
    }

    /// Returns the milliseconds from this event to a later one.
    pub(super) fn elapsed_ms(&self, later: &Self) -> Result<f64, LibtorchError> {
        // SAFETY: both own live objects.
        let milliseconds = unsafe { concord_event_elapsed_ms(self.0.as_ptr(), later.0.as_ptr()) };
        if milliseconds.is_nan() { Err(last_error()) } else { Ok(milliseconds) }
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim's `new` and is deleted once, here.
        unsafe { concord_event_delete(self.0.as_ptr()) }
    }
}
