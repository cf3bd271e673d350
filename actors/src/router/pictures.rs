//! A request's picture: decoded when a voter first needs it, once for each scale that there is need for.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use concord_models::{DecodedImage, Scale, decode_at, jpeg_size};
use tracing::field::Empty;

use super::Shared;
use super::error::RouteError;
use crate::Trace;
use crate::ticket::Ticket;
use crate::trace::TRACE_TARGET;
use crate::voter::Ask;

/// A picture and how long it took, or why there is none.
type Decoded = Result<(Arc<DecodedImage>, Duration), RouteError>;

/// What has been decoded of a request's image.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    /// Upright width and height, where it is a JPEG and a model has asked.
    jpeg_size: OnceLock<Result<Option<[u32; 2]>, RouteError>>,
    /// By scale.
    decoded: [OnceLock<Decoded>; Scale::COUNT],
}

impl Pictures {
    /// How long decoding has taken by now, or why there is no picture.
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

/// A stage's questions, on their way through the CPU threads. A change of thread costs more than the rest of this, so
/// nothing comes back before it is with the models.
#[derive(Clone)]
pub(super) struct Submission {
    pub(super) pictures: Arc<Pictures>,
    pub(super) bytes: Bytes,
    pub(super) ticket: Arc<Ticket>,
    pub(super) shared: Arc<Shared>,
    /// The computation's span.
    pub(super) trace: Trace,
}

impl Submission {
    /// Has the image decoded, where that has not been done, and made ready for each model.
    pub(super) fn start(self, asks: Vec<Ask>) {
        let pool = self.shared.pool.clone();
        pool.spawn(move || self.run(asks));
    }

    fn run(self, asks: Vec<Ask>) {
        let mut groups = self.by_scale(asks).into_iter();
        let Some((scale, here)) = groups.next() else { return };
        for (scale, asks) in groups {
            let other = self.clone();
            self.shared.pool.spawn(move || other.run_at(scale, asks));
        }
        self.run_at(scale, here);
    }

    /// The questions by the scale that their models want the image at. There are none where it has no size: its
    /// questions are given up.
    fn by_scale(&self, asks: Vec<Ask>) -> Vec<(Scale, Vec<Ask>)> {
        let mut groups: Vec<(Scale, Vec<Ask>)> = Vec::new();
        let mut asks = asks.into_iter();
        while let Some(ask) = asks.next() {
            let size = if ask.decodes_fast() { self.jpeg_size() } else { &Ok(None) };
            let Ok(size) = size else {
                ask.give_up();
                groups.into_iter().flat_map(|(_, asks)| asks).chain(asks).for_each(Ask::give_up);
                return Vec::new();
            };
            let scale = size.map_or(Scale::WHOLE, |size| ask.scale(size));
            match groups.iter_mut().find(|(of, _)| *of == scale) {
                Some((_, group)) => group.push(ask),
                None => groups.push((scale, vec![ask])),
            }
        }
        groups
    }

    fn jpeg_size(&self) -> &Result<Option<[u32; 2]>, RouteError> {
        self.pictures.jpeg_size.get_or_init(|| {
            if self.ticket.unwanted().is_some() {
                return Err(RouteError::Expired);
            }
            Ok(jpeg_size(&self.bytes, self.shared.max_pixels)?)
        })
    }

    fn run_at(self, scale: Scale, asks: Vec<Ask>) {
        let Self { pictures, bytes, ticket, shared, trace } = self;
        let result = pictures.decoded[scale.index()]
            .get_or_init(|| decode_wanted(&bytes, scale, &ticket, &shared, &trace));
        // Whoever has the answer must not find the request's span held open by this thread.
        drop(trace);
        let Ok((picture, _)) = result else { return asks.into_iter().for_each(Ask::give_up) };
        let mut asks = asks.into_iter();
        let here = asks.next();
        for ask in asks {
            let picture = Arc::clone(picture);
            shared.pool.spawn(move || ask.submit(&picture));
        }
        if let Some(ask) = here {
            ask.submit(picture);
        }
    }
}

/// The picture, unless nobody waits for it any more.
fn decode_wanted(bytes: &[u8], scale: Scale, ticket: &Ticket, shared: &Shared, trace: &Trace) -> Decoded {
    if ticket.unwanted().is_some() {
        return Err(RouteError::Expired);
    }
    let trace = trace.child(|parent| {
        tracing::info_span!(target: TRACE_TARGET, parent: parent, "decode", concord.service = "concord-router",
            bytes = bytes.len(), eighths = scale.eighths(), width = Empty, height = Empty)
    });
    let started = Instant::now();
    let picture = decode_at(bytes, shared.max_pixels, scale)?;
    let elapsed = started.elapsed();
    shared.metrics.phase_seconds.with_label_values(&["decode"]).observe(elapsed.as_secs_f64());
    let [width, height] = picture.size;
    trace.record("width", width);
    trace.record("height", height);
    Ok((Arc::new(picture), elapsed))
}
