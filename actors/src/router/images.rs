//! A request's image: decoded when a model first needs it, once for each scale that is needed.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use concord_models::{DecodedImage, Scale, decode_at, jpeg_size};
use tracing::field::Empty;

use super::error::RouteError;
use super::shared::Shared;
use crate::Trace;
use crate::client::ReservedVote;
use crate::deadline::SharedDeadline;
use crate::metrics::Phase;
use crate::pixel_budget::PixelPermit;
use crate::pool::{Lane, Order};
use crate::trace::TRACE_TARGET;

/// A decoded image and how long that took, or why there is none.
type Decoded = Result<(Arc<DecodedImage>, Duration), RouteError>;

/// A request's image at the scales at which it has been decoded by now.
#[derive(Debug, Default)]
pub(super) struct ScaledImages {
    /// The upright width and height, where it is a JPEG and a model has asked.
    jpeg_size: OnceLock<Result<Option<[u32; 2]>, RouteError>>,
    /// The decoded images by scale.
    decoded: [OnceLock<Decoded>; Scale::COUNT],
    /// The image's share of the budget for as long as anybody has its pixels: a thread may still be at work when
    /// nobody waits any more.
    pixels: OnceLock<PixelPermit>,
}

impl ScaledImages {
    /// Keeps the image's share of the budget.
    pub(super) fn keep(&self, pixels: PixelPermit) {
        // A computation takes it once.
        let _kept = self.pixels.set(pixels);
    }

    /// Returns how long decoding has taken by now, or why there is no image.
    pub(super) fn outcome(&self) -> Result<Duration, RouteError> {
        if let Some(Err(error)) = self.jpeg_size.get() {
            return Err(error.clone());
        }
        let mut elapsed = None;
        for decoded in self.decoded.iter().filter_map(OnceLock::get) {
            match decoded {
                Ok((_, duration)) => elapsed = Some(elapsed.unwrap_or(Duration::ZERO) + *duration),
                Err(error) => return Err(error.clone()),
            }
        }
        elapsed.ok_or(RouteError::Lost("the image decoder panicked"))
    }
}

/// A stage's votes on their way through the CPU threads. A change of thread costs more than the rest of this,
/// so nothing comes back before the image is with the models.
#[derive(Clone)]
pub(super) struct Submission {
    pub(super) images: Arc<ScaledImages>,
    pub(super) bytes: Bytes,
    pub(super) deadline: Arc<SharedDeadline>,
    pub(super) shared: Arc<Shared>,
    /// The computation's span.
    pub(super) trace: Trace,
    pub(super) lane: Lane,
}

impl Submission {
    /// Decodes the image, where that has not been done, and preprocesses it for each model.
    pub(super) fn start(self, order: Order, votes: Vec<ReservedVote>) {
        let (pool, lane) = (self.shared.pool.clone(), self.lane);
        pool.spawn(lane, order, move || self.run(votes));
    }

    fn run(self, votes: Vec<ReservedVote>) {
        let mut groups = self.by_scale(votes).into_iter();
        let Some((scale, here)) = groups.next() else { return };
        for (scale, votes) in groups {
            let other = self.clone();
            self.shared.pool.spawn(self.lane, Order::Continued, move || other.run_at(scale, votes));
        }
        self.run_at(scale, here);
    }

    /// Groups the votes by the scale at which their models want the image. Where the image has no size, all
    /// votes fail and no group is left.
    fn by_scale(&self, votes: Vec<ReservedVote>) -> Vec<(Scale, Vec<ReservedVote>)> {
        let mut groups: Vec<(Scale, Vec<ReservedVote>)> = Vec::new();
        let mut votes = votes.into_iter();
        while let Some(vote) = votes.next() {
            let size = if vote.decodes_fast() { self.jpeg_size() } else { &Ok(None) };
            let Ok(size) = size else {
                vote.fail();
                groups.into_iter().flat_map(|(_, votes)| votes).chain(votes).for_each(ReservedVote::fail);
                return Vec::new();
            };
            let scale = size.map_or(Scale::WHOLE, |size| vote.scale(size));
            match groups.iter_mut().find(|(of, _)| *of == scale) {
                Some((_, group)) => group.push(vote),
                None => groups.push((scale, vec![vote])),
            }
        }
        groups
    }

    fn jpeg_size(&self) -> &Result<Option<[u32; 2]>, RouteError> {
        self.images.jpeg_size.get_or_init(|| {
            if self.deadline.cancel_reason().is_some() {
                return Err(RouteError::Expired);
            }
            Ok(jpeg_size(&self.bytes, self.shared.image_limits)?)
        })
    }

    fn run_at(self, scale: Scale, votes: Vec<ReservedVote>) {
        let Self { images, bytes, deadline, shared, trace, lane } = self;
        let result = images.decoded[scale.index()]
            .get_or_init(|| decode_wanted(&bytes, scale, &deadline, &shared, &trace));
        // When the answer is sent, this thread must not hold the request's span open any more.
        drop(trace);
        let Ok((image, _)) = result else { return votes.into_iter().for_each(ReservedVote::fail) };
        let mut votes = votes.into_iter();
        let here = votes.next();
        for vote in votes {
            let image = Arc::clone(image);
            shared.pool.spawn(lane, Order::Continued, move || vote.submit(&image));
        }
        if let Some(vote) = here {
            vote.submit(image);
        }
    }
}

/// Decodes the image, unless nobody waits for it any more; looks again while it decodes.
fn decode_wanted(
    bytes: &[u8],
    scale: Scale,
    deadline: &SharedDeadline,
    shared: &Shared,
    trace: &Trace,
) -> Decoded {
    if deadline.cancel_reason().is_some() {
        return Err(RouteError::Expired);
    }
    let trace = trace.child(|parent| {
        tracing::info_span!(target: TRACE_TARGET, parent: parent, "decode", concord.service = "concord-router",
            bytes = bytes.len(), eighths = scale.eighths(), width = Empty, height = Empty)
    });
    let started = Instant::now();
    let image = decode_at(bytes, shared.image_limits, scale, &|| deadline.cancel_reason().is_none())?;
    let elapsed = started.elapsed();
    shared.metrics.observe(Phase::Decode, elapsed);
    let [width, height] = image.size;
    trace.record("width", width);
    trace.record("height", height);
    Ok((Arc::new(image), elapsed))
}
