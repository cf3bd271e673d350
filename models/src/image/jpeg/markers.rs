//! Walks the segments of a JPEG (ITU-T T.81, annex B) from its beginning to the end of its first image, by
//! their lengths and without decoding anything.
//!
//! Bytes in other places that look like markers do not count: in a thumbnail within a segment, or behind the
//! image. Everything that decides about a file reads it through here, so that decoders that fill missing data
//! with grey only see whole files.

use memchr::memchr;

/// The codes of the markers that are told apart, each of which follows a byte 0xff. The names are those of
/// the standard.
const DHT: u8 = 0xc4;
const JPG: u8 = 0xc8;
const DAC: u8 = 0xcc;
const RST0: u8 = 0xd0;
const RST7: u8 = 0xd7;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP1: u8 = 0xe1;
/// The first code of a marker that matters. Those below are stuffed zeros of compressed data, and reserved
/// ones, which libjpeg skips or refuses where it meets them.
const MARKERS: u8 = 0xc0;
/// Frame headers have the codes 0xc0 to 0xcf, apart from [`DHT`], [`JPG`] and [`DAC`].
const FRAMES: std::ops::RangeInclusive<u8> = 0xc0..=0xcf;
/// The frame headers of progressive files: Huffman and arithmetic coding.
const PROGRESSIVE: [u8; 2] = [0xc2, 0xca];
/// The most segments before the frame header. The largest body that is taken by default holds 512 segments of
/// full length; without a limit, one of empty segments would keep the reader of its size busy.
const SEGMENTS_BEFORE_FRAME_MAX: usize = 1024;
/// The most samples of a pixel: CMYK.
const COMPONENTS_MAX: usize = 4;
/// The largest sampling factor.
const SAMPLING_MAX: u8 = 4;
/// The beginning of an APP1 segment that holds EXIF data.
const EXIF: &[u8] = b"Exif\0\0";

/// A reason why a file is no whole JPEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("it is cut off: its end marker is missing")]
    CutOff,
    #[error("it is cut off: another image begins within it")]
    SecondImage,
    #[error("it has no frame header before its data")]
    NoFrame,
    #[error("it has more than {SEGMENTS_BEFORE_FRAME_MAX} segments before its frame header")]
    ManySegments,
    #[error("its frame header is not valid")]
    Frame,
    #[error("it has two frame headers")]
    SecondFrame,
    #[error("it has no image data")]
    NoScan,
}

/// The frame header: the size of the image and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// The width and height in pixels, as stored.
    pub(super) size: [u32; 2],
    pub(super) is_progressive: bool,
    /// The specifications of the components, three bytes each.
    specifications: &'a [u8],
}

/// The header: everything before the first scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header<'a> {
    pub(super) frame: Frame<'a>,
    /// The first EXIF block.
    pub(super) exif: Option<&'a [u8]>,
}

/// The whole first image of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout<'a> {
    pub(super) header: Header<'a>,
    /// The number of scans.
    pub(super) scans: usize,
    /// The number of components in the first scan.
    pub(super) first_scan_components: usize,
    /// The number of bytes up to the end of the image.
    pub(super) end: usize,
}

impl<'a> Frame<'a> {
    /// Reads the header of a frame that begins with a marker of that code.
    fn read(code: u8, data: &'a [u8]) -> Result<Self, Fault> {
        let [_precision, high, low, wide, narrow, count, specifications @ ..] = data else {
            return Err(Fault::Frame);
        };
        let size = [[*wide, *narrow], [*high, *low]].map(|side| u32::from(u16::from_be_bytes(side)));
        let count = usize::from(*count);
        let frame = Self { size, is_progressive: PROGRESSIVE.contains(&code), specifications };
        let fits = (1..=COMPONENTS_MAX).contains(&count) && specifications.len() == 3 * count;
        let is_sampled = frame.sampling().flatten().all(|factor| (1..=SAMPLING_MAX).contains(&factor));
        if fits && is_sampled && !size.contains(&0) { Ok(frame) } else { Err(Fault::Frame) }
    }

    /// Returns the number of components, from 1 to 4.
    pub(super) fn components(&self) -> usize {
        self.specifications.len() / 3
    }

    /// Returns the horizontal and vertical sampling factor of each component.
    pub(super) fn sampling(&self) -> impl Iterator<Item = [u8; 2]> + 'a {
        self.specifications.chunks_exact(3).map(|specification| {
            let factors = specification.get(1).copied().unwrap_or_default();
            [factors >> 4, factors & 0x0f]
        })
    }
}

