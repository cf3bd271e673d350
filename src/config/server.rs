//! The section `[server]`: the address to listen on, and the limits of one process.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use concord_actors::Diagnostic;
use concord_models::ImageLimits;
use serde::Deserialize;

/// The range of `max_pixels`: up to a gigapixel, whose RGB bytes alone take 3 GB.
const MAX_PIXELS: RangeInclusive<u64> = 1..=1_000_000_000;
/// The range of `max_pixels_in_flight`: up to three terabytes of RGB.
const MAX_PIXELS_IN_FLIGHT: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// The images of the largest size that the budget for all images must hold: three quarters of it are for large
/// ones.
const LARGEST_IMAGES_MIN: u64 = 2;
/// The range of `max_scratch_bytes`: from what an image of one megapixel takes in the costliest format, up to
/// 16 GiB, which is more than an image of [`MAX_PIXELS`] takes.
const MAX_SCRATCH_BYTES: RangeInclusive<u64> = 16 << 20..=16 << 30;
/// The range of `max_body_bytes`: from the size of the smallest real image, up to 1 GiB, since a body is held
/// in memory as a whole.
const MAX_BODY_BYTES: RangeInclusive<u64> = 1024..=1024 * 1024 * 1024;
/// The bodies of the largest size that the budget for all bodies must hold: three quarters of it are for large
/// ones, and JSON takes 3⅔ times its image.
const LARGEST_BODIES_MIN: u64 = 6;
/// The range of `max_body_bytes_in_flight`: up to a terabyte.
const MAX_BODY_BYTES_IN_FLIGHT: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// The range of thread counts. No machine that Concord is made for has more, so that a larger number is a
/// mistake.
const THREADS: RangeInclusive<u64> = 0..=1024;
/// The range of `max_in_flight`. The routers' mailboxes hold this many messages, and some more.
const MAX_IN_FLIGHT: RangeInclusive<u64> = 1..=50_000;
/// The range of `max_connections`: up to more than a process may have files open.
const MAX_CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000;
/// The range of `request_timeout_ms`: up to an hour.
const REQUEST_TIMEOUT_MS: RangeInclusive<u64> = 1..=3_600_000;
/// The range of `shutdown_timeout_s`: up to an hour.
const SHUTDOWN_TIMEOUT_S: RangeInclusive<u64> = 1..=3600;

/// The section `[server]` of `ensemble.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerSection {
    /// The address and port to listen on; port 0 takes a free one.
    pub listen: String,
    /// The number of threads that serve HTTP, each with a router; 0 for one per core.
    pub workers: usize,
    /// The most connections of each of these threads; more wait to be accepted.
    pub max_connections: u64,
    /// The most requests in flight; further ones are refused with 429.
    pub max_in_flight: u64,
    /// The time after which a request is refused with 504.
    pub request_timeout_ms: u64,
    /// The time that requests in flight are given when the process shuts down.
    pub shutdown_timeout_s: u64,
    /// The most pixels of an image, checked in its header before it is decoded.
    pub max_pixels: u64,
    /// The most pixels of all images that are decoded at once; further images wait for their turn. A quarter is
    /// for images of at most 2 megapixels.
    pub max_pixels_in_flight: u64,
    /// The most bytes that decoding one image may take beside its pixels, which take 3 bytes each. Computed from
    /// its header before it is decoded.
    pub max_scratch_bytes: u64,
    /// The most bytes of an encoded image.
    pub max_body_bytes: u64,
    /// The most bytes of all request bodies that are being received or worked on; further ones are refused with
    /// 429. A quarter is for bodies of at most 1 MiB.
    pub max_body_bytes_in_flight: u64,
    /// The number of cores to compute on; 0 for all. Models on the CPU share them, and half as many threads
    /// decode.
    pub cpu_threads: usize,
    /// The environment variable that holds the API keys, separated by commas; without it, none is required.
    pub api_keys_env: Option<String>,
    /// The PEM file of the certificate chain, for TLS.
    pub tls_certificate: Option<PathBuf>,
    /// The PEM file of its private key.
    pub tls_key: Option<PathBuf>,
}

