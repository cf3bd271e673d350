//! Streams, which order work on one GPU, and events, which are points in that order. On a CPU both are
//! no-ops.

use std::marker::PhantomData;
use std::time::Instant;

use tch::Device;

use super::ffi::{RawEvent, RawStream, exchange_device};
use super::{LibtorchError, load_cuda_part};

/// An order of work on one device, independent of other streams as long as there are enough: CUDA's come from
/// libtorch's pool of 32 for each device, and the 33rd is the first again.
///
/// The current stream is a property of the thread, so a model's forward always runs on the thread that
/// entered the model's stream.
#[derive(Debug)]
pub struct Stream {
    /// The stream with its device, or `None` on a CPU, where work is done when the call returns.
    cuda: Option<(RawStream, usize)>,
}

impl Stream {
    /// Creates a stream on `device`.
    ///
    /// # Errors
    /// Returns an error if CUDA fails, for instance because the device does not exist.
    pub fn new(device: Device) -> Result<Self, LibtorchError> {
        let cuda = match device {
            Device::Cuda(index) => Some((RawStream::new(index)?, index)),
            _ => None,
        };
        Ok(Self { cuda })
    }

    /// Returns the calling thread's current stream of `device`.
    pub(crate) fn current(device: Device) -> Result<Self, LibtorchError> {
        let cuda = match device {
            Device::Cuda(index) => Some((RawStream::current(index)?, index)),
            _ => None,
        };
        Ok(Self { cuda })
    }

    /// Returns whether the stream is being recorded, as by `Graph::capture`. Only [`load_cuda_part`] makes it
    /// possible to tell.
    pub(crate) fn is_capturing(&self) -> Result<bool, LibtorchError> {
        let Some((stream, _)) = &self.cuda else { return Ok(false) };
        load_cuda_part()?;
        stream.is_capturing()
    }

    /// Keeps the device busy for this many cycles of its clock, before it comes to later work on this stream.
    pub(crate) fn spin(&self, cycles: i64) -> Result<(), LibtorchError> {
        let Some((stream, _)) = &self.cuda else { return Ok(()) };
        load_cuda_part()?;
        stream.spin(cycles)
    }

    /// Makes this stream and its device the current ones of the calling thread until the result is dropped.
    /// Tensors know their device, but graphs and the project's own kernels use the thread's.
    ///
    /// # Errors
    /// Returns an error if CUDA fails.
    pub fn enter(&self) -> Result<CurrentStream<'_>, LibtorchError> {
        let exchange = |(stream, device): &(RawStream, usize)| {
            let previous_device = exchange_device(*device)?;
            Ok::<_, LibtorchError>((stream.exchange()?, previous_device))
        };
        let previous = self.cuda.as_ref().map(exchange).transpose()?;
        Ok(CurrentStream { previous, stream: PhantomData, not_send: PhantomData })
    }

    /// Waits until all work that was enqueued on this stream is done.
    ///
    /// # Errors
    /// Returns an error if that work failed. A CUDA error of this kind is sticky: it stays with the process.
    pub fn synchronize(&self) -> Result<(), LibtorchError> {
        self.cuda.as_ref().map_or(Ok(()), |(stream, _)| stream.synchronize())
    }

    /// Makes later work on this stream wait for `event`, without making the CPU wait.
    ///
    /// # Errors
    /// Returns an error if CUDA fails.
    pub fn wait_for(&self, event: &Event) -> Result<(), LibtorchError> {
        match (&self.cuda, &event.0) {
            (Some((stream, _)), Point::Cuda(event)) => event.block(stream),
            _ => Ok(()),
        }
    }
}

/// A guard that keeps a stream the current one of this thread, and restores the previous stream and device
/// when it is dropped.
#[derive(Debug)]
pub struct CurrentStream<'stream> {
    previous: Option<(RawStream, usize)>,
    stream: PhantomData<&'stream Stream>,
    /// The current stream is thread-local: restoring it on another thread would change that thread's.
    not_send: PhantomData<*const ()>,
}

impl Drop for CurrentStream<'_> {
    fn drop(&mut self) {
        if let Some((stream, device)) = &self.previous
            && let Err(error) = stream.exchange().and_then(|_entered| exchange_device(*device))
        {
            tracing::error!(%error, "the previous stream could not be restored");
        }
    }
}

/// A point in a stream's work, with the time at which the device reached it.
#[derive(Debug)]
pub struct Event(Point);

#[derive(Debug)]
enum Point {
    Cpu(Instant),
    Cuda(RawEvent),
}

impl Event {
    /// Records an event behind all work that has been enqueued on `stream` so far.
    ///
    /// # Errors
    /// Returns an error if CUDA fails.
    pub fn record(stream: &Stream) -> Result<Self, LibtorchError> {
        let Some((stream, _)) = &stream.cuda else {
            return Ok(Self(Point::Cpu(Instant::now())));
        };
        let mut event = RawEvent::new()?;
        event.record(stream)?;
        Ok(Self(Point::Cuda(event)))
    }

    /// Waits until the device has reached this point.
    ///
    /// # Errors
    /// Returns an error if the work before it failed.
    pub fn synchronize(&self) -> Result<(), LibtorchError> {
        match &self.0 {
            Point::Cpu(_) => Ok(()),
            Point::Cuda(event) => event.synchronize(),
        }
    }

    /// Returns the milliseconds on the device from this event to `later`; the device must have reached both.
    ///
    /// # Errors
    /// Returns an error if it has not, or if the events are of different devices.
    pub fn elapsed_ms(&self, later: &Self) -> Result<f64, LibtorchError> {
        match (&self.0, &later.0) {
            (Point::Cpu(from), Point::Cpu(to)) => Ok(to.duration_since(*from).as_secs_f64() * 1e3),
            (Point::Cuda(from), Point::Cuda(to)) => from.elapsed_ms(to),
            _ => Err(LibtorchError("the events are of different devices".to_owned())),
        }
    }
}
