//! The C functions of `shim.cpp`, each behind a safe function or an owning pointer.
#![expect(unsafe_code, reason = "the boundary to C++; each block says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

use super::LibtorchError;

unsafe extern "C" {
    fn concord_last_error() -> *const c_char;
    fn concord_load_cuda() -> bool;
    fn concord_memory_info(device: c_int, free_bytes: *mut u64, total_bytes: *mut u64) -> bool;
    fn concord_stream_new(device: c_int) -> *mut c_void;
    fn concord_stream_delete(stream: *mut c_void);
    fn concord_stream_exchange(stream: *mut c_void) -> *mut c_void;
    fn concord_stream_synchronize(stream: *mut c_void) -> bool;
    fn concord_event_new() -> *mut c_void;
    fn concord_event_delete(event: *mut c_void);
    fn concord_event_record(event: *mut c_void, stream: *mut c_void) -> bool;
    fn concord_event_block(event: *mut c_void, stream: *mut c_void) -> bool;
    fn concord_event_synchronize(event: *mut c_void) -> bool;
    fn concord_event_elapsed_ms(from: *mut c_void, to: *mut c_void) -> f64;
    fn concord_allocated_memory(device: c_int, bytes: *mut u64) -> bool;
    fn concord_reset_peak_memory(device: c_int) -> bool;
}

fn last_error() -> LibtorchError {
    // SAFETY: the shim returns the buffer of a thread-local std::string, which is NUL-terminated and
    // not changed before the text is copied here: no other call to the shim is in between.
    let text = unsafe { CStr::from_ptr(concord_last_error()) };
    LibtorchError(text.to_string_lossy().lines().next().unwrap_or_default().to_owned())
}

fn ok(done: bool) -> Result<(), LibtorchError> {
    if done { Ok(()) } else { Err(last_error()) }
}

/// Loads `libtorch_cuda.so`. Must come before the first tensor.
pub(super) fn load_cuda() -> Result<(), LibtorchError> {
    // SAFETY: no arguments; loading runs the constructors of a library that was built to be loaded.
    ok(unsafe { concord_load_cuda() })
}

/// Free bytes of a CUDA device's memory, and all of them.
pub(super) fn memory_info(device: usize) -> Result<(u64, u64), LibtorchError> {
    let device = device_index(device)?;
    let (mut free_bytes, mut total_bytes) = (0, 0);
    // SAFETY: the shim writes one number to each pointer, both of which are live and of its type.
    ok(unsafe { concord_memory_info(device, &raw mut free_bytes, &raw mut total_bytes) })?;
    Ok((free_bytes, total_bytes))
}

/// Allocated now, allocated at most, and reserved, in bytes.
pub(super) fn allocated_memory(device: usize) -> Result<[u64; 3], LibtorchError> {
    let device = device_index(device)?;
    let mut bytes = [0; 3];
    // SAFETY: the shim writes three values to an array of three.
    ok(unsafe { concord_allocated_memory(device, bytes.as_mut_ptr()) })?;
    Ok(bytes)
}

pub(super) fn reset_peak_memory(device: usize) -> Result<(), LibtorchError> {
    // SAFETY: plain argument.
    ok(unsafe { concord_reset_peak_memory(device_index(device)?) })
}

/// libtorch counts devices in a byte, and takes what does not fit for another one.
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
    pub(super) fn new(device: usize) -> Result<Self, LibtorchError> {
        let device = device_index(device)?;
        // SAFETY: plain argument; the shim gives an owned pointer or null.
        NonNull::new(unsafe { concord_stream_new(device) }).map(Self).ok_or_else(last_error)
    }

    /// Makes this stream the thread's current one; the result is the one that was.
    pub(super) fn exchange(&self) -> Result<Self, LibtorchError> {
        // SAFETY: self owns a live c10::Stream; the shim gives an owned pointer or null.
        NonNull::new(unsafe { concord_stream_exchange(self.0.as_ptr()) }).map(Self).ok_or_else(last_error)
    }

    pub(super) fn synchronize(&self) -> Result<(), LibtorchError> {
        // SAFETY: self owns a live c10::Stream.
        ok(unsafe { concord_stream_synchronize(self.0.as_ptr()) })
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim's `new` and is deleted once, here.
        unsafe { concord_stream_delete(self.0.as_ptr()) }
    }
}

/// An owned `c10::Event` with timing.
#[derive(Debug)]
pub(super) struct RawEvent(NonNull<c_void>);

// SAFETY: CUDA events may be used from any thread; c10::Event is not used from two at once, since
// recording takes `&mut`, and RawEvent is not Sync.
unsafe impl Send for RawEvent {}

impl RawEvent {
    pub(super) fn new() -> Result<Self, LibtorchError> {
        // SAFETY: no arguments; the shim gives an owned pointer or null.
        NonNull::new(unsafe { concord_event_new() }).map(Self).ok_or_else(last_error)
    }

    pub(super) fn record(&mut self, stream: &RawStream) -> Result<(), LibtorchError> {
        // SAFETY: both own live objects.
        ok(unsafe { concord_event_record(self.0.as_ptr(), stream.0.as_ptr()) })
    }

    pub(super) fn block(&self, stream: &RawStream) -> Result<(), LibtorchError> {
        // SAFETY: both own live objects; c10::Event::block is const.
        ok(unsafe { concord_event_block(self.0.as_ptr(), stream.0.as_ptr()) })
    }

    pub(super) fn synchronize(&self) -> Result<(), LibtorchError> {
        // SAFETY: self owns a live c10::Event.
        ok(unsafe { concord_event_synchronize(self.0.as_ptr()) })
    }

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