impl<'a> Header<'a> {
    /// Reads the segments before the first scan.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        Self::take(&mut Segments::new(bytes)).map(|(header, _)| header)
    }

    /// Takes the segments up to and with the header of the first scan, and returns that one's data too.
    fn take(segments: &mut Segments<'a>) -> Result<(Self, &'a [u8]), Fault> {
        let (mut frame, mut exif) = (None, None);
        let mut before_frame = 0;
        for segment in segments {
            let Segment { code, data } = segment?;
            match code {
                SOS => return Ok((Self { frame: frame.ok_or(Fault::NoFrame)?, exif }, data)),
                APP1 => exif = exif.or_else(|| data.strip_prefix(EXIF)),
                _ if !is_frame(code) => {}
                _ if frame.is_some() => return Err(Fault::SecondFrame),
                _ => frame = Some(Frame::read(code, data)?),
            }
            before_frame += usize::from(frame.is_none());
            if before_frame > SEGMENTS_BEFORE_FRAME_MAX {
                return Err(Fault::ManySegments);
            }
        }
        Err(if frame.is_some() { Fault::NoScan } else { Fault::NoFrame })
    }
}

impl<'a> Layout<'a> {
    /// Walks to the end of the first image.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut segments = Segments::new(bytes);
        let (header, scan) = Header::take(&mut segments)?;
        let first_scan_components = scan.first().copied().map_or(0, usize::from);
        let mut scans = 1;
        for segment in &mut segments {
            let Segment { code, .. } = segment?;
            // Where the first scan holds everything, libjpeg would not come to it.
            if is_frame(code) {
                return Err(Fault::SecondFrame);
            }
            scans += usize::from(code == SOS);
        }
        Ok(Self { header, scans, first_scan_components, end: segments.position })
    }
}

/// Returns the width and height, as stored, from the frame header alone.
pub(in crate::image) fn declared_size(bytes: &[u8]) -> Option<[u32; 2]> {
    Segments::new(bytes).take(SEGMENTS_BEFORE_FRAME_MAX + 1).map_while(Result::ok).find_map(|segment| {
        let Segment { code, data } = segment;
        if is_frame(code) { Frame::read(code, data).ok().map(|frame| frame.size) } else { None }
    })
}

fn is_frame(code: u8) -> bool {
    FRAMES.contains(&code) && ![DHT, JPG, DAC].contains(&code)
}

/// A marker and the data that its length announces.
struct Segment<'a> {
    code: u8,
    data: &'a [u8],
}

/// The segments of the first image, in order. The compressed data behind a scan's header belongs to none; the
/// iteration ends with the end marker, or with the fault that stands in its place.
struct Segments<'a> {
    bytes: &'a [u8],
    /// The number of bytes that have been read.
    position: usize,
    has_ended: bool,
}