impl Default for ServerSection {
    fn default() -> Self {
        let image_limits = ImageLimits::default();
        Self {
            // Not reachable from other machines unless configured.
            listen: "127.0.0.1:8080".to_owned(),
            workers: 0,
            max_connections: 10_000,
            // Four times the default capacity of a model's queue.
            max_in_flight: 1024,
            request_timeout_ms: 10_000,
            shutdown_timeout_s: 30,
            // 64 megapixels are more than phones take. Such an image is 192 MB when decoded, and decoding
            // or resizing it takes 64 MiB beside that.
            max_pixels: image_limits.max_pixels,
            max_scratch_bytes: image_limits.max_scratch_bytes,
            // 768 MB: sixteen photographs of 12 megapixels, and thirty images of 2 megapixels.
            max_pixels_in_flight: 256_000_000,
            max_body_bytes: 32 * 1024 * 1024,
            // A hundred photographs of a phone at its full resolution.
            max_body_bytes_in_flight: 512 * 1024 * 1024,
            cpu_threads: 0,
            api_keys_env: None,
            tls_certificate: None,
            tls_key: None,
        }
    }
}

impl ServerSection {
    /// Returns the time that a request may take.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// Returns the limits of decoding an image.
    pub fn image_limits(&self) -> ImageLimits {
        ImageLimits { max_pixels: self.max_pixels, max_scratch_bytes: self.max_scratch_bytes }
    }

    /// Returns a diagnostic for each field that cannot be used.
    pub(super) fn check(&self) -> Vec<Diagnostic> {
        let fields = [
            ("workers", self.workers as u64, THREADS),
            ("max_connections", self.max_connections, MAX_CONNECTIONS),
            ("max_in_flight", self.max_in_flight, MAX_IN_FLIGHT),
            ("request_timeout_ms", self.request_timeout_ms, REQUEST_TIMEOUT_MS),
            ("shutdown_timeout_s", self.shutdown_timeout_s, SHUTDOWN_TIMEOUT_S),
            ("max_pixels", self.max_pixels, MAX_PIXELS),
            ("max_pixels_in_flight", self.max_pixels_in_flight, MAX_PIXELS_IN_FLIGHT),
            ("max_scratch_bytes", self.max_scratch_bytes, MAX_SCRATCH_BYTES),
            ("max_body_bytes", self.max_body_bytes, MAX_BODY_BYTES),
            ("max_body_bytes_in_flight", self.max_body_bytes_in_flight, MAX_BODY_BYTES_IN_FLIGHT),
            ("cpu_threads", self.cpu_threads as u64, THREADS),
        ];
        let mut faults = out_of_range(fields);
        let mut fault = |key: &str, message: String| faults.push(Diagnostic::new(vec![key.into()], message));
        for (key, value, one_key, one, times) in [
            (
                "max_pixels_in_flight",
                self.max_pixels_in_flight,
                "max_pixels",
                self.max_pixels,
                LARGEST_IMAGES_MIN,
            ),
            (
                "max_body_bytes_in_flight",
                self.max_body_bytes_in_flight,
                "max_body_bytes",
                self.max_body_bytes,
                LARGEST_BODIES_MIN,
            ),
        ] {
            let min = one.saturating_mul(times);
            if value < min {
                fault(key, format!("{value} is too small: must be at least {times} times {one_key}, {min}"));
            }
        }
        // Only the form is checked: the host may be known only on the machine that it is for.
        if self
            .listen
            .rsplit_once(':')
            .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            fault("listen", format!("{:?} is not an address: must be HOST:PORT", self.listen));
        }
        let with_tls = (&self.tls_certificate, &self.tls_key);
        for (key, other, missing) in [
            ("tls_key", "tls_certificate", matches!(with_tls, (Some(_), None))),
            ("tls_certificate", "tls_key", matches!(with_tls, (None, Some(_)))),
        ] {
            if missing {
                fault(key, format!("is missing: must be given with {other}"));
            }
        }
        faults
    }
}

/// Returns a diagnostic for each number that is out of its range.
pub(super) fn out_of_range<'a>(
    fields: impl IntoIterator<Item = (&'a str, u64, RangeInclusive<u64>)>,
) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for (key, value, range) in fields {
        if !range.contains(&value) {
            let message =
                format!("{value} is out of range: must be from {} to {}", range.start(), range.end());
            faults.push(Diagnostic::new(vec![key.into()], message));
        }
    }
    faults
}