impl<'a> Segments<'a> {
    /// Returns the segments behind the start marker, which the caller has seen.
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 2, has_ended: false }
    }

    /// Takes the code of the next marker. As libjpeg does, it skips what stands between two segments, any
    /// number of bytes 0xff before the code, and restart markers, which only occur in compressed data.
    fn marker(&mut self) -> Option<u8> {
        loop {
            let rest = self.bytes.get(self.position..)?;
            let filled = memchr(0xff, rest)?;
            let code_at = filled + rest[filled..].iter().position(|&byte| byte != 0xff)?;
            self.position += code_at + 1;
            let code = rest[code_at];
            if code >= MARKERS && !(RST0..=RST7).contains(&code) {
                return Some(code);
            }
        }
    }

    /// Takes the data of a segment behind its length, which counts its own two bytes. A smaller length is
    /// taken as an empty segment, as libjpeg does.
    fn data(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.position..)?;
        let [high, low, ..] = *rest else { return None };
        let length = usize::from(u16::from_be_bytes([high, low])).max(2);
        let data = rest.get(2..length)?;
        self.position += length;
        Some(data)
    }

    fn segment(&mut self) -> Result<Option<Segment<'a>>, Fault> {
        match self.marker().ok_or(Fault::CutOff)? {
            EOI => Ok(None),
            SOI => Err(Fault::SecondImage),
            code => Ok(Some(Segment { code, data: self.data().ok_or(Fault::CutOff)? })),
        }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Result<Segment<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let segment = self.segment().transpose();
        self.has_ended = !matches!(segment, Some(Ok(_)));
        segment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frame header of an image of 16 × 8 pixels with three components, the first sampled twice in each
    /// direction.
    const FRAME: &[u8] = &[0xff, 0xc0, 0, 17, 8, 0, 8, 0, 16, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
    /// The header of a scan of three components, and compressed data with a stuffed zero and two restart
    /// markers.
    const SCAN: &[u8] =
        &[0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 63, 0, 1, 0xff, 0, 2, 0xff, 0xd0, 3, 0xff, 0xd7, 4];
    const END: &[u8] = &[0xff, EOI];

    fn jpeg(parts: &[&[u8]]) -> Vec<u8> {
        [&[0xff, SOI], &*parts.concat()].concat()
    }

    #[test]
    fn the_walk_ends_where_the_first_image_ends() {
        let thumbnail = [&[0xff, APP1, 0, 12][..], EXIF, &[0xff, SOI, 0xff, EOI]].concat();
        let zero_length = [0xff, 0xfe, 0, 0];
        let cases: [(&str, Vec<u8>, usize); 8] = [
            ("plain", jpeg(&[FRAME, SCAN, END]), 1),
            ("a thumbnail with an end of its own", jpeg(&[&thumbnail, FRAME, SCAN, END]), 1),
            ("three scans", jpeg(&[FRAME, SCAN, SCAN, SCAN, END]), 3),
            ("bytes 0xff before a marker", jpeg(&[FRAME, SCAN, &[0xff; 5], END]), 1),
            ("garbage between segments", jpeg(&[&[1, 2, 0xff, 0, 3], FRAME, SCAN, END]), 1),
            ("a number of lines", jpeg(&[FRAME, SCAN, &[0xff, 0xdc, 0, 4, 0, 8], END]), 1),
            ("a length of zero", jpeg(&[&zero_length, FRAME, SCAN, END]), 1),
            ("a reserved marker in the data", jpeg(&[FRAME, SCAN, &[0xff, 0x5a, 0xff, 0xff], END]), 1),
        ];
        for (name, whole, scans) in cases {
            let layout = Layout::read(&whole).unwrap_or_else(|fault| panic!("{name}: {fault}"));
            assert_eq!((layout.end, layout.scans), (whole.len(), scans), "{name}");
            assert_eq!(layout.first_scan_components, 3, "{name}");
            assert_eq!(layout.header.frame.size, [16, 8], "{name}");
            let sampling: Vec<[u8; 2]> = layout.header.frame.sampling().collect();
            assert_eq!(sampling, [[2, 2], [1, 1], [1, 1]], "{name}");
            for behind in [&[0; 200][..], END, SCAN, &whole, &[0xff; 7]] {
                assert_eq!(Layout::read(&[&whole[..], behind].concat()), Ok(layout), "{name} and more");
            }
            for length in 2..whole.len() {
                assert!(Layout::read(&whole[..length]).is_err(), "{name}: {length} of {} bytes", whole.len());
            }
        }
    }

    #[test]
    fn what_is_no_whole_jpeg_says_why() {
        let whole = jpeg(&[FRAME, SCAN, END]);
        let with = |position: usize, value: u8| {
            let mut changed = whole.clone();
            changed[position] = value;
            changed
        };
        let many = vec![[0xff, 0xfe, 0, 2]; SEGMENTS_BEFORE_FRAME_MAX + 1].concat();
        for (bytes, fault) in [
            (whole[..whole.len() - 1].to_vec(), Fault::CutOff),
            ([&whole[..whole.len() - 4], &whole].concat(), Fault::SecondImage),
            (jpeg(&[]), Fault::CutOff),
            (jpeg(&[END]), Fault::NoFrame),
            (jpeg(&[FRAME, END]), Fault::NoScan),
            (jpeg(&[SCAN, FRAME, END]), Fault::NoFrame),
            (jpeg(&[FRAME, FRAME, SCAN, END]), Fault::SecondFrame),
            (jpeg(&[FRAME, SCAN, FRAME, END]), Fault::SecondFrame),
            (jpeg(&[&many, FRAME, SCAN, END]), Fault::ManySegments),
            (with(8, 0), Fault::Frame),
            (with(11, 5), Fault::Frame),
            (with(13, 0x51), Fault::Frame),
        ] {
            assert_eq!(Layout::read(&bytes), Err(fault));
        }
    }

    #[test]
    fn the_declared_size_needs_no_more_than_the_frame_header() {
        let whole = jpeg(&[&[0xff, DHT, 0, 2], FRAME, SCAN, END]);
        let header = 2 + 4 + FRAME.len();
        for length in 2..whole.len() {
            let expected = (length >= header).then_some([16, 8]);
            assert_eq!(declared_size(&whole[..length]), expected, "{length} bytes");
        }
    }
}
